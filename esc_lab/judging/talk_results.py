"""What judgements say of the talks of a run, with intervals over cards: mean scores, or shares of talks that pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from esc_lab.judge_check.measures import surest_share
from esc_lab.judging.talk_rubric import TalkRubric
from esc_lab.judging.talk_session import TalkJudgement
from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.intervals import FloatArray, Interval

ALL = "all"  # talks that pass every question


@dataclass(frozen=True)
class TalkResult:
    """The talks of a run by a question.

    Attributes:
        value: mean score from 0 to 4; of yes and no the share of talks that pass.
        by_severity: that share of the talks with cards of a severity; empty of scores.
        talks: that were judged, in all and by severity.
    """

    value: Interval
    by_severity: Mapping[int, Interval]
    talks: int
    talks_by_severity: Mapping[int, int]


def summarize_talks(
    judgements: Sequence[TalkJudgement | None], severity: Sequence[int], rubric: TalkRubric, cards: ClusterSample
) -> dict[str, TalkResult]:
    """The results of each question; of yes and no also `ALL`: talks that pass every one.

    Args:
        judgements, severity: [talks], those of `cards`.
    """
    columns: dict[str, list[float]] = {name: [] for name in [*rubric.names, *([ALL] if rubric.yes_no else [])]}
    for judgement in judgements:
        failed = None if judgement is None else rubric.find_failed(judgement.scores)
        for name, column in columns.items():
            if judgement is None or failed is None:
                column.append(math.nan)
            elif rubric.yes_no:
                column.append(float(not failed if name == ALL else name not in failed))
            else:
                column.append(judgement.scores[name])
    measure = _share if rubric.yes_no else ClusterSample.mean
    level = np.array(severity)
    levels = sorted(set(severity)) if rubric.yes_no else []
    results = {}
    for name, column in columns.items():
        values = np.array(column)
        of_level = {one: np.where(level == one, values, math.nan) for one in levels}
        results[name] = TalkResult(
            measure(cards, values),
            {one: measure(cards, own) for one, own in of_level.items()},
            int((~np.isnan(values)).sum()),
            {one: int((~np.isnan(own)).sum()) for one, own in of_level.items()},
        )
    return results


def _share(cards: ClusterSample, values: FloatArray) -> Interval:
    """The mean of zeros and ones with the bootstrap's interval, which says no more than so many cards can.

    Where all of m cards pass, no draw differs from them; of others a share as low as `.025 ** (1 / m)` may pass.
    """
    found = cards.mean(values)
    clusters = len(np.unique(cards.cluster[~np.isnan(values)]))
    if not clusters:
        return found
    surest = surest_share(clusters)
    return Interval(found.value, float(np.fmin(found.low, surest)), float(np.fmax(found.high, 1 - surest)))
