"""Pearson's correlation of two measures given others, with its bootstrap interval over clusters of observations."""

from __future__ import annotations

import numpy as np

from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.correlation import center
from esc_lab.statistics.intervals import FloatArray, Interval, percentile_interval

_ROUNDING = 1e-9  # of a variance of 1: as much as a measure that the others determine has left


def partial_correlation(x: FloatArray, y: FloatArray, given: FloatArray, sample: ClusterSample) -> Interval:
    """Correlation of what is left of x and y [n] by their regressions on a constant and the columns of `given` [n, k].

    With k = 0 it is Pearson's. All regressions are made anew in each draw, from sums of products over clusters.

    Returns:
        nan where nothing is left of x or of y.
    """
    measures = center(np.vstack([given.T, x, y]).astype(np.float64)).T
    spread = measures.std(axis=0)
    columns = np.column_stack([np.ones(len(x)), measures / np.where(spread > 0, spread, 1)])
    size = columns.shape[1]
    products = np.zeros((sample.clusters, size, size))
    np.add.at(products, sample.cluster, columns[:, :, None] * columns[:, None, :])
    drawn = np.tensordot(sample.weights, products, axes=1) / sample.weights.sum(axis=1)[:, None, None] * sample.clusters
    others, cross = drawn[:, :-2, :-2], drawn[:, :-2, -2:]
    left = drawn[:, -2:, -2:] - np.swapaxes(cross, 1, 2) @ np.linalg.pinv(others, hermitian=True) @ cross
    variances = left[:, [0, 1], [0, 1]]
    variances = np.where(variances > _ROUNDING * len(x), variances, np.nan)
    values = np.clip(left[:, 0, 1] / np.sqrt(variances.prod(axis=1)), -1, 1)
    return percentile_interval(values[0], values[1:] if sample.clusters > 1 else values[:0])
