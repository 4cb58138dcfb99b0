"""Stage `pipeline`: search for preference data, then evaluate base model, sft and cso in turn, and compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from esc_lab.config import Config, DataConfig
from esc_lab.errors import UserError
from esc_lab.runs.layout import ESC_PRO
from esc_lab.stages.run_stage import run_substage

TRAININGS = ("sft", "cso")


def run(cfg: Config) -> dict[str, float]:
    """Run the chosen stages in subdirectories of the run directory, each as complete as a run of its own.

    With `search`, training is on what it found; validation and test are on the seeds' corpus.
    """
    root = Path(cfg.run_dir)
    # One device: a second process would start the pipeline over from its first step.
    cfg = replace(cfg, trainer=replace(cfg.trainer, devices="1"))
    metrics: dict[str, float] = {}
    if "search" in cfg.pipeline.stages:
        metrics |= run_substage(replace(cfg, stage="search"), root / "search")
        cfg = replace(cfg, data=_use_search(cfg.data, root / "search" / ESC_PRO))
    evaluated = []
    checkpoint = cfg.checkpoint
    for method in ("base", *(name for name in cfg.pipeline.stages if name in TRAININGS)):
        if method in TRAININGS:
            # The first training starts from what was evaluated as the base; CSO from SFT, its reference too.
            training = replace(cfg, stage=method, checkpoint=None, init_from=checkpoint)
            trained = run_substage(training, root / method)
            metrics |= {f"{method}/{name}": value for name, value in trained.items()}
            checkpoint = str(root / method)
        directory = root / f"evaluate_{method}"
        step = replace(cfg, stage="evaluate", checkpoint=checkpoint, init_from=None, resume=None)
        measured = run_substage(step, directory)
        metrics |= {f"{method}/{name}": value for name, value in measured.items()}
        evaluated.append(str(directory))
    comparison = replace(cfg, stage="compare", resume=None, compare=replace(cfg.compare, runs=evaluated))
    run_substage(comparison, root / "compare")
    return metrics


def _use_search(data: DataConfig, directory: Path) -> DataConfig:
    """Settings of the data that the search made: its split files, which hold what `data.limit` left."""
    missing = [name for name in ("valid", "test") if not (directory / f"{name}.jsonl").exists()]
    if missing:
        fix = "give the splits val and test some dialogues, or run stage=search and the trainings one by one"
        raise UserError(f"there are no {' and no '.join(missing)} dialogues", where="stage=pipeline", fix=fix)
    return replace(
        data, path=str(directory), format="jsonl", split="published", limit={}, seed_fraction=1.0, inventory=None,
        labels={},
    )  # fmt: skip
