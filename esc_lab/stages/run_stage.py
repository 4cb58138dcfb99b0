"""Run a stage, or reuse its result, in a run directory with what every run leaves there beside its results."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from esc_lab.artifacts import write_atomic
from esc_lab.config import Config, is_dry_run, to_yaml
from esc_lab.runs.directory import explain_full_disk, keep_finished_run, own_directory
from esc_lab.runs.environment import describe_environment, first_process
from esc_lab.runs.layout import CONFIG, ENVIRONMENT, LOG, METRICS
from esc_lab.runs.resume import drop_checkpoints, resolve_resume
from esc_lab.runs.reuse import run_or_reuse
from esc_lab.terminal import PlainFormatter, explain_once
from esc_lab.tracking.run import wandb_run

log = logging.getLogger(__name__)


def run_stage(cfg: Config) -> dict[str, float]:
    """Run the stage in `cfg.run_dir`, or reuse its result; the directory has a metrics.json only if it came to its end.

    The stage is imported only if it has to run: torch comes with it. A run that is refused before it has left anything
    leaves a finished run in the same directory as it was.

    Raises:
        UserError: the directory cannot be written to, another process is running in it, or what the stage raises.
    """
    if is_dry_run(cfg):
        return _import_and_run(cfg)
    directory = Path(cfg.run_dir)
    log.info("%s -> %s", cfg.stage, directory)
    with own_directory(directory), keep_finished_run(directory), explain_full_disk(directory):
        cfg = resolve_resume(cfg)
        (directory / METRICS).unlink(missing_ok=True)  # of an earlier run in the same directory
        write_atomic(directory / CONFIG, to_yaml(cfg))
        write_atomic(directory / ENVIRONMENT, json.dumps(describe_environment(), indent=2))
        with explain_once(), wandb_run(cfg) as run:
            logged = (run.url or f"offline run {run.id}") if run else ""
            metrics = run_or_reuse(cfg, _import_and_run, logged)
            if metrics or first_process():  # further processes of an evaluation have none
                write_atomic(directory / METRICS, json.dumps(metrics, indent=2, sort_keys=True))
            drop_checkpoints(directory)
            if run:
                from esc_lab.tracking.results import log_results

                log_results(run, cfg)
    return metrics


def _import_and_run(cfg: Config) -> dict[str, float]:
    metrics: dict[str, float] = importlib.import_module(f"esc_lab.stages.{cfg.stage}").run(cfg)
    return metrics


def run_substage(cfg: Config, directory: Path) -> dict[str, float]:
    """A stage inside another one, as a run of its own in `directory`, with its messages in a run.log there."""
    directory.mkdir(parents=True, exist_ok=True)
    with _log_file(directory / LOG):
        return run_stage(replace(cfg, run_dir=str(directory)))


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Messages go into this file too, in the form of Hydra's run.log."""
    handler = logging.FileHandler(path)
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
