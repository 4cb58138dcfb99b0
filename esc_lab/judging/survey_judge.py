"""Whether a judge says of replies what people say: a run of stage `judge` beside the ratings of a survey."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esc_lab.artifacts import READ_ERRORS
from esc_lab.config.survey import SurveyConfig
from esc_lab.errors import UserError
from esc_lab.judging.survey_answers import Rating
from esc_lab.judging.survey_items import SurveyItem
from esc_lab.judging.survey_key import SurveyKey
from esc_lab.judging.survey_results import others_means, sample_ratings
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
        people: the same of each rater and the mean of the others, what agreement could reach.
        scored: items that the judge scored by its rubric.
        correlation: of these scores (of pairs the second's less the first's) with the mean ratings.
    """

    question: str
    pairs: int
    agreement: Interval
    people: Interval
    scored: int
    correlation: Interval


class JudgedItems:
    """What a judge said of the items of a survey, where it judged the very same replies.

    Args:
        directory: of the run of stage `judge`.

    Attributes:
        preference: by item, 1 if it prefers the second reply, -1 the first, 0 for a tie.
        score: by item, the overall score, of pairs the second's less the first's.

    Raises:
        UserError: it is no finished run of a judge, or it judged none of the items.
    """

    def __init__(self, directory: Path, key: SurveyKey) -> None:
        try:
            record = json.loads((directory / JUDGE_RESULT).read_text(encoding="utf-8"))
            lines = [json.loads(line) for line in (directory / JUDGEMENTS).read_bytes().splitlines()]
            by_predictions = {run: label for label, run in key.runs.items()}
            labels = {run["label"]: by_predictions.get(run["predictions"]) for run in record["runs"]}
            self._outcomes: dict[tuple[object, ...], float] = {}
            self._scores: dict[tuple[object, ...], float] = {}
            for line in lines:
                place = (line["dialogue"], line["turn"])
                reply = (labels[line["run"]], line["reply"])
                if line["kind"] == "rubric" and line["overall"] is not None:
                    self._scores[*place, *reply] = float(line["overall"])
                elif line["kind"] == "pairwise" and line["outcome"] is not None:
                    other = (labels[line["baseline"]], line["baseline_reply"])
                    outcome = 2 * float(line["outcome"]) - 1
                    self._outcomes[*place, *other, *reply] = outcome
                    self._outcomes[*place, *reply, *other] = -outcome
        except READ_ERRORS as error:
            message = f"no finished run of the judge: {type(error).__name__} {error}"
            fix = "name the directory of a finished run of stage=judge"
            raise UserError(message, where=f"survey.judge={directory}", fix=fix) from error
        self.preference = self._look_up(key, self._outcomes, whole=True)
        self.score = self._look_up(key, self._scores, whole=False)
        if not (self.preference or self.score):
            fix = "judge the evaluations that the survey was made from, with judge.decisions=null"
            raise UserError("it judged none of the survey's replies", where=f"survey.judge={directory}", fix=fix)

    def _look_up(self, key: SurveyKey, known: Mapping[tuple[object, ...], float], *, whole: bool) -> dict[str, float]:
        found = {}
        for item in key.items.values():
            replies = [(reply.run, reply.text) for reply in item.replies]
            if whole:
                places = [(item.dialogue, item.turn, *(part for reply in replies for part in reply))]
            else:
                places = [(item.dialogue, item.turn, *reply) for reply in replies]
            if all(place in known for place in places):
                values = [known[place] for place in places]
                found[item.name] = values[-1] - (values[0] if len(values) > 1 else 0)
        return found


def compare_judge(
    question: str, ratings: Sequence[Rating], judged: JudgedItems, settings: SurveyConfig, seed: int
) -> JudgeAgreement:
    """How far the judge agrees with the ratings of a question."""
    items, means = mean_ratings(ratings)
    known = (judged.preference, judged.score)
    preference, score = (np.array([of_item.get(item.name, math.nan) for item in items]) for of_item in known)
    values = np.array([rating.value for rating in ratings], dtype=np.float64)
    people = sample_ratings(ratings, settings, seed).mean(_agree(values, others_means(ratings)))
    agreement = ClusterSample([item.tree for item in items], settings.draws, seed).mean(_agree(preference, means))
    scored = np.flatnonzero(~np.isnan(score))
    correlation = Interval(math.nan, math.nan, math.nan)
    if len(scored) > 2:
        sample = ClusterSample([items[number].tree for number in scored], settings.draws, seed)
        correlation = partial_correlation(score[scored], means[scored], np.empty((len(scored), 0)), sample)
    compared = int((~np.isnan(preference)).sum())
    return JudgeAgreement(question, compared, agreement, people, len(scored), correlation)


def mean_ratings(ratings: Sequence[Rating]) -> tuple[list[SurveyItem], FloatArray]:
    """The rated items and the mean rating [items] of each."""
    by_item: dict[str, list[Rating]] = defaultdict(list)
    for rating in ratings:
        by_item[rating.item.name].append(rating)
    means = [sum(rating.value for rating in own) / len(own) for own in by_item.values()]
    return [own[0].item for own in by_item.values()], np.array(means)


def _agree(one: FloatArray, other: FloatArray) -> FloatArray:
    """1 where two preferences [n] are for the same reply or both a tie, 0.5 where one is a tie; nan where unknown."""
    same = 1 - np.abs(np.sign(one) - np.sign(other)) / 2
    return np.where(np.isnan(one + other), math.nan, same)
