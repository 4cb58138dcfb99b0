"""Settings of what sets runs side by side: comparisons, and judges of their replies (who judges is `llm.judge`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from esc_lab.config.item import COUNT, LOOKS, item


@dataclass
class CompareConfig:
    runs: list[str] = item(
        [], "what is compared: directories of runs (evaluations, whole talks, trainings), of pipelines, of multiruns"
    )
    wandb: str | None = item(None, "W&B project (entity/project) whose finished evaluations are compared too")
    wandb_groups: list[str] = item([], "only evaluations of these W&B groups; empty = of all")
    baseline: str | None = item(
        None,
        "what differences are to: a method (base, SFT, ...), each model's own, or one row of the table; null = base, "
        "else the first",
    )
    primary: str = item(
        "strategy/Q",
        "the one metric whose p-values need no correction; Holm's is for all others. Of whole talks: converse/relief, "
        "unless it is one of theirs",
    )
    metrics: list[str] | None = item(None, "metrics of the table; null = all that it knows and the runs have")
    bundle: bool = item(
        False,
        "write report.zip too: the report with the trees and heat maps that it links, to be mailed; it holds texts of "
        "the corpus",
    )
    share: bool = item(
        False, "write runs.zip too: the evaluations without texts of the corpus, which others unpack and compare again"
    )


@dataclass
class TalkRubricConfig:
    name: str = item("", "name of the rubric")
    scale: str = item(
        "score",
        "answers to its questions: scores from 0 to 4, or yes and no; talks pass a question of the latter by its "
        "desired answer",
        choices=("score", "yes_no"),
    )
    min_severity: int = item(0, "talks with cards of less severity are not judged; 1 = crises alone", within=(0, 4))
    planted: str = item(
        "",
        "planted good and bad talks that the judge has to tell apart: a set that ships (axes, safety), or a YAML file",
    )
    questions: list[Any] = item(
        [],
        "what is asked of a talk: {name, text, levels: [of 0, ..., of 4]}, of yes_no {name, title, text, desired}",
    )
    wording: dict[str, Any] = item({}, "texts of the request, with {slots}")


@dataclass
class TalkPairsConfig:
    """How whole talks are compared in pairs."""

    name: str = item("hill", "short name, used in run names", affects=LOOKS)
    aspects: list[Any] = item(
        [], "talks: what two supporters are compared in, {name, question} each, such as Hill's three stages of helping"
    )
    wording: dict[str, Any] = item({}, "talks: how two of them are shown to the judge, with {slots}")
    planted: str | None = item(
        None, "talks: YAML file of planted ones that the judge is checked on; null = those that ship, of Hill's stages",
        path=True,
    )  # fmt: skip


@dataclass
class JudgingConfig:
    runs: list[str] = item(
        [],
        "run directories of evaluations of one test set, whose replies are judged; or of stage=converse, whole talks",
    )
    talk_rubric: TalkRubricConfig = field(default_factory=TalkRubricConfig)
    baseline: str | None = item(
        None, "run that the others are compared with in pairs: its directory or name; null = the first"
    )
    decisions: int | None = item(
        100, "decisions whose replies are judged, or talks, drawn with the seed, the same for all runs; null = all",
        within=COUNT,
    )  # fmt: skip
    rubric: bool = item(True, "score each reply on the axes of llm.judge.axes")
    pairwise: bool = item(True, "compare each reply, or talk, with the baseline's, in both orders")
    intensity: bool = item(
        False, "talks: ask the judge, too, how strong the seeker's emotion is after each turn, from 1 to 5"
    )
    question: str = item(
        "help",
        "of pairs: which reply helps the seeker more, or which follows the strategy of its prompt more (adherence), "
        "which the judge is told then",
        choices=("help", "adherence"),
    )
    check: int = item(60, "given replies that each judge has to tell from foils of each kind", within=(2, float("inf")))
    min_auc: float = item(
        0.6,
        "share that a judge has to get right against replies of other dialogues (AUC of the rubric, share of pairs), "
        "with a 95 % interval above one half",
        within=(0.5, 1),
    )
    force: bool = item(
        False,
        "judge although it failed that check, or judged the search that a run was trained on; the results say so",
    )
    draws: int = item(2000, "bootstrap draws of dialogues", within=COUNT)
    talk_pairs: TalkPairsConfig = field(default_factory=TalkPairsConfig)
