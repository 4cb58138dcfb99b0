"""GGUF files of tiny models, served by llama.cpp: it reads the same tokens and writes the same replies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import gguf
import pytest
import torch
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from esc_lab.errors import UserError
from esc_lab.models.load import LoadedModel, load_model
from esc_lab.search.clients.llama_server import LlamaServer
from esc_lab.training.exports.gguf_file import write_gguf
from tests.conftest import CACHE, HANGS_S, model_config

TEXTS = [
    "I've lost 12345 things, haven't I?\n\n  So WE'LL see ...  3.14!",
    "Zu Hause: 1 2 33 444\tköstlich   \r\n\r\n(Question) naïve",
    "  你好、 世界 🙂‍↔️ 2024年  ",
]
TALK = [
    {"role": "system", "content": "You are the supporter."},
    {"role": "user", "content": "I lost my job 12 days ago."},
    {"role": "assistant", "content": "(Question) What happened?"},
    {"role": "user", "content": "They didn't say."},
]
# Llama 3's and Qwen 2's, as their tokenizers have them.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SCALED = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def split_by(digits: str) -> Any:
    regex = Regex(SPLIT.replace("DIGITS", digits))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(regex, "isolated"), last])


def tiny(name: str, **shape: Any) -> LoadedModel:
    """A model of its own, which may be changed."""
    settings = model_config(name)
    return load_model(replace(settings, shape={**settings.shape, **shape}), CACHE)


def fill_biases(loaded: LoadedModel) -> None:
    for name, weights in loaded.model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weights)


def plain() -> LoadedModel:
    return tiny("tiny_llama")


def smollm() -> LoadedModel:
    """Tied embeddings, biases, digits apart."""
    loaded = tiny("tiny_llama", tie_word_embeddings=True, attention_bias=True)
    fill_biases(loaded)
    digits = pre_tokenizers.Digits(individual_digits=True)
    loaded.encoder.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return loaded


def llama_3() -> LoadedModel:
    """Positions of a longer context, heads of another width than theirs together, a mark that begins each text."""
    loaded = tiny("tiny_llama", rope_parameters=SCALED, head_dim=32)
    tokenizer = loaded.encoder.tokenizer
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = split_by(r"\p{N}{1,3}")
    backend.model.ignore_merges = True
    mark = (tokenizer.bos_token, tokenizer.bos_token_id)
    backend.post_processor = TemplateProcessing(single=f"{mark[0]} $A", special_tokens=[mark])
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    return loaded


def qwen() -> LoadedModel:
    loaded = tiny("tiny_qwen2")
    fill_biases(loaded)
    backend = loaded.encoder.tokenizer.backend_tokenizer
    backend.normalizer, backend.pre_tokenizer = normalizers.NFC(), split_by(r"\p{N}")
    return loaded


@contextmanager
def serve(file: Path) -> Iterator[Any]:
    """`ask(PATH, **BODY)` of a server with the model."""
    server = LlamaServer(file, 1, 1024, 1)

    def ask(path: str, **body: Any) -> Any:
        request = Request(
            server.url.removesuffix("/v1") + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urlopen(request, timeout=HANGS_S) as answer:
            return json.load(answer)

    try:
        yield ask
    finally:
        server.stop()


@pytest.mark.parametrize("make", [plain, smollm, llama_3, qwen])
def test_llama_cpp_reads_and_writes_what_the_model_does(tmp_path: Path, make: Any) -> None:
    pytest.importorskip("xllamacpp")
    loaded = make()
    model, tokenizer = loaded.model.eval(), loaded.encoder.tokenizer
    write_gguf(model, loaded.encoder, tmp_path / "model.gguf")
    with serve(tmp_path / "model.gguf") as ask:
        for text in TEXTS:
            assert ask("/tokenize", content=text, add_special=True)["tokens"] == tokenizer(text).input_ids
        prompt = tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
        bos = tokenizer.bos_token if make is llama_3 else ""
        assert bos + ask("/apply-template", messages=TALK)["prompt"].removeprefix(bos) == prompt
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        served = ask("/completion", prompt=ids, n_predict=40, temperature=0, return_tokens=True)
        chat = ask("/v1/chat/completions", messages=TALK, max_tokens=40, temperature=0)
    stop = sorted(loaded.encoder.stop_tokens)
    out = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False, eos_token_id=stop)
    reply = out[0, len(ids) :].tolist()
    assert [token for token in reply if token not in stop] == [token for token in served["tokens"] if token not in stop]
    assert len(set(reply)) > 3
    assert chat["usage"]["prompt_tokens"] == len(ids)


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
def test_half_precision_stays_as_it_is(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    loaded = tiny("tiny_llama")
    loaded.model.to(dtype)
    write_gguf(loaded.model, loaded.encoder, tmp_path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert {tensor.tensor_type.name for tensor in tensors.values()} == {"F32", name}
    layer = loaded.model.model.layers[1]
    for place, weights in (
        ("token_embd.weight", loaded.model.model.embed_tokens.weight),
        ("blk.1.ffn_down.weight", layer.mlp.down_proj.weight),
        ("blk.1.ffn_norm.weight", layer.post_attention_layernorm.weight),
    ):
        read = gguf.quants.dequantize(tensors[place].data, tensors[place].tensor_type)
        assert torch.equal(torch.tensor(read), weights.float())


def gemma() -> LoadedModel:
    return tiny("tiny_gemma3")


def sentencepiece() -> LoadedModel:
    loaded = tiny("tiny_llama")
    loaded.encoder.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return loaded


def stretched() -> LoadedModel:
    return tiny("tiny_llama", rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (gemma, "models of type 'gemma3_text' are none of llama, qwen2"),
        (sentencepiece, "the tokenizer splits text by none of the rules gpt-2, "),
        (stretched, "a llama with positions of type 'linear' is not written here"),
    ],
)
def test_what_is_not_written(tmp_path: Path, make: Any, message: str) -> None:
    loaded = make()
    with pytest.raises(UserError) as raised:
        write_gguf(loaded.model, loaded.encoder, tmp_path / "model.gguf")
    assert message in str(raised.value)
    assert "Fix: leave it out; convert_hf_to_gguf.py of llama.cpp's repository" in str(raised.value)
    assert not (tmp_path / "model.gguf").exists()
