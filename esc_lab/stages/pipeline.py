"""Stage `pipeline`: trainings and a search one after the other, an evaluation of each policy, and their comparison."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from esc_lab.config import Config, DataConfig
from esc_lab.config.pipeline import (
    BASE,
    PIPELINE_ROLES,
    POLICY_TRAININGS,
    list_steps,
    share_of_round,
    stage_of,
)
from esc_lab.config.prompt import collect_seeker_words, use_template
from esc_lab.config.reward import RATED
from esc_lab.config.schema import use_objective_schedule
from esc_lab.config.search import ASKED, LLMConfig
from esc_lab.config.training import TrainerConfig
from esc_lab.data.corpora import ReadReport, read_splits
from esc_lab.data.strategies import build_inventory
from esc_lab.errors import UserError
from esc_lab.runs.layout import CONFIG, CONTINUATIONS, ESC_PRO, REUSED
from esc_lab.runs.resume import find_differences
from esc_lab.scorers.auto_classifier import use_judge_training
from esc_lab.stages.run_stage import run_substage
from esc_lab.terminal import StepCountdown

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Run the chosen steps in subdirectories of the run directory, each as complete as a run of its own.

    What is trained before a search plays in it. After a search or an extension, training is on what that left; a
    trained classifier judges adherence. Evaluations are on the corpus. With `pipeline.rounds`, search and cso are done
    again with the policy of the round before, from seeds of their own: CSO goes on from it, and it is the reference.

    Raises:
        UserError: there are no dialogues for a round, the run directory has steps of another pipeline, or what a step
            raises.
    """
    root = Path(cfg.run_dir)
    # One device: a second process would start the pipeline over from its first step.
    cfg = replace(cfg, trainer=replace(cfg.trainer, devices="1"))
    stages, rounds, templates = cfg.pipeline.stages, cfg.pipeline.rounds, cfg.pipeline.templates
    retrain = "reward" in stages and cfg.reward.kinds.get(RATED, 0) > 0
    steps = list_steps(stages, rounds, templates, retrain=retrain)
    if rounds > 1:
        _check_seeds(cfg)
        _refuse_other_steps(root, steps)
    data, policy = cfg.data, cfg.checkpoint
    players: dict[str, str] = {}  # what is trained -> the run that trained it last
    metrics: dict[str, float] = {}
    evaluated: list[str] = []
    countdown, kinds = StepCountdown(), [stage_of(step) for step in steps]
    for number, step in enumerate(steps, start=1):
        log.info("step %d of %d: %s%s", number, len(steps), step, countdown.left(kinds[number - 1 :]))
        directory, stage = root / step, stage_of(step)
        if stage == "evaluate":
            own = replace(cfg, stage=stage, checkpoint=policy, init_from=None, resume=None)
            if (template := step.removeprefix(f"{BASE}_")) in templates:
                own = replace(own, prompt=use_template(cfg.prompt, template, cfg.config_dirs))
            evaluated.append(str(directory))
        elif stage == "search":
            own = replace(cfg, stage=stage, llm=_play(cfg.llm, players))
        elif stage == "extend":
            own = replace(cfg, stage=stage)
        elif stage == "compare":
            own = replace(cfg, stage=stage, resume=None, compare=replace(cfg.compare, runs=evaluated))
        else:
            own = _training(replace(cfg, data=data), stage, policy)
        own = _share(own, step, rounds)
        if rounds > 1:
            _refuse_other_settings(replace(own, run_dir=str(directory)))
        started = time.monotonic()
        measured = run_substage(own, directory)
        if not (directory / REUSED).exists():  # else it took no time
            countdown.add(stage, time.monotonic() - started)
        if stage != "compare":
            prefix = f"{step.removeprefix('evaluate_')}/"  # which metrics of some stages have by themselves
            shown = f"{stage}/" if stage in (*ASKED, "classifier") else ""
            metrics |= {f"{prefix}{name.removeprefix(shown)}": value for name, value in measured.items()}
        if stage == "search":
            data = _use_made(cfg.data, directory / ESC_PRO)
        elif stage == "extend":
            data = replace(_use_made(cfg.data, directory / CONTINUATIONS), loss="last_reply")
        elif stage == "classifier":
            cfg = replace(cfg, evaluate=replace(cfg.evaluate, classifier=str(directory)))
        elif stage in POLICY_TRAININGS:
            policy = players["sft"] = str(directory)
        elif stage in PIPELINE_ROLES:
            players[stage] = str(directory)
    return metrics | _sum_budget(metrics, steps)


