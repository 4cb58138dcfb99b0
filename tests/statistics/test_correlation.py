"""Correlations and ranks of many samples at once against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from esc_lab.statistics.correlation import center_within, pearson, ranks, spearman_interval


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_ranks_share_ties(values):
    array = np.array(values, dtype=float)
    assert np.array_equal(ranks(array), stats.rankdata(array))
    assert np.array_equal(ranks(np.stack([array, -array])), stats.rankdata([array, -array], axis=-1))


def test_pearson_is_scipys_and_nan_without_variance():
    x, y = np.random.default_rng(0).normal(size=(2, 4, 9))
    expected = [stats.pearsonr(*pair).statistic for pair in zip(x, y, strict=True)]
    assert pearson(x, y) == pytest.approx(expected)
    x = np.array([[1.0, 2.0, 3.0], [0.1, 0.1, 0.1], [1.0, np.nan, 2.0]])
    assert pearson(x, np.array([3.0, 2.0, 1.0])) == pytest.approx([-1, np.nan, np.nan], nan_ok=True)


def test_center_within_groups():
    values, group = np.array([[1.0, 2.0, 3.0, 9.0], [0.1, 5.0, 0.1, 5.0]]), np.array([0, 1, 0, 1])
    assert center_within(values, group).tolist() == [[-1, -3.5, 1, 3.5], [0, 0, 0, 0]]


def test_spearman_is_scipys_with_an_interval_that_covers() -> None:
    covered = 0
    for trial in range(60):
        x, y = np.random.default_rng(trial).normal(size=(2, 25))
        found = spearman_interval(x, y, 200, trial)
        assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
        covered += found.low <= 0 <= found.high
    assert 50 <= covered <= 60
    assert np.isnan(spearman_interval(x[:1], y[:1], 5, 0).value)
    assert np.isnan(spearman_interval(np.ones(9), y[:9], 5, 0).value)
