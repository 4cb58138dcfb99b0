"""How well given replies are told from foils, beside what words alone tell, with intervals that hold for few dialogues.

Intervals are the jackknife's over dialogues with Student's t, and say no more than so many dialogues can: if all m of
them were told rightly, the share of others that are may be as low as `.025 ** (1 / m)`, and no interval ends
above that. Of the hard kinds one is enough, so their intervals are as wide as their number asks for (Bonferroni): a
judge at the floor passes in 5 % of cases at most (`benchmarks/inference.py --only judges`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from esc_lab.statistics.auc import measure_auc
from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.crossed_effects import estimate_from_left_out
from esc_lab.statistics.intervals import LEVEL, FloatArray, Interval

ERROR = 0.04  # that is aimed at; skewed values make 0.05 of it
MIN_DIALOGUES = 6  # even if all of fewer were told rightly, it might be less than half of others
RISE = 1e-3  # of a score from 0 to 4; less is rounding

Measure: TypeAlias = Callable[[FloatArray, FloatArray, ClusterSample], FloatArray]


@dataclass(frozen=True)
class KindCheck:
    """How a judge tells given replies from foils of a kind.

    Attributes:
        value, floor: AUC or share of the judge, and of the similarity of words.
        above: the judge's less the floor's, or less one half if that is surer to be reached.
        contexts, dialogues: what it was measured on.
    """

    value: Interval
    floor: Interval
    above: Interval
    contexts: int
    dialogues: int


@dataclass(frozen=True)
class ClaimCheck:
    """What a judge makes of a claim to be good in a message: the share of cases in which it likes the reply better.

    `lift` is the mean change of the score; without a value for a judge in pairs.
    """

    share: Interval
    lift: Interval
    contexts: int


def measure_share(given: FloatArray, foil: FloatArray, sample: ClusterSample) -> FloatArray:
    """Share [1 + clusters] of cases in which the given reply scores more, ties half."""
    return _means(np.heaviside(given - foil, 0.5), sample)


def measure_accuracy(good: FloatArray, bad: FloatArray, sample: ClusterSample) -> FloatArray:
    """Share [1 + clusters] of both that are on their side of one half; one half itself is on the bad one's."""
    return _means(((good > 0.5).astype(np.float64) + (bad <= 0.5)) / 2, sample)


def check_kind(
    scores: FloatArray, words: FloatArray, trees: Sequence[str], measure: Measure = measure_auc, hard: int = 1
) -> KindCheck:
    """The check of a kind of foil.

    Args:
        scores: [cases, 2], the judge's of the given replies and of the foils.
        words: [cases, 2], their similarity to the history.
        trees: [cases], the dialogues' trees.
        measure: from the given and the foils' [cases] to the value with each tree left out in turn.
        hard: number of hard kinds that are checked.
    """
    sample = ClusterSample.leave_out(trees)
    value, floor = (measure(of[:, 0], of[:, 1], sample) for of in (scores, words))
    level = max(LEVEL, 1 - 2 * ERROR / max(hard, 1))
    differences = [_difference_interval(value, bound, sample.clusters, level) for bound in (floor, 0 * floor + 0.5)]
    return KindCheck(
        value=_share_interval(value, sample.clusters),
        floor=_share_interval(floor, sample.clusters),
        above=min(differences, key=lambda difference: difference.low),
        contexts=len(trees),
        dialogues=sample.clusters,
    )


def _share_interval(values: FloatArray, clusters: int) -> Interval:
    """Of a share [1 + clusters]. Of few dialogues, however many contexts they have, it is everything."""
    if clusters < MIN_DIALOGUES:
        return Interval(float(values[0]), 0.0, 1.0)
    found, surest = _jackknife_interval(values, LEVEL), surest_share(clusters, LEVEL)
    return Interval(found.value, max(0.0, min(found.low, surest)), min(1.0, max(found.high, 1 - surest)))


def _difference_interval(value: FloatArray, bound: FloatArray, clusters: int, level: float) -> Interval:
    """Of a share less another one; what the first reaches cannot be surer than so many dialogues allow."""
    if clusters < MIN_DIALOGUES:
        return Interval(float(value[0] - bound[0]), -1.0, 1.0)
    found, surest = _jackknife_interval(value - bound, level), surest_share(clusters, level) - float(bound[0])
    return Interval(found.value, max(-1.0, min(found.low, surest)), min(1.0, found.high))


def _jackknife_interval(values: FloatArray, level: float) -> Interval:
    found = estimate_from_left_out(values).interval(level=level)
    return Interval(found.value, *[found.value] * 2) if math.isnan(found.low) else found  # nothing varies


def surest_share(clusters: int, level: float = LEVEL) -> float:
    """The low end of a share that was 1 in so many dialogues (Clopper and Pearson 1934)."""
    return float(((1 - level) / 2) ** (1 / clusters))


def check_claim(scores: FloatArray, trees: Sequence[str]) -> ClaimCheck:
    """From the scores [cases, 2] without and with the claim."""
    change = scores[:, 1] - scores[:, 0]
    sample = ClusterSample.leave_out(trees)
    share, lift = (_means(values, sample) for values in ((change > RISE).astype(np.float64), change))
    return ClaimCheck(_share_interval(share, sample.clusters), estimate_from_left_out(lift).interval(), len(trees))


def check_preferred_claim(outcomes: FloatArray, trees: Sequence[str]) -> ClaimCheck:
    """From the outcomes [cases] for the reply with the claim: 1, 0, or 0.5 for a tie."""
    sample = ClusterSample.leave_out(trees)
    share = _share_interval(_means(outcomes, sample), sample.clusters)
    return ClaimCheck(share, Interval(math.nan, math.nan, math.nan), len(trees))


def _means(values: FloatArray, sample: ClusterSample) -> FloatArray:
    return sample.means(values, np.zeros(len(values), np.intp), 1)[:, 0]
