"""The base models that saved scorers name: which are taken, and what of a scorer's files is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from esc_lab.config.model import ModelConfig
from esc_lab.errors import UserError
from esc_lab.models.sources import WHEELS


def describe_base(model: ModelConfig) -> dict[str, Any]:
    """A base model's settings as a scorer's note keeps them: a directory by its full path."""
    if model.source == "directory":
        model = replace(model, path=str(Path(model.path).absolute()))
    return asdict(model)


def read_base(settings: Mapping[str, Any], file: Path) -> ModelConfig:
    """The base model of a scorer's note `file`, which may come from elsewhere: no code that it names is run.

    Raises:
        UserError: it is in a package other than those of the embedded models.
        ValueError, TypeError: these are no settings of a model.
    """
    model = ModelConfig(**{**settings, "trust_remote_code": False})
    if model.source == "gguf_wheel" and model.path not in WHEELS:
        # Its code would run, and a file that comes from elsewhere may name any package.
        fix = f"use a base model in one of {', '.join(WHEELS)}, on the hub or in a directory"
        raise UserError(f"its base model is in an unknown package, '{model.path}'", where=str(file), fix=fix)
    if model.dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype {model.dtype}")
    return model


def check_safetensors(directory: Path, pattern: str) -> None:
    """Raises a UserError unless the directory has weights of this name."""
    if not any(directory.glob(pattern)):
        fix = "save it again as safetensors; other formats can run code, so they are not read"
        raise UserError(f"no {pattern} in it", where=str(directory), fix=fix)
