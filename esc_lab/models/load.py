"""Tokenizers, models and adapters, ready to use; checkpoints of them, and what tells models apart."""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from esc_lab.artifacts import fingerprint, make_readable, remove_files, write_atomic
from esc_lab.config.model import ModelConfig
from esc_lab.config.training import AdapterConfig
from esc_lab.errors import UserError
from esc_lab.models.checkpoint_files import find_checkpoint, identify_base
from esc_lab.models.checks import check_tree_attention
from esc_lab.models.devices import find_device
from esc_lab.models.few_rows import prepare_few_rows
from esc_lab.models.forward import base_model
from esc_lab.models.lora import add_lora, load_lora
from esc_lab.models.sources import load_config, locate_model, refuse_unreadable
from esc_lab.models.tree_attention import IMPLEMENTATION
from esc_lab.runs.layout import BASE_MODEL
from esc_lab.tokens import ChatEncoder

CHAT_TEMPLATES = Path(__file__).parent / "chat_templates"
_MALLOC_THRESHOLDS = (-1, -3)  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_NOT_IDENTITY = ("_name_or_path", "transformers_version", "use_cache")  # they do not change what is computed


@dataclass(frozen=True)
class LoadedModel:
    """A model with its chat encoder and its longest context in tokens.

    Of a checkpoint, `adapter` is the directory of its adapter or `weights` that of its whole model.
    """

    model: PreTrainedModel | PeftModel
    encoder: ChatEncoder
    context_tokens: int
    adapter: Path | None = None
    weights: Path | None = None


def load_encoder(model: ModelConfig, cache: Path) -> ChatEncoder:
    """A model's tokenizer with its own chat template, or the configured one."""
    location = locate_model(model, cache)
    with refuse_unreadable(f"model.path={model.path}"):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            location, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    if model.chat_template:
        tokenizer.chat_template = _chat_template(model.chat_template)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return ChatEncoder(tokenizer, model.name)


def load_model(
    model: ModelConfig, cache: Path, *, checkpoint: Path | None = None, to_device: bool = True
) -> LoadedModel:
    """Load a base model, or a fine-tuned one on top of it, in evaluation mode.

    Args:
        checkpoint: run directory of a training run, or a directory that holds `adapter/` or `model/`.
        to_device: onto this process' GPU, weight by weight. On the CPU they stay mapped files, which all processes of
            a machine share; half-precision ones get the type float32 in `shard_model`, or by `cast_weights`.

    Raises:
        UserError: files are missing, quantisation without CUDA, the checkpoint belongs to another base model, or tree
            attention does not agree with separate sequences on this model.
    """
    _keep_freed_memory()
    encoder = load_encoder(model, cache)
    adapter, weights = find_checkpoint(model, checkpoint)
    location = str(weights) if weights else locate_model(model, cache)
    device, dtype = find_device(), getattr(torch, model.dtype)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # What a half-precision model computes in float32 (heads) loses less to TF32 than the model does anyway.
        torch.backends.cuda.matmul.allow_tf32 = dtype != torch.float32
    quantized = _quantization(model, dtype)
    origin: dict[str, Any] = {
        "revision": None if weights else model.revision,
        "trust_remote_code": model.trust_remote_code,
    }
    with refuse_unreadable(str(weights) if weights else f"model.path={model.path}"):
        base: Any = AutoModelForCausalLM.from_pretrained(
            location,
            config=load_config(location, **origin),
            dtype=dtype if to_device or dtype != torch.float32 else _stored_type(location, origin["revision"]),
            attn_implementation="eager",
            use_safetensors=True,
            **origin,
            **({"quantization_config": quantized} if quantized else {}),
            **({"device_map": {"": device}} if to_device and device.type == "cuda" else {}),
        )
    prepare_few_rows(base)
    base.set_attn_implementation(IMPLEMENTATION)
    for config in (base.config, base.config.get_text_config()):
        config.dtype = dtype
    loaded: PreTrainedModel | PeftModel = base
    if adapter:
        loaded = load_lora(base, adapter, is_trainable=True, torch_device=str(base.device))
    loaded.eval()
    check_tree_attention(loaded)
    limit = int(base.config.get_text_config().max_position_embeddings)
    return LoadedModel(loaded, encoder, min(model.context_tokens or limit, limit), adapter, weights)


def check_trainable(loaded: LoadedModel, adapter: AdapterConfig, model: ModelConfig) -> None:
    """Whether the model can be trained in this way, checked before anything long is done with it.

    Raises:
        UserError: full fine-tuning of quantised weights or of an adapter, or a new adapter on weights of a checkpoint.
    """
    if adapter.kind == "full" and isinstance(loaded.model, PeftModel):
        fix = "merge it first with stage=export, then use model=directory"
        raise UserError("the checkpoint is an adapter, not a whole model", where="adapter.kind=full", fix=fix)
    if adapter.kind == "full" and model.quantization:
        raise UserError("quantised weights cannot be trained", where="adapter.kind=full", fix="adapter=qlora")
    if adapter.kind == "lora" and loaded.weights:
        raise UserError(
            "the checkpoint is a whole model; an adapter on it would lose it",
            where="adapter.kind=lora",
            fix="train with adapter=full, or take its model/ as the base model: model=directory",
        )


