"""Which interrupted training a run goes on from, and the end of its checkpoints.

Torch is imported only to look into a checkpoint.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from esc_lab.artifacts import READ_ERRORS
from esc_lab.config import TRAININGS, Config, Key, keys
from esc_lab.errors import UserError
from esc_lab.runs.identity import select
from esc_lab.runs.layout import CHECKPOINT, CONFIG, SHARDS, Settings, read_config

log = logging.getLogger(__name__)


def resolve_resume(cfg: Config) -> Config:
    """For a training: `cfg.resume` as the directory of the run that it goes on from, or None where it starts anew.

    A checkpoint that an earlier run left in this run's own directory is removed, unless it is the one.

    Raises:
        UserError: the named run was configured differently, or the checkpoint is damaged.
    """
    if cfg.stage not in TRAININGS:
        return cfg
    own = Path(cfg.run_dir)
    run = None
    if cfg.resume:
        run = _find_furthest(Path(cfg.output_root), cfg) if cfg.resume == "auto" else _find_named(Path(cfg.resume), cfg)
        if run:
            log.info("resume=%s: going on from step %d of %s", cfg.resume, count_steps(run / CHECKPOINT), run)
        else:
            log.info("resume=%s: no interrupted training of this configuration there; starting anew", cfg.resume)
    if run is None or run.resolve() != own.resolve():
        _remove_checkpoint(own)
    return replace(cfg, resume=str(run.absolute()) if run else None)


def _find_furthest(root: Path, cfg: Config) -> Path | None:
    """The run directory with the most steps among the interrupted trainings of this configuration below `root`.

    One that cannot be read is left out with a warning.
    """
    steps = {}
    for path in root.glob(f"**/{CHECKPOINT}"):
        run = path.parents[1]
        try:
            if find_differences(cfg, run) == []:
                steps[run] = count_steps(path)
        except UserError as error:
            log.warning("resume=auto leaves out %s", error)
    return max(steps, key=steps.__getitem__, default=None)


def _find_named(directory: Path, cfg: Config) -> Path | None:
    """A run directory, or that of the same step in the directory of a pipeline; None if it has no checkpoint."""
    for run in (directory, directory / Path(cfg.run_dir).name):
        if (run / CHECKPOINT).exists():
            names = find_differences(cfg, run)
            if names is None:
                raise UserError(f"no {CONFIG} in it", where=f"resume={run}", fix="name a run directory")
            if names:
                fix = "give this run the same values, or start anew with resume=null"
                raise UserError(f"it was configured differently: {', '.join(names)}", where=f"resume={run}", fix=fix)
            return run
    return None


def find_differences(cfg: Config, run: Path) -> list[str] | None:
    """Keys that decide a training and have another value in a run directory; None if it holds no configuration.

    A key that is newer than the run counts as having had its default.

    Raises:
        UserError: its configuration cannot be read.
    """
    if not (run / CONFIG).exists():
        return None
    deciding = [key for key in keys() if key.decides(cfg.stage)]
    own = _select_relative(asdict(cfg), deciding)
    try:
        other = _select_relative(read_config(run), deciding)
    except READ_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        fix = "correct it, or take the run away"
        raise UserError(f"not the configuration of a run: {reason}", where=str(run / CONFIG), fix=fix) from error
    return [key.name for key in deciding if own[key.name] != other.get(key.name, key.default)]


def _select_relative(config: Settings, deciding: Sequence[Key]) -> dict[str, Any]:
    """Values of keys; models and data of the same pipeline are named relative to the run."""
    values = select(config, deciding)
    run_dir = Path(config["run_dir"])
    for key in deciding:
        path = values.get(key.name)
        if key.path and path and Path(path).is_relative_to(run_dir.parent):
            values[key.name] = os.path.relpath(path, run_dir)
    return values


def count_steps(checkpoint: Path) -> int:
    """Optimizer steps that led to a checkpoint.

    Raises:
        UserError: the file is damaged.
    """
    import torch

    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        if SHARDS in content and not checkpoint.with_name(content[SHARDS]).is_dir():
            raise FileNotFoundError(content[SHARDS])
        return int(content["global_step"])
    except (*READ_ERRORS, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        fix = "delete it, or start anew with resume=null"
        raise UserError("not a whole checkpoint", where=str(checkpoint), fix=fix) from error


def drop_checkpoints(run: Path) -> None:
    """Remove the checkpoint of a finished run and those of the interrupted ones that led to it."""
    visited: set[Path] = set()
    while run not in visited and (run / CONFIG).exists():
        visited.add(run)
        _remove_checkpoint(run)
        try:
            run = Path(read_config(run).get("resume") or run)
        except READ_ERRORS as error:
            log.warning("%s: whether it went on from another run is not known: %s", run / CONFIG, error)


def _remove_checkpoint(run: Path) -> None:
    for path in (run / CHECKPOINT).parent.glob(f"{CHECKPOINT.name}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)  # several processes may be at it
        else:
            path.unlink(missing_ok=True)
