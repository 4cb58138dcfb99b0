"""Pearson's and Spearman's correlation and ranks of many samples at once, with nan where a side does not vary.

Written here, since the functions of `scipy.stats` take one sample at a time, warn instead, and take long to import;
tests hold the results to them.
"""

from __future__ import annotations

import math

import numpy as np

from esc_lab.seeds import derive_seed
from esc_lab.statistics.intervals import FloatArray, IntArray, Interval, percentile_interval

_ROUNDING = 1e-12  # relative
_MAX_PAIRS = 4_000_000  # that are compared for ranks at a time


def pearson(x: FloatArray, y: FloatArray) -> FloatArray:
    """Pearson's correlation along the last axis; nan where one side does not vary or has a nan."""
    return correlate_centered(center(x), center(y))


def spearman_interval(x: FloatArray, y: FloatArray, draws: int, seed: int) -> Interval:
    """Spearman's correlation of x and y [n] with its bootstrap interval over the n; nan where a side does not vary.

    Ranks are taken anew in each draw; draws in which a side does not vary are left out.
    """
    if len(x) < 2:
        return Interval(math.nan, math.nan, math.nan)
    chance = np.random.default_rng(derive_seed(seed, "bootstrap of a rank correlation"))
    picked = np.vstack([np.arange(len(x)), chance.integers(0, len(x), size=(draws, len(x)))])
    size = max(1, _MAX_PAIRS // len(x) ** 2)
    values = [pearson(ranks(x[part]), ranks(y[part])) for part in np.array_split(picked, math.ceil(len(picked) / size))]
    drawn = np.concatenate(values)
    return percentile_interval(drawn[0], drawn[1:])


def ranks(values: FloatArray) -> FloatArray:
    """Ranks along the last axis, ties by their mean. Compares all pairs, so it is meant for few values."""
    below = values[..., None] > values[..., None, :]
    level = values[..., None] == values[..., None, :]
    return np.asarray(below.sum(axis=-1) + (level.sum(axis=-1) + 1) / 2)


def center(values: FloatArray) -> FloatArray:
    """Deviations from the mean of the last axis, with rounding errors set to 0: what is constant does not vary."""
    deviations = values - values.mean(axis=-1, keepdims=True)
    return np.where(np.abs(deviations) <= _ROUNDING * np.abs(values), 0, deviations)


def center_within(values: FloatArray, group: IntArray) -> FloatArray:
    """Deviations of values [..., n] from the mean of their group [n]."""
    deviations = np.empty_like(values)
    for number in np.unique(group):
        members = group == number
        deviations[..., members] = center(values[..., members])
    return deviations


def correlate_centered(x: FloatArray, y: FloatArray) -> FloatArray:
    """Correlation along the last axis of deviations from means; nan where one side is all zero."""
    products = np.einsum("...i,...i->...", x, y)
    lengths = np.sqrt(np.einsum("...i,...i->...", x, x)) * np.sqrt(np.einsum("...i,...i->...", y, y))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.clip(products / lengths, -1, 1))
