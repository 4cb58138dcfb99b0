"""The permutation test against enumeration and scipy, and Holm's correction by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from esc_lab.metrics.metric import mean
from esc_lab.statistics.bootstrap import Draws
from esc_lab.statistics.permutation import holm, permutation_p
from tests.statistics.samples import bias, choices, error_sums, f1_sums, macro_f1, plain_macro_f1


def test_exact_p_is_that_of_all_swaps():
    predicted, gold = choices(clusters=5, runs=4, seed=3)
    sums = f1_sums(predicted, gold)
    first, second = [0, 1], [2, 3]
    statistics = []
    for swapped in itertools.product((False, True), repeat=5):
        difference = 0.0
        for one, other in zip(first, second, strict=True):
            sides = [
                np.where(np.array(swapped)[:, None], predicted[b], predicted[a])
                for a, b in ((one, other), (other, one))
            ]
            scores = [plain_macro_f1(side.ravel(), gold[0].ravel()) for side in sides]
            difference += (scores[0] - scores[1]) / 2
        statistics.append(abs(difference))
    expected = np.mean(np.array(statistics) >= statistics[0] - 1e-9)
    draws = Draws(5, 32, seed=0)
    assert draws.exact
    assert permutation_p(sums[first], sums[second], macro_f1, draws) == pytest.approx(expected, abs=1e-12)
    assert not Draws(5, 31, seed=0).exact


def test_exact_p_is_scipys():
    drawn = np.random.default_rng(0)
    ours, theirs = drawn.normal(0.8, 1, size=9), drawn.normal(0, 1, size=9)
    expected = stats.permutation_test(
        (ours, theirs), lambda a, b, axis: a.mean(axis) - b.mean(axis), permutation_type="samples",
        vectorized=True, n_resamples=np.inf,
    ).pvalue  # fmt: skip
    sums = [np.stack([side, np.ones(9)])[None] for side in (ours, theirs)]
    assert permutation_p(*sums, mean, Draws(9, 512, seed=0)) == pytest.approx(expected, abs=1e-12)
    # Drawn swaps come close, and their p is never 0.
    assert permutation_p(*sums, mean, Draws(9, 500, seed=0)) == pytest.approx(expected, abs=0.03)
    apart = [np.stack([np.arange(30.0) + shift, np.ones(30)])[None] for shift in (0, 100)]
    assert permutation_p(*apart, mean, Draws(30, 99, seed=0)) == pytest.approx(1 / 100)


@pytest.mark.parametrize(("sums", "value"), [(f1_sums, macro_f1), (error_sums, bias)])
def test_equal_sides_have_p_1(sums, value):
    found = sums(*choices(clusters=30, runs=2))
    assert permutation_p(found, found, value, Draws(30, 200, seed=0)) == 1
    assert permutation_p(found, found[::-1], value, Draws(30, 200, seed=0)) == 1  # the same runs in another order


@pytest.mark.parametrize(("sums", "value"), [(f1_sums, macro_f1), (error_sums, bias)])
def test_p_is_even_where_nothing_differs(sums, value):
    draws = Draws(12, 199, seed=1)
    found = [permutation_p(*np.split(sums(*choices(12, 2, seed=seed)), 2), value, draws) for seed in range(200)]
    assert stats.kstest(found, "uniform").pvalue > 0.001
    assert np.mean(np.array(found) <= 0.1) == pytest.approx(0.1, abs=0.06)


def test_p_without_values():
    nothing = np.zeros((1, 2, 4))
    assert math.isnan(permutation_p(nothing, nothing, mean, Draws(4, 100, seed=0)))


def test_holm_by_hand():
    # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.04 * 1, and none below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.001]) == pytest.approx([0.5, 0.002])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []


def test_holm_leaves_out_what_was_not_tested():
    found = holm([math.nan, 0.01, 0.04])
    assert math.isnan(found[0])
    assert found[1:] == pytest.approx([0.02, 0.04])
