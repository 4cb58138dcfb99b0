"""Bootstrap over dialogues and seeds, paired permutation test, and Holm's correction.

All runs see the same draws of dialogues, so differences between them are paired. A draw is a weight for each cluster of
dialogues, and a metric a function of sums over clusters: see `esc_lab.comparison.measures`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from esc_lab.evaluation.decisions import FloatArray, IntArray
from esc_lab.seeds import derive_seed

Value = Callable[[FloatArray], FloatArray]
_CHUNK = 2500  # draws at a time: what they need fits into a processor's cache


class Draws:
    """Draws of the clusters of a test set, for sums in float32 and float64.

    Args:
        clusters: number of clusters.
        draws: number of draws.
        seed: of the draws; the same clusters, draws and seed give the same draws.

    Attributes:
        weights: by dtype, [clusters, draws]: how often a draw of the bootstrap has each cluster.
        swaps: by dtype, [clusters, n]: 1 where the two sides of a difference swap a cluster. The first column is all 0,
            the difference as it is. If there are no more than `draws` ways to swap, each of them is there once.
        exact: whether that is so.
    """

    def __init__(self, clusters: int, draws: int, seed: int) -> None:
        chance = np.random.default_rng(derive_seed(seed, "dialogues of the bootstrap"))
        weights = chance.multinomial(clusters, np.full(clusters, 1 / clusters), size=draws).T
        self.exact = clusters <= math.log2(draws)
        if self.exact:
            swaps = np.arange(2**clusters) >> np.arange(clusters)[:, None] & 1
        else:
            chance = np.random.default_rng(derive_seed(seed, "dialogues of the permutation test"))
            drawn = chance.integers(0, 2, size=(clusters, draws), dtype=np.int8)
            swaps = np.concatenate([np.zeros((clusters, 1), np.int8), drawn], axis=1)
        kinds = (np.dtype(np.float32), np.dtype(np.float64))
        self.weights = {kind: np.ascontiguousarray(weights, dtype=kind) for kind in kinds}
        self.swaps = {kind: np.ascontiguousarray(swaps, dtype=kind) for kind in kinds}


def bootstrap(sums: FloatArray, value: Value, draws: Draws) -> FloatArray:
    """The metric of each run in each draw of the dialogues.

    Args:
        sums: [runs, k, clusters].
        value: of totals [k, n] -> [n].
        draws: the draws.

    Returns:
        [runs, draws] float64. One cluster does not say how clusters differ: a run with all others empty is nan.
    """
    weights = draws.weights[sums.dtype]
    found = np.full((len(sums), weights.shape[1]), math.nan)
    known = np.flatnonzero((sums != 0).any(axis=1).sum(axis=1) > 1)
    if len(known):
        # One product for all runs: many small ones make the threads of BLAS wait for one another.
        stacked = sums[known].reshape(-1, sums.shape[2])
        for start in range(0, weights.shape[1], _CHUNK):
            totals = stacked @ weights[:, start : start + _CHUNK]
            parts = totals.reshape(len(known), sums.shape[1], -1)
            found[known, start : start + _CHUNK] = parallel(value, parts)
    return found


def draw_seeds(runs: int, draws: int, seed: int, cell: str) -> IntArray:
    """Which of a cell's runs are in each draw [draws, runs]; drawn with replacement, for each cell on its own."""
    chance = np.random.default_rng(derive_seed(seed, "seeds of the bootstrap", cell))
    return chance.integers(0, runs, size=(draws, runs))


def over_seeds(values: FloatArray, picked: IntArray) -> FloatArray:
    """Means [draws] of the values [runs, draws] of a cell's runs, over the runs picked in each draw [draws, runs]."""
    return np.asarray(np.take_along_axis(values, picked.T, axis=0).mean(axis=0))


def permutation_p(first: FloatArray, second: FloatArray, value: Value, draws: Draws) -> float:
    """Two-sided p of a paired permutation test: is the difference larger than if nothing told the two sides apart?

    The dialogues of both sides swap, by clusters and in all pairs of runs alike; the statistic is the mean over the
    pairs of the metric of one side minus that of the other. Seeds stay as they are, so p is about other dialogues,
    given these trainings. With all ways to swap p is exact (Fisher); with drawn ones the difference as it is counts as
    one of them (Phipson and Smyth 2010). Swaps without a value count as extreme.

    Args:
        first, second: sums [pairs, k, clusters] of the two sides.
        value: of totals [k, n] -> [n].
        draws: the draws.
    """
    swaps = draws.swaps[first.dtype]
    statistic = np.empty(swaps.shape[1])
    moved = (second - first).reshape(-1, first.shape[2])
    for start in range(0, swaps.shape[1], _CHUNK):
        change = (moved @ swaps[:, start : start + _CHUNK]).reshape(*first.shape[:2], -1)
        sides = np.concatenate([first.sum(2, keepdims=True) + change, second.sum(2, keepdims=True) - change])
        values = np.array(parallel(value, sides), dtype=np.float64)
        statistic[start : start + _CHUNK] = np.abs((values[: len(first)] - values[len(first) :]).mean(axis=0))
    if math.isnan(statistic[0]):
        return math.nan
    # Equal statistics differ by rounding, in float32 by some 1e-6.
    below = statistic < statistic[0] - 1e-5 * np.nanmax(statistic)
    return float((~below).mean())


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979) of p-values that are tested together; nan stays nan and is not counted."""
    tested = sorted((one, number) for number, one in enumerate(p) if not math.isnan(one))
    corrected = [math.nan] * len(p)
    least = 0.0
    for rank, (one, number) in enumerate(tested):
        least = max(least, min(1.0, (len(tested) - rank) * one))
        corrected[number] = least
    return corrected


def parallel(task: Callable[[FloatArray], FloatArray], items: Iterable[FloatArray]) -> list[FloatArray]:
    """Results of a task that spends its time in numpy, which lets threads run side by side."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(task, items))
