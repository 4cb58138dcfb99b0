"""Settings of surveys: what people are asked about replies, who is asked what, and how their answers are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from esc_lab.config.item import COUNT, FROM_ZERO, SHARE, item, results, section


@dataclass
class FormConfig:
    name: str = item("", "name of the form")
    title: str = item("", "heading of the questionnaire")
    instructions: str = item("", "what raters read first")
    unit: str = item(
        "pair",
        "what a question is about: a pair of replies, on a scale from -reach (clearly A) to reach (clearly B), or a "
        "single reply, from 1 to reach",
        choices=("pair", "reply"),
    )
    reach: int = item(4, "the end of the scale", within=(1, 10))
    strategy: bool = item(
        False, "raters see the strategy that the replies were to follow; pairs are then of replies to the same one"
    )
    questions: list[Any] = item([], "what is asked, each {name, text, low, high}: low and high name the scale's ends")


@dataclass
class SurveyConfig:
    runs: list[str] = item(
        [], "run directories of evaluations of one test set, about whose replies questionnaires are made"
    )
    form: FormConfig = section(FormConfig, results("survey"))
    items: int | None = item(
        60, "pairs or replies that are asked about, balanced over strategies and runs; null = all", within=COUNT
    )
    pairs: str = item("all", "which runs meet: all of them, or each the baseline", choices=("all", "baseline"))
    baseline: str | None = item(None, "survey.pairs=baseline: its directory or name; null = the first run")
    raters: int = item(2, "questionnaires that are made, one a rater", within=COUNT)
    ratings: int | None = item(None, "raters of each item; null = all of them", within=COUNT)
    checks: int = item(0, "attention checks in each questionnaire: items that say what to choose", within=FROM_ZERO)
    repeats: int = item(0, "items that each questionnaire asks about a second time, sides exchanged", within=FROM_ZERO)
    sra: str = item("paper/name", "definition and span of the SRA that ratings are correlated with")
    directory: str | None = item(
        None, "run directory of the stage=survey that made the questionnaires whose results are read", path=True
    )
    results: list[str] = item(
        [],
        "what raters gave back: files of the questionnaires, or JSON exports of Label Studio; without survey.directory "
        "an export of the published study's form",
    )
    judge: str | None = item(None, "run directory of stage=judge to compare with what people say", path=True)
    min_checks: float = item(
        0.75, "share of attention checks that a rater has to pass; the ratings of others are set aside", within=SHARE
    )
    trim: float = item(
        0.01, "trimmed correlations leave out SRA differences below this quantile and above its opposite",
        within=(0, 0.4),
    )  # fmt: skip
    draws: int = item(1000, "bootstrap draws of dialogues", within=COUNT)
    question: str | None = item(None, "question whose answers become preference pairs; null = the first of the form")
    min_margin: float = item(
        0.5, "least mean preference, or difference of mean scores, for a preference pair", within=FROM_ZERO
    )
