"""Draws of dialogues and seeds, and the bootstrap over them.

All runs see the same draws of dialogues, so differences between them are paired. A draw is a weight for each cluster of
dialogues (how often it has it), and a statistic a function of sums over clusters: all draws are one matrix product.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np

from esc_lab.seeds import derive_seed
from esc_lab.statistics.intervals import FloatArray, IntArray, Interval, percentile_interval

Value: TypeAlias = Callable[[FloatArray], FloatArray]
CHUNK = 2500  # draws at a time: what they need fits into a processor's cache


def draw_weights(clusters: int, draws: int, seed: int) -> IntArray:
    """How often each draw of clusters, with replacement, has each of them [draws, clusters]."""
    chance = np.random.default_rng(derive_seed(seed, "dialogues of the bootstrap"))
    return np.asarray(chance.multinomial(clusters, np.full(clusters, 1 / clusters), size=draws), dtype=np.intp)


class Draws:
    """Draws of the clusters of a test set, for sums in float32 and float64.

    Args:
        clusters: number of clusters.
        draws: number of draws.
        seed: the run's; the same clusters, draws and seed give the same draws.

    Attributes:
        weights: by dtype, [clusters, draws]: how often a draw of the bootstrap has each cluster.
        swaps: by dtype, [clusters, n]: 1 where the two sides of a difference swap a cluster. The first column is all 0,
            the difference as it is. If there are no more than `draws` ways to swap, each of them is there once.
        exact: whether that is so.
    """

    def __init__(self, clusters: int, draws: int, seed: int) -> None:
        weights = draw_weights(clusters, draws, seed).T
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
        sums: [runs, k, clusters] float32 or float64.
        value: of totals [k, n] -> [n].
        draws: the draws.

    Returns:
        [runs, draws] float64. One cluster does not say how clusters differ: a run with all others empty is nan.
    """
    weights = draws.weights[sums.dtype]
    drawn = np.full((len(sums), weights.shape[1]), math.nan)
    known = np.flatnonzero((sums != 0).any(axis=1).sum(axis=1) > 1)
    if len(known):
        # One product for all runs: many small ones make the threads of BLAS wait for one another.
        stacked = sums[known].reshape(-1, sums.shape[2])
        for start in range(0, weights.shape[1], CHUNK):
            totals = stacked @ weights[:, start : start + CHUNK]
            parts = totals.reshape(len(known), sums.shape[1], -1)
            drawn[known, start : start + CHUNK] = map_in_threads(value, parts)
    return drawn


def draw_seeds(runs: int, draws: int, seed: int, cell: str) -> IntArray:
    """Which of a cell's runs are in each draw [draws, runs]; drawn with replacement, for each cell on its own."""
    chance = np.random.default_rng(derive_seed(seed, "seeds of the bootstrap", cell))
    return chance.integers(0, runs, size=(draws, runs))


def average_over_seeds(values: FloatArray, picked: IntArray) -> FloatArray:
    """Means [draws] of the values [runs, draws] of a cell's runs, over the runs picked in each draw [draws, runs]."""
    return np.asarray(np.take_along_axis(values, picked.T, axis=0).mean(axis=0))


class ClusterSample:
    """Observations in clusters, with the weights of the clusters in each draw.

    Args:
        labels: [n], the cluster of each observation. The order of the observations has no say in what is drawn.
        draws, seed: of the bootstrap.

    Attributes:
        cluster: [n], number of each observation's cluster.
        clusters: how many there are.
        weights: [1 + draws, clusters]. Row 0 is all ones: row 0 of whatever is computed from them is the value itself.
    """

    def __init__(self, labels: Sequence[str], draws: int, seed: int) -> None:
        names, self.cluster = np.unique(np.asarray(labels), return_inverse=True)
        self.clusters = len(names)
        self.weights: FloatArray = np.vstack([np.ones(self.clusters), draw_weights(self.clusters, draws, seed)])

    def sums(self, values: FloatArray, group: IntArray, groups: int) -> FloatArray:
        """Sums [1 + draws, groups] of values [n] over each group of observations; `group` [n] in 0..groups-1."""
        return np.asarray(self.weights @ self._by_cluster(values, group, groups))

    def means(self, values: FloatArray, group: IntArray, groups: int) -> FloatArray:
        """Means [1 + draws, groups] of the known ones among values [n]; nan where a draw has none.

        One cluster does not say how clusters differ: a group with known values from it alone is nan in every draw.
        """
        known = ~np.isnan(values)
        count = self._by_cluster(known.astype(np.float64), group, groups)
        total = self.sums(np.where(known, values, 0), group, groups)
        with np.errstate(invalid="ignore"):
            means: FloatArray = total / (self.weights @ count)
        means[1:, (count > 0).sum(axis=0) < 2] = math.nan
        return means

    def mean(self, values: FloatArray) -> Interval:
        """Mean of the known ones among values [n] with its interval, which has no ends if they are of one cluster."""
        means = self.means(values, np.zeros(len(values), np.intp), 1)[:, 0]
        return percentile_interval(means[0], means[1:])

    def _by_cluster(self, values: FloatArray, group: IntArray, groups: int) -> FloatArray:
        totals = np.bincount(self.cluster * groups + group, values, minlength=self.clusters * groups)
        return np.asarray(totals, dtype=np.float64).reshape(self.clusters, groups)


def map_in_threads(task: Value, items: Iterable[FloatArray]) -> list[FloatArray]:
    """Results of a task that spends its time in numpy, which lets threads run side by side."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(task, items))
