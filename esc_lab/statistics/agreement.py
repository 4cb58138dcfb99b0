"""Krippendorff's alpha: how far raters agree beyond chance, with a bootstrap interval over what they rated.

Krippendorff (2011), *Computing Krippendorff's Alpha-Reliability*, by the package `krippendorff`.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.intervals import FloatArray, IntArray, Interval, percentile_interval

Level = Literal["interval", "ordinal", "nominal"]
LEVELS: tuple[Level, ...] = ("interval", "ordinal", "nominal")


def krippendorff_alpha(
    unit: IntArray, ratings: FloatArray, scale: FloatArray, level: Level, sample: ClusterSample
) -> Interval:
    """Alpha of ratings [n] with its interval; nan among the ratings are left out.

    Args:
        unit: [n], number of what each rating is of.
        scale: the values that there are to choose from, ascending.
        level: of measurement: how far apart two values are.
        sample: clusters of the ratings, those of a unit in the same.

    Returns:
        nan if no unit has two ratings, or all ratings of such units are the same.

    Raises:
        ImportError: the package is not installed.
    """
    from krippendorff import alpha

    known = ~np.isnan(ratings)
    counts = np.zeros((unit.max() + 1, len(scale)), np.intp)
    np.add.at(counts, (unit[known], np.searchsorted(scale, ratings[known])), 1)
    cluster = np.zeros(len(counts), np.intp)
    cluster[unit] = sample.cluster
    paired = counts.sum(axis=1) >= 2  # others say nothing of agreement
    counts, cluster = counts[paired], cluster[paired]

    def of(drawn: IntArray) -> float:
        if (drawn.sum(axis=0) > 0).sum() < 2:
            return math.nan
        return float(alpha(value_counts=drawn, value_domain=scale, level_of_measurement=level))

    times = sample.weights[:, cluster].astype(np.intp)
    values = np.array([of(np.repeat(counts, row, axis=0)) for row in times])
    return percentile_interval(values[0], values[1:] if len(np.unique(cluster)) > 1 else values[:0])
