"""What tells models apart: hashes of their weights and of their configuration."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from peft import PeftModel

from esc_lab.artifacts import fingerprint
from esc_lab.models.forward import base_model

_NOT_IDENTITY = ("_name_or_path", "transformers_version", "use_cache")  # they do not change what is computed


def model_identity(model: Any) -> dict[str, str]:
    """What log-probabilities depend on: a hash of all weights (names, types, values), and one of the configuration."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    config = base_model(model).config.to_dict()
    adapters = model.peft_config if isinstance(model, PeftModel) else {}
    scaling = {name: str(adapter.to_dict().get("lora_alpha")) for name, adapter in adapters.items()}
    described = {key: str(value) for key, value in config.items() if key not in _NOT_IDENTITY}
    return {"weights": digest.hexdigest(), "config": fingerprint([described, scaling])}
