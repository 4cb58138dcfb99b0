"""Krippendorff's alpha: how far raters agree beyond chance, with a bootstrap interval over what they rated.

Krippendorff (2011), *Computing Krippendorff's Alpha-Reliability*, by the package `krippendorff`.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.intervals import FloatArray, Interval, percentile_interval

Level = Literal["interval", "ordinal", "nominal"]
LEVELS: tuple[Level, ...] = ("interval", "ordinal", "nominal")


def krippendorff_alpha(ratings: FloatArray, scale: FloatArray, level: Level, sample: ClusterSample) -> Interval:
    """Alpha of ratings [raters, units], nan where a rater did not rate a unit, with its interval.

    Args:
        scale: the values that there are to choose from, ascending.
        level: of measurement: how far apart two values are.
        sample: clusters of the units.

    Returns:
        nan if no unit has two ratings, or all ratings of such units are the same.

    Raises:
        ImportError: the package is not installed.
    """
    from krippendorff import alpha

    counts = np.stack([(ratings == value).sum(axis=0) for value in scale], axis=1)
    paired = counts.sum(axis=1) >= 2  # others say nothing of agreement
    counts, cluster = counts[paired], sample.cluster[paired]

    def of(drawn: FloatArray) -> float:
        if (drawn.sum(axis=0) > 0).sum() < 2:
            return math.nan
        return float(alpha(value_counts=drawn, value_domain=scale, level_of_measurement=level))

    times = sample.weights[:, cluster].astype(np.intp)
    values = np.array([of(np.repeat(counts, row, axis=0)) for row in times])
    return percentile_interval(values[0], values[1:] if len(np.unique(cluster)) > 1 else values[:0])
