"""Percentile and Fisher intervals, and how intervals are written."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from esc_lab.statistics.intervals import Interval, fisher_interval, percentile_interval


def ends(interval):
    return interval.value, interval.low, interval.high


def test_percentiles_leave_nan_out():
    assert ends(percentile_interval(1.0, np.array([0.0, np.nan, 2.0]))) == pytest.approx((1, 0.05, 1.95))
    for unknown in (percentile_interval(1.0, np.array([])), percentile_interval(1.0, np.array([np.nan]))):
        assert ends(unknown) == pytest.approx((1, np.nan, np.nan), nan_ok=True)
    assert ends(percentile_interval(math.nan, np.arange(3.0))) == pytest.approx((np.nan,) * 3, nan_ok=True)


def test_fisher_is_scipys():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(2, 8))
    expected = stats.pearsonr(x, y)
    found = fisher_interval(expected.statistic, 8)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)), abs=1e-4)
    assert ends(fisher_interval(0.5, 3)) == pytest.approx((0.5, np.nan, np.nan), nan_ok=True)
    assert ends(fisher_interval(1.0, 8)) == (1, 1, 1)


def test_text():
    assert Interval(0.123, 0.1, 0.149).text(2) == "0.12 [0.10, 0.15]"
    assert Interval(-0.5, -1, 0.25).text(1, "+") == "-0.5 [-1.0, +0.2]"
    assert Interval(0.5, math.nan, math.nan).text(1) == "0.5"
    assert Interval(math.nan, math.nan, math.nan).text(1) == "-"
    assert Interval(0, 1, 4).half_width == 1.5
