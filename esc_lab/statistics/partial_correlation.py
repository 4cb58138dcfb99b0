"""Pearson's correlation of two measures given others, with its bootstrap interval over clusters of observations."""

from __future__ import annotations

import math

import numpy as np

from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.correlation import center
from esc_lab.statistics.intervals import FloatArray, Interval, percentile_interval

_ROUNDING = 1e-9  # of a variance of 1: as much as a measure that the others determine has left


def partial_correlation(
    x: FloatArray, y: FloatArray, sample: ClusterSample, given: FloatArray | None = None
) -> Interval:
    """Correlation of what is left of x and y [n] by their regressions on a constant and the columns of `given` [n, k].

    Without `given` it is Pearson's. All regressions are made anew in each draw, from sums of products over clusters.
    Observations where x or y is nan are left out.

    Returns:
        nan where nothing is left of x or of y, or with fewer than 3 observations.
    """
    known = ~np.isnan(x + y)
    if known.sum() < 3:
        return Interval(math.nan, math.nan, math.nan)
    others = np.empty((len(x), 0)) if given is None else given
    measures = center(np.vstack([others.T, x, y])[:, known].astype(np.float64)).T
    spread = measures.std(axis=0)
    columns = np.column_stack([np.ones(len(measures)), measures / np.where(spread > 0, spread, 1)])
    size, cluster = columns.shape[1], sample.cluster[known]
    products = np.zeros((sample.clusters, size, size))
    np.add.at(products, cluster, columns[:, :, None] * columns[:, None, :])
    drawn = np.tensordot(sample.weights, products, axes=1)
    others, cross = drawn[:, :-2, :-2], drawn[:, :-2, -2:]
    left = drawn[:, -2:, -2:] - np.swapaxes(cross, 1, 2) @ np.linalg.pinv(others, hermitian=True) @ cross
    variances = left[:, [0, 1], [0, 1]]
    variances = np.where(variances > _ROUNDING * len(measures), variances, np.nan)
    values = np.clip(left[:, 0, 1] / np.sqrt(variances.prod(axis=1)), -1, 1)
    return percentile_interval(values[0], values[1:] if len(np.unique(cluster)) > 1 else values[:0])
