"""The bootstrap over dialogues: of means and shares of observations in clusters.

A draw is a weight for each cluster of dialogues (how often it has it), and a statistic a function of sums over
clusters: all draws are one matrix product. What is compared on the same draws is paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from esc_lab.seeds import derive_seed
from esc_lab.statistics.intervals import FloatArray, IntArray, Interval, percentile_interval


def draw_weights(clusters: int, draws: int, seed: int) -> IntArray:
    """How often each draw of clusters, with replacement, has each of them [draws, clusters]."""
    chance = np.random.default_rng(derive_seed(seed, "dialogues of the bootstrap"))
    return np.asarray(chance.multinomial(clusters, np.full(clusters, 1 / clusters), size=draws), dtype=np.intp)


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

    @classmethod
    def leave_out(cls, labels: Sequence[str]) -> ClusterSample:
        """With each cluster left out in turn instead of draws: the jackknife, in the order of `np.unique(labels)`."""
        sample = cls(labels, 0, 0)
        sample.weights = np.vstack([sample.weights, 1 - np.eye(sample.clusters)])
        return sample

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
