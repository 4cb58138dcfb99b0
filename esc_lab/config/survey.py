"""Settings of surveys: what people are asked about replies, who is asked what, and how their answers are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

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
    ties: bool = item(
        False,
        "replies with less than that between them are kept too, with equal values: ties of reward.kinds rated, which "
        "pairs of stage=cso leave out",
    )


def survey_problems(cfg: DictConfig) -> Iterator[str]:
    """What is wrong with the settings of a survey."""
    settings = cfg.survey
    ways = "survey.runs=[outputs/...,outputs/...] makes questionnaires, survey.results=[FILE,FILE] reads what came back"
    if not (settings.runs or settings.results):
        yield f"stage=survey needs run directories of evaluations, or what raters gave back. Fix: {ways}"
    elif settings.runs and settings.results:
        yield f"survey.runs and survey.results are both given. Fix: {ways}"
    for run in (run for run in settings.runs if not Path(run).is_dir()):
        yield f"survey.runs: {run}: no such directory. Fix: name run directories of stage=evaluate"
    for file in (file for file in settings.results if not Path(file).is_file()):
        yield f"survey.results: {file}: no such file. Fix: name files that raters gave back"
    if settings.ratings is not None and settings.ratings > settings.raters:
        fix = "lower it, or raise survey.raters"
        yield f"survey.ratings={settings.ratings}: there are {settings.raters} raters. Fix: {fix}"
    if settings.judge and not settings.directory:
        reason = "which replies it judged is known with the key of a survey alone"
        yield f"survey.judge={settings.judge}: {reason}. Fix: survey.directory=<run directory of the survey>"
