"""Stage `arena`: supporters of several trainings talk with the same seekers, and their talks are compared."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from esc_lab.config import Config
from esc_lab.config.prompt import use_template
from esc_lab.data.strategies import build_inventory
from esc_lab.prompts.trained import read_trained_prompts
from esc_lab.stages.run_stage import run_substage
from esc_lab.terminal import Countdown

log = logging.getLogger(__name__)
TRAINING = "training"  # directory of the pipeline that trains what is not given


def run(cfg: Config) -> dict[str, float]:
    """Train the supporters that no setting names, hold the talks of each in a directory of its name, and compare them.

    The seeker that was trained with them talks to all of them, unless the configuration names another.

    Raises:
        UserError: a run that is named is of another inventory, or what the stages raise.
    """
    root = Path(cfg.run_dir)
    inventory = build_inventory(cfg.inventory)
    for name, checkpoint in _named(cfg).items():  # before anything is trained
        read_trained_prompts(Path(checkpoint), "supporter", inventory, f"arena.{name}")
    # One device: a second process would start over from the first step.
    cfg = replace(cfg, trainer=replace(cfg.trainer, devices="1"), resume=None)
    checkpoints = _train(cfg, root)
    seeker = replace(cfg.llm.seeker, checkpoint=checkpoints.pop("seeker", cfg.llm.seeker.checkpoint))
    if seeker.checkpoint:
        log.info("the seeker of all talks: %s", seeker.checkpoint)
    supporter = replace(cfg.llm.supporter, temperature=cfg.arena.temperature)
    llm = replace(cfg.llm, supporter=supporter, seeker=seeker)
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


def _named(cfg: Config) -> dict[str, str]:
    """Run directories that the configuration names, by supporter."""
    settings = cfg.arena
    runs = {"sft": settings.sft, "cso": settings.cso, "steerable": settings.steerable}
    return {name: run for name, run in runs.items() if run and name in settings.supporters}


def _train(cfg: Config, root: Path) -> dict[str, str]:
    """Run directories by supporter, those that are named and those that are trained here; and by `seeker`, where one is
    trained that no other takes the place of.
    """
    known = _named(cfg)
    missing = {*cfg.arena.supporters} - {*known}
    if "cso" in missing:
        run_substage(replace(cfg, stage="pipeline"), root / TRAINING)
        last = "cso" if cfg.pipeline.rounds == 1 else f"cso_{cfg.pipeline.rounds}"
        known |= {"sft": str(root / TRAINING / "sft"), "cso": str(root / TRAINING / last)}
        seeker = cfg.llm.seeker
        if "seeker" in cfg.pipeline.stages and seeker.client == "local" and not (seeker.checkpoint or seeker.model):
            known["seeker"] = str(root / TRAINING / "seeker")
    elif "sft" in missing:
        run_substage(replace(cfg, stage="sft"), root / TRAINING / "sft")
        known["sft"] = str(root / TRAINING / "sft")
    if "steerable" in missing:
        run_substage(replace(_use_prompts(cfg, "steerable"), stage="sft"), root / TRAINING / "steerable")
        known["steerable"] = str(root / TRAINING / "steerable")
    return known


def _use_prompts(cfg: Config, name: str) -> Config:
    """The configuration with the prompts of a supporter, and the schedule of its strategies where these name them."""
    if name not in ("steerable", "prompted"):
        return cfg
    prompt = use_template(cfg.prompt, cfg.arena.template, cfg.config_dirs)
    data = replace(cfg.data, label_weight=1.0)  # replies have no label where the prompt names the strategy
    return replace(cfg, prompt=prompt, data=data, converse=replace(cfg.converse, strategies=list(cfg.arena.strategies)))
