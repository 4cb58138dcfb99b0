"""Whether a judge says of replies what people say: a run of stage `judge` beside the ratings of a survey."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esc_lab.artifacts import READ_ERRORS
from esc_lab.config.survey import SurveyConfig
from esc_lab.errors import UserError
from esc_lab.judging.survey_answers import Rating
from esc_lab.judging.survey_items import SurveyItem
from esc_lab.judging.survey_key import SurveyKey
from esc_lab.judging.survey_results import number_items, others_means, sample_ratings
from esc_lab.runs.layout import JUDGE_RESULT, JUDGEMENTS
from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.intervals import FloatArray, Interval
from esc_lab.statistics.partial_correlation import partial_correlation


@dataclass(frozen=True)
class JudgeAgreement:
    """A judge and people on the same replies.

    Attributes:
        pairs: items that the judge compared too.
        agreement: share of these on which it prefers what people prefer on average; a tie of one side counts half.
        people: the same of each rater and the mean of the others, on the same items: what agreement could reach.
        scored: items that the judge scored by its rubric.
        correlation: of these scores (of pairs the second's less the first's) with the mean ratings.
    """

    question: str
    pairs: int
    agreement: Interval
    people: Interval
    scored: int
    correlation: Interval


@dataclass(frozen=True)
class JudgedItems:
    """What a judge said of the items of a survey, where it judged the very same replies.

    Attributes:
        preference: by item, 1 if it prefers the second reply, -1 the first, 0 for a tie.
        score: by item, the overall score, of pairs the second's less the first's.
    """

    preference: dict[str, float]
    score: dict[str, float]


def read_judged_items(directory: Path, key: SurveyKey) -> JudgedItems:
    """What the judge in a run directory said.

    Raises:
        UserError: it is no finished run of a judge, or it judged none of the items.
    """
    where = f"survey.judge={directory}"
    outcomes: dict[tuple[object, ...], float] = {}
    scores: dict[tuple[object, ...], float] = {}
    try:
        record = json.loads((directory / JUDGE_RESULT).read_text(encoding="utf-8"))
        by_predictions = {run: label for label, run in key.runs.items()}
        labels = {run["label"]: by_predictions.get(run["predictions"]) for run in record["runs"]}
        for line in map(json.loads, (directory / JUDGEMENTS).read_bytes().splitlines()):
            place, reply = (line["dialogue"], line["turn"]), (labels[line["run"]], line["reply"])
            if line["kind"] == "rubric" and line["overall"] is not None:
                scores[place, reply] = float(line["overall"])
            elif line["kind"] == "pairwise" and line["outcome"] is not None:
                other = (labels[line["baseline"]], line["baseline_reply"])
                outcomes[place, other, reply] = 2 * float(line["outcome"]) - 1
                outcomes[place, reply, other] = -outcomes[place, other, reply]
    except READ_ERRORS as error:
        message = f"no finished run of the judge: {type(error).__name__} {error}"
        raise UserError(message, where=where, fix="name the directory of a finished run of stage=judge") from error
    judged = JudgedItems({}, {})
    for item in key.items.values():
        place, replies = (item.dialogue, item.turn), [(reply.run, reply.text) for reply in item.replies]
        if (place, *replies) in outcomes:
            judged.preference[item.name] = outcomes[place, *replies]
        own = [scores[place, reply] for reply in replies if (place, reply) in scores]
        if len(own) == len(replies):
            judged.score[item.name] = own[-1] - (own[0] if len(own) > 1 else 0)
    if not (judged.preference or judged.score):
        fix = "judge the evaluations that the survey was made from, with judge.decisions=null"
        raise UserError("it judged none of the survey's replies", where=where, fix=fix)
    return judged


def compare_judge(
    question: str, ratings: Sequence[Rating], judged: JudgedItems, settings: SurveyConfig, seed: int
) -> JudgeAgreement:
    """How far the judge agrees with the ratings of a question."""
    items, means = mean_ratings(ratings)
    known = (judged.preference, judged.score)
    preference, score = (np.array([of_item.get(item.name, math.nan) for item in items]) for of_item in known)
    values = np.array([r.value if r.item.name in judged.preference else math.nan for r in ratings])
    people = sample_ratings(ratings, settings, seed).mean(_agree(values, others_means(ratings)))
    sample = ClusterSample([item.tree for item in items], settings.draws, seed)
    compared, scored = (int((~np.isnan(numbers)).sum()) for numbers in (preference, score))
    agreement, correlation = sample.mean(_agree(preference, means)), partial_correlation(score, means, sample)
    return JudgeAgreement(question, compared, agreement, people, scored, correlation)


def mean_ratings(ratings: Sequence[Rating]) -> tuple[list[SurveyItem], FloatArray]:
    """The rated items and the mean rating [items] of each."""
    unit = number_items(ratings)
    means = np.bincount(unit, [rating.value for rating in ratings]) / np.bincount(unit)
    return [ratings[row].item for row in np.unique(unit, return_index=True)[1]], means


def _agree(one: FloatArray, other: FloatArray) -> FloatArray:
    """1 where two preferences [n] are for the same reply or both a tie, 0.5 where one is a tie; nan where unknown."""
    same = 1 - np.abs(np.sign(one) - np.sign(other)) / 2
    return np.where(np.isnan(one + other), math.nan, same)
