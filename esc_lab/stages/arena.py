"""Stage `arena`: supporters of several trainings talk with the same seekers, and their talks are compared."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from esc_lab.config import Config
from esc_lab.config.prompt import use_template
from esc_lab.stages.run_stage import run_substage
from esc_lab.terminal import Countdown

log = logging.getLogger(__name__)
TRAINING = "training"  # directory of the pipeline that trains what is not given


def run(cfg: Config) -> dict[str, float]:
    """Train the supporters that no setting names, hold the talks of each in a directory of its name, and compare them.

    Raises:
        UserError: what the stages raise.
    """
    root = Path(cfg.run_dir)
    # One device: a second process would start over from the first step.
    cfg = replace(cfg, trainer=replace(cfg.trainer, devices="1"), resume=None)
    checkpoints = _train(cfg, root)
    llm = replace(cfg.llm, supporter=replace(cfg.llm.supporter, temperature=cfg.arena.temperature))
    names = cfg.arena.supporters
    metrics: dict[str, float] = {}
    countdown = Countdown()
    for number, name in enumerate(names):
        log.info("talks of %s, supporter %d of %d%s", name, number + 1, len(names), countdown.left(number, len(names)))
        talks = replace(_use_prompts(cfg, name), stage="converse", checkpoint=checkpoints.get(name), llm=llm)
        measured = run_substage(talks, root / name)
        metrics |= {f"{name}/{metric.removeprefix('converse/')}": value for metric, value in measured.items()}
    runs = [str(root / name) for name in names]
    run_substage(replace(cfg, stage="compare", compare=replace(cfg.compare, runs=runs)), root / "compare")
    return metrics


def _train(cfg: Config, root: Path) -> dict[str, str]:
    """Run directories by supporter: those that are named, and those that are trained here."""
    settings = cfg.arena
    known = {"sft": settings.sft, "cso": settings.cso, "steerable": settings.steerable}
    missing = [name for name in settings.supporters if name in known and not known[name]]
    if "cso" in missing:
        run_substage(replace(cfg, stage="pipeline"), root / TRAINING)
        last = "cso" if cfg.pipeline.rounds == 1 else f"cso_{cfg.pipeline.rounds}"
        known |= {"sft": str(root / TRAINING / "sft"), "cso": str(root / TRAINING / last)}
    elif "sft" in missing:
        run_substage(replace(cfg, stage="sft"), root / TRAINING / "sft")
        known["sft"] = str(root / TRAINING / "sft")
    if "steerable" in missing:
        run_substage(replace(_use_prompts(cfg, "steerable"), stage="sft"), root / TRAINING / "steerable")
        known["steerable"] = str(root / TRAINING / "steerable")
    return {name: checkpoint for name, checkpoint in known.items() if checkpoint}


def _use_prompts(cfg: Config, name: str) -> Config:
    """The configuration with the prompts of a supporter, and the schedule of its strategies where these name them."""
    if name not in ("steerable", "prompted"):
        return cfg
    prompt = use_template(cfg.prompt, cfg.arena.template, cfg.config_dirs)
    return replace(cfg, prompt=prompt, converse=replace(cfg.converse, strategies=list(cfg.arena.strategies)))
