"""Settings of pipelines, and the steps that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from esc_lab.config.item import COUNT, item

BASE = "evaluate_base"
POLICY_TRAININGS = ("sft", "extra_sft", "cso")  # steps of a pipeline whose models are evaluated and compared
# What a pipeline can train before its search -> the roles that it plays there, each with the client that takes it.
PIPELINE_ROLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "sft": (("supporter", "local"), ("strategist", "policy")),
    "seeker": (("seeker", "local"),),
    "reward": (("judge", "reward"),),
}


@dataclass
class PipelineConfig:
    stages: list[str] = item(
        ["search", "sft", "cso"],
        "what is done before the comparison: reward, sft, seeker train who plays in a search after them; sft and cso "
        "train on what a search before them found, or else on data as it is, with its own rejected replies; extra_sft, "
        "the control of cso, goes on from sft for objective.updates steps at cso's learning rate. extend continues "
        "dialogues, for sft and classifier to train on the replies; classifier trains who judges the evaluations",
    )
    templates: list[str] = item(
        [], "prompt layouts that the base model is evaluated under, one after the other; empty = that of prompt.eval"
    )
    training_tokens: int | None = item(
        None,
        "data.row_tokens of its trainings, so that they may read less of long talks than evaluations; null = the same",
        within=COUNT,
    )
    rounds: int = item(
        1,
        "how often search and cso are done, each time with the policy of the round before; rounds share search.seeds "
        "and objective.updates. With kind rated among reward.kinds the reward model is trained anew between them",
        within=COUNT,
    )


def list_steps(
    stages: Sequence[str], rounds: int = 1, templates: Sequence[str] = (), *, retrain: bool = False
) -> list[str]:
    """The stages, with an evaluation after each training of a policy, one of the base before, and the comparison.

    Args:
        rounds: how often search and cso are done; where more than once, their names end in the number of the round.
        templates: layouts, for each of which the base has an evaluation, whose name ends in it.
        retrain: train the reward model between rounds.

    >>> list_steps(["search", "sft"])
    ['search', 'evaluate_base', 'sft', 'evaluate_sft', 'compare']
    >>> list_steps(["sft", "search", "cso"], rounds=2)[2:]
    ['evaluate_sft', 'search_1', 'cso_1', 'evaluate_cso_1', 'search_2', 'cso_2', 'evaluate_cso_2', 'compare']
    """
    if rounds > 1:
        loop = ["search", "cso", *(["reward"] if retrain else [])]
        numbered = [f"{stage}_{number}" for number in range(1, rounds + 1) for stage in loop]
        stages = [*(stage for stage in stages if stage not in ("search", "cso")), *numbered]
        stages = stages[:-1] if retrain else stages  # nobody would play with it
    steps: list[str] = []
    base = [f"{BASE}_{template}" for template in templates] or [BASE]
    for stage in stages:
        trains = stage_of(stage) in POLICY_TRAININGS
        if trains and base[0] not in steps:
            steps += base
        steps += [stage, f"evaluate_{stage}"] if trains else [stage]
    return [*steps, *([] if base[0] in steps else base), "compare"]


def stage_of(step: str) -> str:
    """What a step does: a stage of the pipeline without the number of its round, or `evaluate`.

    >>> stage_of("cso_2"), stage_of("extra_sft"), stage_of("evaluate_base_c1_hf")
    ('cso', 'extra_sft', 'evaluate')
    """
    if step.startswith("evaluate_"):
        return "evaluate"
    stage, _, number = step.rpartition("_")
    return stage if number.isdigit() else step


def share_of_round(total: int, number: int, rounds: int) -> int:
    """How many of all fall to a round, numbered from 1; the first ones have one more where they are not equal.

    >>> [share_of_round(8, number, 3) for number in (1, 2, 3)]
    [3, 3, 2]
    """
    return total // rounds + (number <= total % rounds)