def add_adapter(loaded: LoadedModel, adapter: AdapterConfig, model: ModelConfig) -> LoadedModel:
    """Make the model trainable: a new LoRA adapter, or all of its weights. An adapter that it has already stays.

    Raises:
        UserError: what `check_trainable` and `add_lora` raise.
    """
    check_trainable(loaded, adapter, model)
    if isinstance(loaded.model, PeftModel):
        return loaded
    if adapter.kind == "full":
        loaded.model.requires_grad_(True)
        return loaded
    return replace(loaded, model=add_lora(loaded.model, adapter, "CAUSAL_LM"))


def _keep_freed_memory() -> None:
    """Have glibc keep the memory of large tensors for the next ones.

    By default it gives it back at once, and the kernel clears fresh pages for every tensor, which on the CPU costs
    attention as much time as its arithmetic (benchmarks/attention.py).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for option in _MALLOC_THRESHOLDS:
            mallopt(option, 2**30)


def save_trained(
    loaded: LoadedModel, model: ModelConfig, directory: Path, weights: dict[str, torch.Tensor] | None = None
) -> Path:
    """Write the adapter (or the whole model) as safetensors into the run directory, with a note of its base model.

    Args:
        weights: of a sharded model, as `gather_weights` gives them.
    """
    target = directory / ("adapter" if isinstance(loaded.model, PeftModel) else "model")
    remove_files(target)
    if isinstance(loaded.model, PeftModel):
        save_adapter(loaded.model, model, target, weights)
    else:
        loaded.model.save_pretrained(str(target), state_dict=weights)
        loaded.encoder.tokenizer.save_pretrained(target)
    other = "model" if target.name == "adapter" else "adapter"
    (directory / other / BASE_MODEL).unlink(missing_ok=True)  # of an earlier run here: no checkpoint any more
    write_atomic(target / BASE_MODEL, json.dumps(identify_base(model), indent=2))
    make_readable(target)
    return target


def save_adapter(
    adapted: PeftModel, model: ModelConfig, target: Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Write the trained adapter, which names its base model as the hub does, where that is known.

    Left to itself PEFT asks the hub for the base model's vocabulary, and what it writes would depend on the network; no
    vocabulary is resized here.
    """
    adapted.peft_config["default"].base_model_name_or_path = model.hub_id or model.path
    # A frozen copy of the adapter may be there beside it, as the reference.
    adapted.save_pretrained(str(target), selected_adapters=["default"], save_embedding_layers=False, state_dict=weights)


def hash_tensors(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """SHA-256 of tensors and their names, as they are or in another type."""
    digest = hashlib.sha256()
    for name, stored in sorted(tensors.items()):
        tensor = stored.to(dtype if stored.is_floating_point() else None)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_identity(model: Any) -> dict[str, str]:
    """What log-probabilities depend on: a hash of all weights, and one of the configuration."""
    adapters = model.peft_config if isinstance(model, PeftModel) else {}
    scaling = {name: str(adapter.to_dict().get("lora_alpha")) for name, adapter in adapters.items()}
    dtype = torch.float32 if base_model(model).config.dtype == torch.float32 else None  # of weights yet to be cast
    weights = hash_tensors(model.state_dict(), dtype)
    return {"weights": weights, "config": fingerprint([describe_config(model), scaling])}


def describe_config(model: Any) -> dict[str, str]:
    """The configuration of a model, as far as it decides what is computed."""
    config = base_model(model).config.to_dict()
    return {key: str(value) for key, value in config.items() if key not in _NOT_IDENTITY}


def _stored_type(location: str, revision: str | None) -> torch.dtype:
    """The type of a model's weights in its files, if that is one of half precision, or else float32."""
    find = partial(cached_file, location, revision=revision)
    index = find(SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    names = json.loads(Path(index).read_text())["weight_map"].values() if index else [SAFE_WEIGHTS_NAME]
    with safe_open(find(min(names)), "pt") as file:
        dtype: torch.dtype = file.get_tensor(next(iter(file.keys()))).dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else torch.float32


def _quantization(model: ModelConfig, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if model.quantization is None:
        return None
    if not torch.cuda.is_available():
        raise UserError(
            "quantisation needs a CUDA device, and there is none",
            where=f"model.quantization={model.quantization}",
            fix="use adapter=lora without quantisation",
        )
    if model.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
    )


def _chat_template(name: str) -> str:
    path = Path(name) if name.endswith(".jinja") else CHAT_TEMPLATES / f"{name}.jinja"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in CHAT_TEMPLATES.glob("*.jinja")))
        raise UserError(f"no such chat template; bundled: {known}", where=f"model.chat_template={name}")
    return path.read_text(encoding="utf-8").rstrip("\n")
