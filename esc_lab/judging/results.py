"""What judgements say of a run: rubric scores, and pairs asked in both orders with the win rate, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from esc_lab.search.role_prompts import Axis
from esc_lab.search.role_scores import score_turn
from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.intervals import Interval, percentile_interval
from esc_lab.statistics.length_control import length_controlled_win_rate

OVERALL = "overall"
Scores: TypeAlias = Mapping[str, float]  # of a reply, by axis


@dataclass(frozen=True)
class RubricResult:
    """Means of a run's scores on each axis and of the weighted mean over the axes (`overall`), from 0 to 4.

    `replies` were scored; to `missing` ones the judge gave no usable score.
    """

    means: Mapping[str, Interval]
    replies: int
    missing: int


def summarize_rubric(scores: Sequence[Scores | None], axes: Sequence[Axis], sample: ClusterSample) -> RubricResult:
    """The result from the scores [decisions] of a run's replies; None where the judge gave none."""
    columns = {axis.name: [math.nan if reply is None else reply[axis.name] for reply in scores] for axis in axes}
    columns[OVERALL] = [math.nan if reply is None else score_turn(reply, axes) for reply in scores]
    missing = sum(reply is None for reply in scores)
    means = {name: sample.mean(np.array(values)) for name, values in columns.items()}
    return RubricResult(means, len(scores) - missing, missing)


@dataclass(frozen=True)
class Pair:
    """What the judge said of a run's reply and the baseline's.

    Attributes:
        first, second: probability that the run's reply is the better one, where it stands first and where it stands
            second; 0 or 1 if the judge answers in words. None if it gave no usable answer.
        difference: length of the run's reply minus that of the baseline's, in characters.
        identical: the texts are the same, so that nobody was asked: a tie.
    """

    first: float | None
    second: float | None
    difference: int
    identical: bool = False

    @property
    def consistent(self) -> bool | None:
        """Whether both orders name the same reply; None where that is not known."""
        if self.first is None or self.second is None:
            return None
        return (self.first - 0.5) * (self.second - 0.5) > 0

    @property
    def outcome(self) -> float | None:
        """1: the run's reply is better in both orders; 0: the baseline's is; 0.5: a tie, the orders disagree.

        None where an order has no answer.
        """
        if self.identical:
            return 0.5
        if self.first is None or self.second is None:
            return None
        return float(self.first > 0.5) if self.consistent else 0.5


@dataclass(frozen=True)
class PairwiseResult:
    """Pairs of a run against the baseline.

    Attributes:
        win_rate: share of pairs that the run wins, ties half.
        length_controlled: the win rate that the judge would have given at equal length (see `length_control`).
        length_effect: phi there; above 0 if it prefers the longer reply.
        consistency: share of the asked pairs on which both orders agree; nan if none was asked.
        identical: of the ties, pairs with the same text.
        missing: pairs without a usable answer in both orders; they are left out of all else.
    """

    win_rate: Interval
    length_controlled: Interval
    length_effect: float
    consistency: Interval
    wins: int
    ties: int
    losses: int
    identical: int
    missing: int


def summarize_pairs(pairs: Sequence[Pair], sample: ClusterSample) -> PairwiseResult:
    """The result from the pairs [decisions]."""
    outcome = np.array([math.nan if pair.outcome is None else pair.outcome for pair in pairs])
    agreeing = np.array([math.nan if pair.consistent is None else float(pair.consistent) for pair in pairs])
    known = ~np.isnan(outcome)
    win_rate = sample.mean(outcome)
    difference = np.array([pair.difference for pair in pairs], dtype=np.float64)
    weights = sample.weights[:, sample.cluster[known]]
    controlled, effect = length_controlled_win_rate(outcome[known], difference[known], weights)
    if len(np.unique(sample.cluster[known])) < 2:
        controlled[1:] = math.nan
    return PairwiseResult(
        win_rate,
        percentile_interval(controlled[0], controlled[1:]),
        float(effect[0]),
        sample.mean(agreeing),
        wins=int((outcome == 1).sum()),
        ties=int((outcome == 0.5).sum()),
        losses=int((outcome == 0).sum()),
        identical=sum(pair.identical for pair in pairs),
        missing=int((~known).sum()),
    )
