"""Where a checkpoint has its trained weights, which base model they belong to, and what else a directory may be."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from esc_lab.config import TRAININGS
from esc_lab.config.model import ModelConfig
from esc_lab.errors import UserError
from esc_lab.runs.layout import ADAPTER, BASE_MODEL, CHECKPOINT, MODEL, Settings, find_run, read_config

_KINDS = (ADAPTER, MODEL)


def identify_base(model: ModelConfig) -> dict[str, Any]:
    """What makes two runs share a base model: everything in the model's config but how it is computed with."""
    settings = asdict(model)
    return {key: settings[key] for key in ("name", "source", "path", "revision", "shape")}


def find_checkpoint(model: ModelConfig, checkpoint: Path | None) -> tuple[Path | None, Path | None]:
    """The directory of the adapter, or of the whole model, that a checkpoint holds.

    Args:
        checkpoint: run directory of a training, or its `adapter/` or `model/`.

    Raises:
        UserError: it holds neither, or belongs to another base model.
    """
    if checkpoint is None:
        return None, None
    for kind in _KINDS:
        for candidate in (checkpoint / kind, checkpoint):
            if (candidate / BASE_MODEL).exists() and candidate.name == kind:
                base = _read_note(candidate / BASE_MODEL)
                if base != identify_base(model):
                    raise UserError(
                        f"it was trained from {base['name']} ({base['path']}), not from {model.name} ({model.path})",
                        where=str(checkpoint),
                        fix="choose the same model= as the training run",
                    )
                return (candidate, None) if kind == ADAPTER else (None, candidate)
    what, fix = _describe(checkpoint)
    raise UserError(f"no trained adapter/ or model/ in it{what}", where=str(checkpoint), fix=fix)


def _read_note(file: Path) -> dict[str, Any]:
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(note, dict) or not {"name", "path"} <= note.keys():
            raise ValueError("it names no base model")
    except (OSError, ValueError, RecursionError) as error:
        fix = "copy the checkpoint again, or train it again"
        raise UserError(f"broken: {type(error).__name__} {error}", where=str(file), fix=fix) from error
    return note


def _describe(path: Path) -> tuple[str, str]:
    """What a path is that holds no checkpoint, as far as one can tell, and what its user may have meant."""
    training = "name the run directory of a finished stage=sft or stage=cso"
    if path.is_file():
        run = find_run(path.parent)
        return ": it is a file", f"name the run directory {run}" if run else training
    parts = {note.parent.parent for kind in _KINDS for depth in ("*", "*/*") for note in _notes(path, depth, kind)}
    if parts:
        named = sorted(parts, key=lambda part: part.stat().st_mtime, reverse=True)
        shown = " or ".join(str(part) for part in named[:4])
        return f", but it holds {len(parts)} run{'s' * (len(parts) > 1)} that trained one", f"name {shown}"
    for folder in (path / MODEL, path):
        if (folder / "config.json").exists():
            return ": it is a model of its own", f"load it with model=directory model.path={folder} model.name=NAME"
        if (folder / "adapter_config.json").exists():
            fix = "merge it into its base model with peft, save that, and use model=directory"
            return f": it is an adapter without {BASE_MODEL}, made elsewhere", fix
    with suppress(OSError, ValueError, yaml.YAMLError, RecursionError):
        return _describe_run(path, read_config(path), training)
    return "", training


def _notes(path: Path, depth: str, kind: str) -> list[Path]:
    return [*path.glob(f"{depth}/{kind}/{BASE_MODEL}")]


def _describe_run(path: Path, config: Settings, training: str) -> tuple[str, str]:
    stage, origin = config.get("stage"), config.get("checkpoint")
    if stage == "classifier":
        fix = f"judge with it: evaluate.classifier={path}"
        return ": it is a classifier of replies, which writes none", fix
    if stage == "reward":
        return ": it is a reward model, which scores replies and writes none", "name a run of stage=sft or stage=cso"
    if stage in TRAININGS:
        resume = f"let it go on: stage={stage} resume={path}" if (path / CHECKPOINT).exists() else training
        return f": its stage={stage} has not come to its end", resume
    if isinstance(stage, str):
        return f": stage={stage} trains nothing", f"name what it was run on, {origin}" if origin else training
    return "", training
