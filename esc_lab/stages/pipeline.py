"""Stage `pipeline`: trainings and a search one after the other, an evaluation of each policy, and their comparison."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from esc_lab.config import Config, DataConfig
from esc_lab.config.prompt import collect_seeker_words
from esc_lab.config.schema import PIPELINE_ROLES, POLICY_TRAININGS, use_objective_schedule
from esc_lab.config.search import LLMConfig
from esc_lab.errors import UserError
from esc_lab.runs.layout import ESC_PRO
from esc_lab.stages.run_stage import run_substage

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Run the chosen steps in subdirectories of the run directory, each as complete as a run of its own.

    What is trained before the search plays in it. After the search, training is on what it found. Evaluations are on
    the corpus.
    """
    root = Path(cfg.run_dir)
    # One device: a second process would start the pipeline over from its first step.
    cfg = replace(cfg, trainer=replace(cfg.trainer, devices="1"))
    corpus, checkpoint = cfg.data, cfg.checkpoint
    metrics: dict[str, float] = {}
    evaluated: list[str] = []
    steps = _list_steps(cfg.pipeline.stages)
    for number, step in enumerate(steps, start=1):
        log.info("step %d of %d: %s", number, len(steps), step)
        directory = root / step
        if step.startswith("evaluate_"):
            own = replace(cfg, stage="evaluate", data=corpus, checkpoint=checkpoint, init_from=None, resume=None)
            measured, prefix = run_substage(own, directory), step.removeprefix("evaluate_")
            metrics |= {f"{prefix}/{name}": value for name, value in measured.items()}
            evaluated.append(str(directory))
        elif step == "search":
            metrics |= run_substage(replace(cfg, stage="search"), directory)
            cfg = replace(cfg, data=_use_search(cfg.data, directory / ESC_PRO))
        elif step == "compare":
            compared = replace(cfg.compare, runs=evaluated)
            run_substage(replace(cfg, stage="compare", resume=None, compare=compared), directory)
        else:
            trained = run_substage(_training(cfg, step, checkpoint), directory)
            metrics |= {f"{step}/{name}": value for name, value in trained.items()}
            checkpoint = str(directory) if step in POLICY_TRAININGS else checkpoint
            cfg = replace(cfg, llm=_play(cfg.llm, step, str(directory)))
    return metrics


def _list_steps(stages: list[str]) -> list[str]:
    """The stages, with an evaluation after each training of a policy, one of the base before, and the comparison.

    >>> _list_steps(["search", "sft"])
    ['search', 'evaluate_base', 'sft', 'evaluate_sft', 'compare']
    """
    steps: list[str] = []
    for stage in stages:
        if stage in POLICY_TRAININGS and "evaluate_base" not in steps:
            steps.append("evaluate_base")
        steps += [stage, f"evaluate_{stage}"] if stage in POLICY_TRAININGS else [stage]
    return [*steps, *(["compare"] if "evaluate_base" in steps else ["evaluate_base", "compare"])]


def _training(cfg: Config, step: str, policy: str | None) -> Config:
    """Of a policy: the first starts from what was evaluated as the base; CSO from SFT, its reference too."""
    if step == "extra_sft":
        return replace(use_objective_schedule(cfg), stage="sft", checkpoint=None, init_from=policy)
    if step in POLICY_TRAININGS:
        return replace(cfg, stage=step, checkpoint=None, init_from=policy)
    own = replace(cfg, checkpoint=None, init_from=None)
    if step == "reward":
        return replace(own, stage="reward")
    words = collect_seeker_words(cfg.prompt, cfg.llm.wording)
    return replace(own, stage="sft", data=replace(cfg.data, side="seeker"), prompt=replace(cfg.prompt, seeker=words))


def _play(llm: LLMConfig, step: str, directory: str) -> LLMConfig:
    """The roles of a search, those that take what the step has trained with it, unless they have a checkpoint."""
    for role, client in PIPELINE_ROLES.get(step, ()):
        played = getattr(llm, role)
        if played.client == client and not played.checkpoint:
            llm = replace(llm, **{role: replace(played, checkpoint=directory)})
    return llm


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
