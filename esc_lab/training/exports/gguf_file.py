"""A trained model as a GGUF file, which llama.cpp and what is built on it load: Llama and Qwen 2 shaped models.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Weights keep their precision, nothing is
quantised. llama.cpp splits text by rules that it knows by name, so the tokenizer has to be one of these.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy.typing as npt
import torch
from torch import Tensor

from esc_lab.errors import UserError
from esc_lab.tokens import ChatEncoder

_ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}
_TYPES = {
    torch.bfloat16: (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    torch.float16: (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    torch.float32: (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_OWN_REGEX = {**_BYTES, "use_regex": True}


def _split(digits: str) -> dict[str, Any]:
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    rest = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return {"type": "Split", "pattern": {"Regex": words + digits + rest}, "behavior": "Isolated", "invert": False}


# Rules by their name in llama.cpp: what `tokenizers` does before merging, and whether it keeps words that are tokens.
_RULES: Mapping[str, tuple[list[dict[str, Any]], bool]] = {
    "gpt-2": ([_OWN_REGEX], False),
    "smollm": ([{"type": "Digits", "individual_digits": True}, _OWN_REGEX], False),
    "llama-bpe": ([_split(r"\p{N}{1,3}"), _BYTES], True),
    "qwen2": ([_split(r"\p{N}"), _BYTES], False),
}


def write_gguf(model: Any, encoder: ChatEncoder, path: Path) -> None:
    """Write weights, tokenizer and chat template.

    Raises:
        UserError: llama.cpp computes another thing than the model, or would split text otherwise than its tokenizer.
    """
    logging.getLogger("gguf").setLevel(logging.WARNING)  # it tells of byte order and of a temporary file
    config = model.config
    _check_model(config)
    rules, merges = _read_tokenizer(encoder.tokenizer)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[_ARCHITECTURES[config.model_type]])
    heads = config.num_attention_heads
    writer.add_file_type(_TYPES[_stored(model.dtype)][1])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, encoder, config.vocab_size)
    writer.add_tokenizer_pre(rules)
    writer.add_token_merges(merges)
    for name, tensor in _tensors(model):
        array = _to_array(tensor)
        kind = _TYPES[torch.float32 if tensor.ndim == 1 else _stored(tensor.dtype)][0]
        writer.add_tensor_info(name, tensor.shape, array.dtype, array.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, tensor in _tensors(model):  # one by one: a large model is in memory once
        writer.write_tensor_data(_to_array(tensor))
    writer.close()


def _refuse(what: str) -> UserError:
    fix = "leave it out; convert_hf_to_gguf.py of llama.cpp's repository takes the exported directory of most models"
    return UserError(what, where="export.gguf=true", fix=fix)


def _check_model(config: Any) -> None:
    if config.model_type not in _ARCHITECTURES:
        raise _refuse(f"models of type '{config.model_type}' are none of {', '.join(_ARCHITECTURES)}")
    scaling = config.rope_parameters["rope_type"]
    if scaling != "default" and (scaling != "llama3" or config.model_type != "llama"):
        raise _refuse(f"a {config.model_type} with positions of type '{scaling}' is not written here")
    layers = {*(getattr(config, "layer_types", None) or ())}
    if config.hidden_act != "silu" or not layers <= {"full_attention"}:
        raise _refuse("llama.cpp knows such models with SiLU and attention to the whole text alone")


def _read_tokenizer(tokenizer: Any) -> tuple[str, list[str]]:
    """What llama.cpp calls the rules by which text is split, and the merges."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    before, bpe = backend["pre_tokenizer"] or {}, backend["model"]
    parts = [
        {key: value for key, value in part.items() if key != "trim_offsets"}
        for part in before.get("pretokenizers", [before])
    ]
    found = parts, bool(bpe.get("ignore_merges"))
    rules = next((name for name, known in _RULES.items() if known == found), None)
    normalised = backend["normalizer"] not in (None, {"type": "NFC"})
    if rules is None or normalised or bpe["type"] != "BPE" or bpe.get("byte_fallback"):
        raise _refuse(f"the tokenizer splits text by none of the rules {', '.join(_RULES)}")
    return rules, [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]


def _add_tokenizer(writer: gguf.GGUFWriter, encoder: ChatEncoder, size: int) -> None:
    tokenizer = encoder.tokenizer
    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    kinds = [
        gguf.TokenType.UNUSED if number not in texts
        else gguf.TokenType.NORMAL if number not in added
        else gguf.TokenType.CONTROL if added[number].special
        else gguf.TokenType.USER_DEFINED
        for number in range(size)
    ]  # fmt: skip
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types(kinds)
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_eot_token_id(encoder.end_of_turn)
    writer.add_add_bos_token(tokenizer("").input_ids == [tokenizer.bos_token_id])
    writer.add_chat_template(tokenizer.chat_template)


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    config, architecture = model.config, _ARCHITECTURES[model.config.model_type]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise _refuse(f"llama.cpp has no name for the weights {name}")
        layer = name.split(".")[-2]
        if architecture is gguf.MODEL_ARCH.LLAMA and layer in heads:
            # Here the two numbers that a position turns are half a head apart, in llama.cpp's Llama side by side.
            halves = tensor.reshape(heads[layer], 2, -1, *tensor.shape[1:])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        yield target, tensor
    if config.rope_parameters["rope_type"] != "default":
        scaled = model.model.rotary_emb.inv_freq.float().cpu()
        steps = torch.arange(len(scaled), dtype=torch.float32) / len(scaled)
        yield "rope_freqs.weight", config.rope_parameters["rope_theta"] ** -steps / scaled


def _stored(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in _TYPES else torch.float32


def _to_array(tensor: Tensor) -> npt.NDArray[Any]:
    """Numbers as they are stored: vectors in float32, as llama.cpp wants them; bfloat16, which numpy lacks, as bits."""
    tensor = tensor.detach().cpu().to(torch.float32 if tensor.ndim == 1 else _stored(tensor.dtype)).contiguous()
    array: npt.NDArray[Any] = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
