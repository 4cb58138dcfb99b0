"""Paired permutation test over dialogues, and Holm's correction.

Written here, since `scipy.stats.permutation_test` swaps observations one by one and knows no sums over clusters, and
importing it takes longer than a small comparison; tests hold the results to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from esc_lab.statistics.bootstrap import CHUNK, Draws, Value, map_in_threads
from esc_lab.statistics.intervals import FloatArray


def permutation_p(first: FloatArray, second: FloatArray, value: Value, draws: Draws) -> float:
    """Two-sided p of a paired permutation test: is the difference larger than if the two sides were interchangeable?

    The dialogues of both sides swap, by clusters and in all pairs of runs alike; the statistic is the mean over the
    pairs of the metric of one side minus that of the other. Seeds stay as they are, so p is about other dialogues,
    given these trainings. With all ways to swap p is exact (Fisher); with drawn ones the difference as it is counts as
    one of them (Phipson and Smyth 2010). Swaps without a value count as extreme.

    Args:
        first, second: sums [pairs, k, clusters] of the two sides.
        value: of totals [k, n] -> [n].
        draws: of the clusters.
    """
    swaps = draws.swaps[first.dtype]
    statistic = np.empty(swaps.shape[1])
    moved = (second - first).reshape(-1, first.shape[2])
    for start in range(0, swaps.shape[1], CHUNK):
        change = (moved @ swaps[:, start : start + CHUNK]).reshape(*first.shape[:2], -1)
        sides = np.concatenate([first.sum(2, keepdims=True) + change, second.sum(2, keepdims=True) - change])
        values = np.array(map_in_threads(value, sides), dtype=np.float64)
        statistic[start : start + CHUNK] = np.abs((values[: len(first)] - values[len(first) :]).mean(axis=0))
    if math.isnan(statistic[0]):
        return math.nan
    # Equal statistics differ by rounding, in float32 by some 1e-6.
    below = statistic < statistic[0] - 1e-5 * np.nanmax(statistic)
    return float((~below).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979) of p-values that are tested together; nan stays nan and is not counted."""
    tested = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[place] = largest
    return corrected
