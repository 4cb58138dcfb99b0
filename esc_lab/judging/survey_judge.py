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

_SAME = {"help": "helpfulness", "adherence": "adherence"}  # the question of conf/form/pairs.yaml that a judge's is


@dataclass(frozen=True)
class JudgeAgreement:
    """A judge and people on the same replies.

    Attributes:
        asked: what the judge was asked of pairs, as `judge.question` has it.
        pairs: items that the judge compared too; 0 if another question of the survey asks what it was asked.
        agreement: share of these on which it prefers what all raters prefer on average; a tie of one side counts half.
        others: of the ratings of these items, the share on whose items it prefers what the other raters prefer on
            average.
        people: of the same ratings, the share that prefer what the other raters prefer: what one more person reaches.
        scored: items that the judge scored by its rubric.
        correlation: of these scores (of pairs the second's less the first's) with the mean ratings.
    """

    question: str
    asked: str
    pairs: int
    agreement: Interval
    others: Interval
    people: Interval
    scored: int
    correlation: Interval


@dataclass(frozen=True)
class JudgedItems:
    """What a judge said of the items of a survey, where it judged the very same replies.

    Attributes:
        preference: by item, 1 if it prefers the second reply, -1 the first, 0 for a tie.
        score: by item, the overall score, of pairs the second's less the first's.
        asked: what it was asked of pairs.
        same: the question of the survey that asks the same; None if none does.
    """

    preference: dict[str, float]
    score: dict[str, float]
    asked: str
    same: str | None


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
        asked = str(record.get("question", "help"))
        by_predictions = {run: label for label, run in key.runs.items()}
        labels = {run["label"]: by_predictions.get(run["predictions"]) for run in record["runs"]}
        for line in map(json.loads, (directory / JUDGEMENTS).read_bytes().splitlines()):
            place, reply = (line["dialogue"], line["turn"]), (labels[line["run"]], line["reply"])
            if line["kind"] == "rubric" and line["overall"] is not None:
                scores[place, reply] = float(line["overall"])
            elif line["kind"] == "pairwise" and line["outcome"] is not None:
                other = (labels[line["baseline"]], line["baseline_reply"])
                to = line["strategy"] if asked == "adherence" else None  # equal replies may be to several
                outcomes[place, to, other, reply] = 2 * float(line["outcome"]) - 1
                outcomes[place, to, reply, other] = -outcomes[place, to, other, reply]
    except READ_ERRORS as error:
        message = f"no finished run of the judge: {type(error).__name__} {error}"
        raise UserError(message, where=where, fix="name the directory of a finished run of stage=judge") from error
    same = _SAME.get(asked)
    judged = JudgedItems({}, {}, asked, same if same in key.questions else None)
    for item in key.items.values():
        place, replies = (item.dialogue, item.turn), [(reply.run, reply.text) for reply in item.replies]
        to = item.strategy if asked == "adherence" else None
        if (place, to, *replies) in outcomes:
            judged.preference[item.name] = outcomes[place, to, *replies]
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
    known = (judged.preference if judged.same in (None, question) else {}, judged.score)
    preference, score = (np.array([of_item.get(item.name, math.nan) for item in items]) for of_item in known)
    judge = preference[number_items(ratings)]  # of each rating's item
    values, others = np.array([rating.value for rating in ratings], dtype=np.float64), others_means(ratings)
    by_rating = sample_ratings(ratings, settings, seed)
    sample = ClusterSample([item.tree for item in items], settings.draws, seed)
    return JudgeAgreement(
        question,
        judged.asked,
        pairs=int((~np.isnan(preference)).sum()),
        agreement=sample.mean(_agree(preference, means)),
        others=by_rating.mean(_agree(judge, others)),
        people=by_rating.mean(np.where(np.isnan(judge), math.nan, _agree(values, others))),
        scored=int((~np.isnan(score)).sum()),
        correlation=partial_correlation(score, means, sample),
    )


def mean_ratings(ratings: Sequence[Rating]) -> tuple[list[SurveyItem], FloatArray]:
    """The rated items and the mean rating [items] of each."""
    unit = number_items(ratings)
    means = np.bincount(unit, [rating.value for rating in ratings]) / np.bincount(unit)
    return [ratings[row].item for row in np.unique(unit, return_index=True)[1]], means


def _agree(one: FloatArray, other: FloatArray) -> FloatArray:
    """1 where two preferences [n] are for the same reply or both a tie, 0.5 where one is a tie; nan where unknown."""
    same = 1 - np.abs(np.sign(one) - np.sign(other)) / 2
    return np.where(np.isnan(one + other), math.nan, same)
