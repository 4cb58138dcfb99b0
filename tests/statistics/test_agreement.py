"""Krippendorff's alpha, Bradley and Terry's strengths and partial correlations, against computations of their own."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import pearsonr

from esc_lab.statistics.agreement import krippendorff_alpha
from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.paired_comparison import IMAGINED, bradley_terry
from esc_lab.statistics.partial_correlation import partial_correlation

SCALE = np.arange(-4, 5)


def brute_alpha(ratings, distance) -> float:
    """1 - observed / expected disagreement, over all pairs of values (Krippendorff 2011)."""
    units = [[v for v in column if not math.isnan(v)] for column in ratings.T]
    units = [unit for unit in units if len(unit) > 1]
    observed = sum(sum(distance(a, b) for a, b in itertools.permutations(u, 2)) / (len(u) - 1) for u in units)
    values = [value for unit in units for value in unit]
    expected = sum(distance(a, b) for a, b in itertools.permutations(values, 2)) / (len(values) - 1)
    return 1 - observed / expected


def made_ratings(raters=3, units=30, noise=1.0):
    drawn = np.random.default_rng(3)
    truth = drawn.uniform(-4, 4, size=units)
    ratings = np.clip(np.round(truth + noise * drawn.normal(size=(raters, units))), -4, 4)
    return np.where(drawn.random(ratings.shape) < 0.2, np.nan, ratings)


def alpha(ratings, level, labels, draws=100, scale=SCALE):
    """Of a table [raters, units] with a label for each unit."""
    raters, units = np.shape(ratings)
    sample = ClusterSample(np.tile(labels, raters), draws, 1)
    return krippendorff_alpha(np.tile(np.arange(units), raters), np.ravel(ratings), scale, level, sample)


def test_alpha_is_that_of_its_definition():
    ratings = made_ratings()
    paired = ratings[:, (~np.isnan(ratings)).sum(axis=0) > 1]

    def ranks_apart(a, b):
        """Squared: values from a to b, of a and b half."""
        low, high = sorted((a, b))
        return (((paired >= low) & (paired <= high)).sum() - np.isin(paired, [a, b]).sum() / 2) ** 2 * (a != b)

    distances = {"interval": lambda a, b: (a - b) ** 2, "nominal": lambda a, b: float(a != b), "ordinal": ranks_apart}
    for level, distance in distances.items():
        found = alpha(ratings, level, [f"d{unit // 2}" for unit in range(30)])
        assert found.value == pytest.approx(brute_alpha(ratings, distance), abs=1e-12)
        assert found.low < found.value < found.high
    # A draw is the alpha of the drawn units.
    again = alpha(np.tile(ratings, 2), "interval", ["a"] * 60)
    assert again.value == pytest.approx(brute_alpha(np.tile(ratings, 2), lambda a, b: (a - b) ** 2))
    assert math.isnan(again.low)  # one dialogue does not say how dialogues differ


def test_alpha_of_the_published_example():
    """Krippendorff (2011), *Computing Krippendorff's Alpha-Reliability*: 4 observers, 12 units, gaps."""
    table = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    ratings = np.array([[math.nan if value == "." else float(value) for value in row] for row in table])
    for level, value in (("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)):
        found = alpha(ratings, level, [f"d{unit}" for unit in range(12)], scale=np.arange(1, 6))
        assert found.value == pytest.approx(value, abs=5e-4)


def test_alpha_needs_two_ratings_and_two_values():
    for ratings in ([[1, np.nan], [np.nan, 2]], [[1, 1], [1, 1]]):
        assert math.isnan(alpha(ratings, "interval", ["a", "b"]).value)


def test_strengths_are_of_maximum_likelihood():
    """Ties as half wins, imagined wins as real ones; the planted order is found."""
    drawn = np.random.default_rng(5)
    planted, size = np.array([1.0, 0.0, -1.0]), 400
    first = drawn.integers(3, size=size)
    second = (first + drawn.integers(1, 3, size=size)) % 3
    odds = planted[first] - planted[second]
    outcome = np.where(drawn.random(size) < 0.2, 0.5, (drawn.random(size) < 1 / (1 + np.exp(-odds))).astype(float))
    found = bradley_terry(first, second, outcome, ClusterSample([f"d{n % 80}" for n in range(size)], 100, 1))

    def loss(strength):
        gain = strength[first] - strength[second]
        total = (outcome * np.logaddexp(0, -gain) + (1 - outcome) * np.logaddexp(0, gain)).sum()
        apart = [strength[a] - strength[b] for a, b in itertools.permutations(range(3), 2)]
        return total + IMAGINED * np.logaddexp(0, -np.array(apart)).sum()

    best = minimize(loss, np.zeros(3), tol=1e-12).x
    assert [each.value for each in found] == pytest.approx(best - best.mean(), abs=1e-5)
    assert all(each.low < each.value < each.high for each in found)
    assert found[0].low > found[1].high > found[1].low > found[2].high


def test_strengths_are_finite_and_need_one_scale():
    sample = ClusterSample(["a", "b", "c"], 20, 1)
    won = bradley_terry(np.array([0, 0, 0]), np.array([1, 1, 1]), np.ones(3), sample)
    assert won[0].value == pytest.approx(math.log((3 + IMAGINED) / IMAGINED) / 2)
    apart = bradley_terry(np.array([0, 0, 2]), np.array([1, 1, 3]), np.ones(3), sample)
    assert all(math.isnan(each.value) for each in apart)


def residual(values, given):
    columns = np.column_stack([np.ones(len(values)), given])
    return values - columns @ np.linalg.lstsq(columns, values, rcond=None)[0]


def test_partial_correlation_is_that_of_residuals():
    drawn = np.random.default_rng(7)
    given = drawn.normal(size=(60, 2))
    x, y = (given @ drawn.normal(size=2) + drawn.normal(size=60) for _ in range(2))
    sample = ClusterSample([f"d{n // 3:02d}" for n in range(60)], 40, 1)
    assert partial_correlation(x, y, sample).value == pytest.approx(pearsonr(x, y)[0])
    found = partial_correlation(x, y, sample, given)
    assert found.value == pytest.approx(pearsonr(residual(x, given), residual(y, given))[0])
    draws = []
    for weights in sample.weights[1:].astype(int):
        rows = np.repeat(np.arange(60), weights[sample.cluster])
        draws.append(pearsonr(residual(x[rows], given[rows]), residual(y[rows], given[rows]))[0])
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(draws, (2.5, 97.5))))
    assert math.isnan(partial_correlation(given[:, 0], y, sample, given).value)  # nothing is left of it
    assert math.isnan(partial_correlation(np.ones(60), y, sample).value)
    some = np.where(np.arange(60) < 40, x, np.nan)
    assert partial_correlation(some, y, sample).value == pytest.approx(pearsonr(x[:40], y[:40])[0])
    few = partial_correlation(np.where(np.arange(60) < 3, x, np.nan), y, sample)
    assert not math.isnan(few.value)
    assert math.isnan(few.low)  # of one cluster
    assert math.isnan(partial_correlation(np.where(np.arange(60) < 2, x, np.nan), y, sample).value)
