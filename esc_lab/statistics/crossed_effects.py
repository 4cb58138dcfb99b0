"""Intervals and tests of a metric over training seeds and dialogues together. Closed forms: nothing is drawn.

Runs of several seeds on one test set are a table of two crossed random factors: other seeds and other dialogues would
have given other numbers, and no seed has dialogues of its own. The variance of the mean is that of seeds plus that of
dialogues less what both count, their interaction (two-way clustering: Cameron, Gelbach and Miller 2011; Owen 2007 on
why resampling both factors counts it three times):

    V = V_seeds + max(0, V_dialogues - V_interaction)

V_seeds is the variance over the runs / n. The other two come from pseudo-values, `m theta - (m - 1) theta_(-d)` with
theta_(-d) the metric without dialogue d (the jackknife: Tukey 1958, Efron and Stein 1981): the variance over the m
dialogues of their means over the runs, and that of what neither factor explains.

With shares r of V that come from seeds and from dialogues, the critical value c of |mean| / sqrt(V) is

    c^2 = z^2 + r_seeds^2 (t_seeds^2 - z^2) + r_dialogues^2 (t_dialogues^2 - z^2)

z and t being quantiles of the normal distribution and of Student's with n - 1 and m - 1 degrees of freedom. It is t's
where one factor is all there is, and agrees with Welch's to the first order in 1 / degrees (Welch 1947: an effective
number of degrees, which covers too little at 1 or 2; Banerjee 1960: r in place of r^2, which covers too much). An
interval ends where the test has p = 1 - LEVEL, so the two cannot contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from esc_lab.statistics.intervals import LEVEL, BoolArray, FloatArray, Interval

Value: TypeAlias = Callable[[FloatArray], FloatArray]
_ROUNDING = 1e-12  # relative: a standard error below it is none
_STEPS = 80  # of the bisection for p, in its logarithm
_MIN_P = 1e-16


@dataclass(frozen=True)
class SeedTable:
    """A metric of runs on one test set, a row for each seed.

    Attributes:
        values: [seeds], the metric of each run.
        influence: [seeds, clusters], the metric less what it is without a cluster of dialogues (see `influence`); no
            clusters where it is not known by dialogue.
        present: bool [clusters], those that some run has observations of.
    """

    values: FloatArray
    influence: FloatArray = field(default_factory=lambda: np.empty((1, 0)))
    present: BoolArray = field(default_factory=lambda: np.empty(0, bool))

    @property
    def by_dialogue(self) -> bool:
        """Whether it is known by dialogue."""
        return len(self.present) > 0


def influence(sums: FloatArray, value: Value) -> FloatArray:
    """How a metric changes with each cluster of dialogues: the metric less what it is without the cluster.

    Args:
        sums: [k, clusters].
        value: the metric [..., n] from totals [k, n].

    Returns:
        [..., clusters]; nan where nothing is left to compute it from.
    """
    totals = sums.sum(axis=1, keepdims=True, dtype=np.float64)
    return np.asarray(value(totals) - value(totals - sums))


def estimate_from_left_out(values: FloatArray) -> CrossedMean:
    """Of one run: its metric [1 + clusters] on everything, and with each cluster left out in turn."""
    return estimate_mean(SeedTable(values[:1], values[:1] - values[None, 1:], np.ones(len(values) - 1, bool)))


def subtract(first: SeedTable, second: SeedTable) -> SeedTable:
    """Differences, seed by seed: of runs with the same seeds, or to one run that stands for all of them."""
    values = first.values - second.values
    if not (first.by_dialogue and second.by_dialogue):
        return SeedTable(values)
    return SeedTable(values, first.influence - second.influence, first.present | second.present)


def combine(tables: Sequence[SeedTable], weights: FloatArray) -> SeedTable:
    """Weighted sum of tables [k] with the same seeds, seed by seed."""
    values = np.asarray(sum(w * table.values for w, table in zip(weights, tables, strict=True)))
    if not all(table.by_dialogue for table in tables):
        return SeedTable(values)
    changes = np.asarray(sum(w * table.influence for w, table in zip(weights, tables, strict=True)))
    return SeedTable(values, changes, np.logical_or.reduce([table.present for table in tables]))


def stack(tables: Sequence[SeedTable]) -> SeedTable:
    """The rows of all tables, each a row that others could stand for: of draws that vary as seeds do."""
    values = np.concatenate([table.values for table in tables])
    if not all(table.by_dialogue for table in tables):
        return SeedTable(values)
    changes = np.concatenate([table.influence for table in tables])
    return SeedTable(values, changes, np.logical_or.reduce([table.present for table in tables]))


@dataclass(frozen=True)
class CrossedMean:
    """A mean over seeds and dialogues, or a difference of such means.

    Attributes:
        value: the mean.
        bias: of the value by the jackknife over dialogues; 0 where it is not known.
        variances, degrees: of its parts, seeds and dialogues, where they vary; nan where one does not say how much.
    """

    value: float
    bias: float
    variances: tuple[float, ...]
    degrees: tuple[float, ...]

    def interval(self, *, corrected: bool = False, level: float = LEVEL) -> Interval:
        """The value with its interval; `corrected`: the interval is about the value less its bias.

        It has no ends where nothing varies: that all of a few replies are right does not say that all replies are.
        """
        center, error = self.value - self.bias * corrected, self._standard_error
        varies = error > _ROUNDING * abs(center)
        half = critical_value(1 - level, self.variances, self.degrees) * error if varies else math.nan
        return Interval(self.value, center - half, center + half)

    def p(self, *, corrected: bool = False) -> float:
        """Two-sided p of a test that the mean is 0; nan where its interval has no ends."""
        center, error = abs(self.value - self.bias * corrected), self._standard_error
        if not error > _ROUNDING * center:
            return math.nan
        low, high = math.log(_MIN_P), 0.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            reached = critical_value(math.exp(middle), self.variances, self.degrees) < center / error
            low, high = (low, middle) if reached else (middle, high)
        return math.exp(high)

    @property
    def _standard_error(self) -> float:
        return math.sqrt(sum(self.variances)) if self.variances else math.nan


def critical_value(p: float, variances: Sequence[float], degrees: Sequence[float]) -> float:
    """What |mean| / standard error exceeds with probability p where the mean is 0 (see the head of this file).

    Args:
        variances: of the parts of the mean, not all 0.
        degrees: of freedom of each.
    """
    from scipy.special import ndtri, stdtrit  # type: ignore[import-untyped]  # not all that imports this needs it

    normal, total = float(ndtri(p / 2)) ** 2, sum(variances)
    more = (
        (variance / total) ** 2 * (float(stdtrit(freedom, p / 2)) ** 2 - normal)
        for variance, freedom in zip(variances, degrees, strict=True)
    )
    return math.sqrt(normal + sum(more))


def estimate_mean(first: SeedTable, *others: SeedTable) -> CrossedMean:
    """The mean of a table, less that of each other one, whose seeds are none of the first's."""
    tables = [first, *others]
    value = float(first.values.mean() - sum(other.values.mean() for other in others))
    parts = [_seeds_part(several)] if (several := [table for table in tables if len(table.values) > 1]) else []
    bias = 0.0
    if all(table.by_dialogue for table in tables):
        bias, part = _dialogues_part(tables)
        parts.append(part)
    return CrossedMean(value, bias, tuple(v for v, _ in parts), tuple(d for _, d in parts))