def _sum_budget(metrics: Mapping[str, float], steps: Sequence[str]) -> dict[str, float]:
    """What all searches and all preference trainings took, by which rounds and a long search can be compared."""
    wanted = {
        "search_trees": ("search", ("trees",)),
        "search_calls": ("search", ("calls", "from_cache")),  # made now, or by an earlier search
        "cso_updates": ("cso", ("train/steps",)),
    }
    if "search" not in map(stage_of, steps):
        return {}
    budget = {
        name: sum(metrics.get(f"{step}/{part}", 0.0) for step in steps if stage_of(step) == stage for part in parts)
        for name, (stage, parts) in wanted.items()
    }
    log.info("in all: %s", ", ".join(f"{value:,.0f} {name.replace('_', ' ')}" for name, value in budget.items()))
    return {f"budget/{name}": value for name, value in budget.items()}


def _training(cfg: Config, stage: str, policy: str | None) -> Config:
    """Of a policy: the first starts from what was evaluated as the base; CSO from SFT, its reference too."""
    cfg = replace(cfg, data=replace(cfg.data, row_tokens=cfg.pipeline.training_tokens or cfg.data.row_tokens))
    if stage == "extra_sft":
        return replace(use_objective_schedule(cfg), stage="sft", checkpoint=None, init_from=policy)
    if stage in POLICY_TRAININGS:
        return replace(cfg, stage=stage, checkpoint=None, init_from=policy)
    own = replace(cfg, checkpoint=None, init_from=None)
    if stage == "reward":
        return replace(own, stage=stage)
    if stage == "classifier":
        # Replies of an extension are few: two epochs, as for a corpus, would hardly teach the classes.
        return replace(use_judge_training(own), trainer=TrainerConfig(max_epochs=cfg.trainer.max_epochs))
    words = collect_seeker_words(cfg.prompt, cfg.llm.wording)
    return replace(own, stage="sft", data=replace(cfg.data, side="seeker"), prompt=replace(cfg.prompt, seeker=words))


def _play(llm: LLMConfig, players: Mapping[str, str]) -> LLMConfig:
    """The roles of a search, those that take what was trained with it, unless the user gave them a checkpoint."""
    for kind, directory in players.items():
        for role, client in PIPELINE_ROLES[kind]:
            played = getattr(llm, role)
            if played.client == client and not played.checkpoint:
                llm = replace(llm, **{role: replace(played, checkpoint=directory)})
    return llm


def _share(cfg: Config, step: str, rounds: int) -> Config:
    """The part of the seeds or of the updates that falls to a round."""
    number = step.rpartition("_")[2]
    if rounds == 1 or not number.isdigit():
        return cfg
    if cfg.stage == "search" and cfg.search.seeds:
        shares = [share_of_round(cfg.search.seeds, each, rounds) for each in range(1, int(number) + 1)]
        return replace(cfg, search=replace(cfg.search, seeds=shares[-1], skip=cfg.search.skip + sum(shares[:-1])))
    if cfg.stage == "cso" and cfg.objective.updates:
        updates = share_of_round(cfg.objective.updates, int(number), rounds)
        return replace(cfg, objective=replace(cfg.objective, updates=updates))
    return cfg


def _check_seeds(cfg: Config) -> None:
    """Whether the last round will have dialogues to search from."""
    splits = read_splits(cfg.data, build_inventory(cfg.inventory), ReadReport(), cfg.config_dirs)
    available, wanted = len(splits.get(cfg.search.split, ())), cfg.search.skip + (cfg.search.seeds or 0)
    if available < wanted:
        what = f"{cfg.pipeline.rounds} rounds want {wanted} dialogues of {cfg.search.split}, and there are {available}"
        fix = f"search.seeds={available - cfg.search.skip} or fewer, or a larger data.limit"
        raise UserError(what, where=f"search.seeds={cfg.search.seeds}", fix=fix)


def _refuse_other_steps(root: Path, steps: Sequence[str]) -> None:
    """Steps of another pipeline would be compared as rounds of this one."""
    others = sorted(path.parent.name for path in root.glob(f"[!.]*/{CONFIG}") if path.parent.name not in steps)
    if others:
        fix = "choose another hydra.run.dir, or take them away"
        raise UserError(f"it has steps of another pipeline: {', '.join(others)}", where=str(root), fix=fix)


def _refuse_other_settings(cfg: Config) -> None:
    """Rounds go on from each other: a step of another pipeline, or of other settings, must not be among them."""
    if names := find_differences(cfg, Path(cfg.run_dir)):
        fix = "give this pipeline the same values, choose another hydra.run.dir, or take the step away"
        raise UserError(f"a step of other settings is there: {', '.join(names)}", where=cfg.run_dir, fix=fix)


def _use_made(data: DataConfig, directory: Path) -> DataConfig:
    """Settings of the data that a step made: its split files, which hold what `data.limit` left."""
    missing = [name for name in ("valid", "test") if not (directory / f"{name}.jsonl").exists()]
    if missing:
        fix = "give the splits val and test more dialogues, or run the stages one by one"
        raise UserError(f"there are no {' and no '.join(missing)} dialogues", where="stage=pipeline", fix=fix)
    return replace(
        data, path=str(directory), format="jsonl", split="published", limit={}, seed_fraction=1.0, inventory=None,
        labels={},
    )  # fmt: skip