def _seeds_part(tables: Sequence[SeedTable]) -> tuple[float, float]:
    """Variance by seeds, and its degrees of freedom: n - 1 of one table, Welch's of several."""
    variances = [float(table.values.var(ddof=1)) / len(table.values) for table in tables]
    squares = sum(v**2 / (len(table.values) - 1) for v, table in zip(variances, tables, strict=True))
    total = sum(variances)
    return total, total**2 / squares if squares else 1.0


def _dialogues_part(tables: Sequence[SeedTable]) -> tuple[float, tuple[float, float]]:
    """Bias by the jackknife; variance by dialogues less the interaction, and its degrees of freedom."""
    present = np.any([table.present for table in tables], axis=0)
    count = int(present.sum())
    if count < 2:
        return 0.0, (math.nan, 0.0)
    first, *others = pseudo = [(count - 1) * table.influence[:, present] for table in tables]
    of_dialogue = first.mean(axis=0) - sum(rows.mean(axis=0) for rows in others)
    variance = float(of_dialogue.var(ddof=1)) / count - sum(map(_interaction, pseudo))
    known = not math.isnan(variance)
    return -float(of_dialogue.mean()), (max(variance, 0.0) if known else math.nan, count - 1.0)


def _interaction(pseudo: FloatArray) -> float:
    """Variance of the mean of pseudo-values [seeds, clusters] by what neither factor explains; 0 of one seed."""
    seeds, clusters = pseudo.shape
    if seeds < 2:
        return 0.0
    rest = pseudo - pseudo.mean(axis=0) - pseudo.mean(axis=1, keepdims=True) + pseudo.mean()
    return float((rest**2).sum() / ((seeds - 1) * (clusters - 1) * seeds * clusters))
