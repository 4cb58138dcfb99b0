"""Means over seeds and dialogues: against scipy where one factor is all there is, loops, and planted truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from esc_lab.metrics.metric import mean
from esc_lab.statistics.crossed_effects import (
    CrossedMean,
    SeedTable,
    critical_value,
    estimate_mean,
    influence,
    subtract,
)
from tests.statistics.samples import bias, choices, error_sums, f1_sums, macro_f1, plain_macro_f1
from tests.statistics.simulation import simulate_population

LEVELS = (0.05, 0.4, 1e-3, 1e-9)


def table_of(values):
    """A table of means over dialogues of equal size, from the mean of each seed and dialogue [seeds, dialogues]."""
    values = np.asarray(values, dtype=float)
    sums = np.stack([values, np.ones_like(values)], axis=1)
    return SeedTable(
        values.mean(axis=1), np.stack([influence(own, mean) for own in sums]), np.ones(len(values.T), bool)
    )


def ends(interval):
    return interval.low, interval.high


# --- the jackknife


def test_influence_is_what_leaving_out_changes():
    predicted, gold = (part[0] for part in choices(clusters=7, runs=1))
    found = influence(f1_sums(predicted[None], gold[None])[0], macro_f1)
    biases = influence(error_sums(predicted[None], gold[None])[0], bias)

    def plain_bias(kept):
        table = np.zeros((3, 3))
        np.add.at(table, (predicted[kept].ravel(), gold[kept].ravel()), 1)
        return bias(table.reshape(9, 1))[0]

    every = np.arange(7)
    for number in every:
        kept = np.delete(every, number)
        scores = [plain_macro_f1(predicted[part].ravel(), gold[part].ravel()) for part in (every, kept)]
        assert found[number] == pytest.approx(scores[0] - scores[1], abs=1e-12)
        assert biases[number] == pytest.approx(plain_bias(every) - plain_bias(kept), abs=1e-6)


def test_the_jackknife_finds_the_bias_of_a_variance():
    """The plain variance is too small by 1 / m of what it should be; without its bias it is numpy's with ddof=1."""
    values = np.random.default_rng(0).normal(size=9)
    sums = np.stack([values, values**2, np.ones(9)])

    def variance(totals):
        return totals[1] / totals[2] - (totals[0] / totals[2]) ** 2

    found = estimate_mean(SeedTable(np.array([values.var()]), influence(sums, variance)[None], np.ones(9, bool)))
    assert found.value - found.bias == pytest.approx(values.var(ddof=1))
    interval = found.interval(corrected=True)
    assert (interval.low + interval.high) / 2 == pytest.approx(values.var(ddof=1))
    assert interval.value == values.var()
    assert not interval.symmetric
    assert found.interval().symmetric


# --- one factor alone, against scipy


def test_one_run_is_students_t_over_dialogues():
    values = np.random.default_rng(0).normal(0.3, 1, size=12)
    found, expected = estimate_mean(table_of([values])), stats.ttest_1samp(values, 0)
    assert found.p() == pytest.approx(expected.pvalue)
    assert ends(found.interval()) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_without_dialogues_it_is_students_t_over_seeds():
    ours, theirs = np.random.default_rng(1).normal(0.5, 1, size=(2, 5))
    alone, paired, apart = (
        estimate_mean(SeedTable(ours)),
        estimate_mean(subtract(SeedTable(ours), SeedTable(theirs))),
        estimate_mean(SeedTable(ours), SeedTable(theirs[:3])),
    )
    for found, expected in (
        (alone, stats.ttest_1samp(ours, 0)),
        (paired, stats.ttest_rel(ours, theirs)),
        (apart, stats.ttest_ind(ours, theirs[:3], equal_var=False)),
    ):
        assert found.p() == pytest.approx(expected.pvalue)
        assert ends(found.interval()) == pytest.approx(tuple(expected.confidence_interval(0.95)))


@pytest.mark.parametrize("level", LEVELS)
def test_critical_values_of_one_factor_are_students(level):
    assert critical_value(level, (0.3,), (4,)) == pytest.approx(stats.t.isf(level / 2, 4))
    assert critical_value(level, (0.3, 0.0), (1, 11)) == pytest.approx(stats.t.isf(level / 2, 1))
    assert critical_value(level, (0.3, 0.1), (1e9, 1e9)) == pytest.approx(stats.norm.isf(level / 2), rel=1e-6)


# --- both


def test_variance_is_that_of_a_crossed_analysis_of_variance():
    values = np.random.default_rng(2).normal(size=(4, 6)) + np.random.default_rng(3).normal(size=6)
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    rest = sum(
        (values[s, d] - rows[s] - columns[d] + values.mean()) ** 2 for s in range(4) for d in range(6)
    ) / (3 * 5)  # fmt: skip
    found = estimate_mean(table_of(values))
    assert found.value == pytest.approx(values.mean())
    assert found.variances == pytest.approx((rows.var(ddof=1) / 4, columns.var(ddof=1) / 6 - rest / 24))
    assert found.degrees == (3, 5)
    assert found.bias == pytest.approx(0, abs=1e-12)


def test_differences_of_equal_seeds_are_those_of_each_seed():
    first, second = np.random.default_rng(4).normal(size=(2, 3, 8))
    paired = estimate_mean(subtract(table_of(first), table_of(second)))
    expected = estimate_mean(table_of(first - second))
    assert (paired.value, *paired.variances) == pytest.approx((expected.value, *expected.variances))
    base = estimate_mean(subtract(table_of(first), table_of(second[:1])))
    expected = estimate_mean(table_of(first - second[:1]))
    assert (base.value, *base.variances) == pytest.approx((expected.value, *expected.variances))


def test_other_seeds_vary_on_their_own():
    first, second = np.random.default_rng(5).normal(size=(2, 3, 8))
    found = estimate_mean(table_of(first), table_of(second[:2]))
    alone = [estimate_mean(table_of(values)) for values in (first, second[:2])]
    assert found.value == pytest.approx(first.mean() - second[:2].mean())
    assert found.variances[0] == pytest.approx(alone[0].variances[0] + alone[1].variances[0])
    assert 1 <= found.degrees[0] <= 3


def test_dialogues_that_one_side_alone_has():
    """Mean of 4 dialogues less that of 6: those without anything count as no dialogue."""
    values = np.random.default_rng(6).normal(size=(2, 6))
    sums = np.stack([values, np.ones_like(values)], axis=1)
    sums[0, :, 4:] = 0
    tables = [
        SeedTable(np.array([own[0].sum() / own[1].sum()]), influence(own, mean)[None], own.any(axis=0)) for own in sums
    ]
    assert estimate_mean(tables[0]).degrees == (3,)
    assert estimate_mean(subtract(*tables)).degrees == (5,)


@given(
    seeds=st.integers(1, 4), dialogues=st.integers(2, 9), shift=st.floats(0, 2), seed=st.integers(0, 10**6)
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_an_interval_and_its_p_never_contradict(seeds, dialogues, shift, seed):
    draw = np.random.default_rng(seed)
    values = shift + draw.normal(size=(seeds, dialogues)) + draw.normal(size=(seeds, 1)) + draw.normal(size=dialogues)
    found = estimate_mean(table_of(values))
    interval = found.interval()
    assert (found.p() < 0.05) == (interval.low > 0 or interval.high < 0)


def test_what_has_no_interval():
    one = estimate_mean(SeedTable(np.array([0.5])))
    assert math.isnan(one.interval().low)
    assert math.isnan(one.p())
    lone = estimate_mean(table_of(np.ones((3, 1))))  # one dialogue does not say how dialogues differ
    assert math.isnan(lone.interval().low)
    assert math.isnan(lone.p())
    undefined = SeedTable(np.array([1.0]), np.array([[0.1, math.nan]]), np.ones(2, bool))
    assert math.isnan(estimate_mean(undefined).interval().low)


@pytest.mark.parametrize("shift", [0, 0.25])
def test_differences_that_do_not_vary_are_not_tested(shift):
    values = np.random.default_rng(0).normal(size=(3, 5))
    constant = estimate_mean(subtract(table_of(values + shift), table_of(values)))
    assert constant.value == pytest.approx(shift)
    assert math.isnan(constant.p())
    assert all(map(math.isnan, ends(constant.interval())))


def test_rates_of_0_and_1_have_no_interval_of_no_width():
    """A rate of 2 % is 0 in many samples of 36 replies: an interval [0, 0] would miss it each time."""
    draw, covered, known = np.random.default_rng(0), 0, 0
    for _ in range(400):
        hits = draw.binomial(3, 0.02, size=12).astype(float)
        table = SeedTable(np.array([hits.sum() / 36]), influence(np.stack([hits, np.full(12, 3.0)]), mean)[None],
                          np.ones(12, bool))  # fmt: skip
        interval = estimate_mean(table).interval()
        known += not math.isnan(interval.low)
        covered += interval.low <= 0.02 <= interval.high
    assert 100 < known < 300
    assert covered / known > 0.9
    for rate in (0.0, 1.0):
        assert math.isnan(estimate_mean(table_of(np.full((3, 12), rate))).interval().low)


# --- coverage


def coverage(share, degrees):
    """Exact coverage where `share` of the variance is the first factor's: normal means, variances from chi-square."""
    steps = (120, 12)
    chances = [(np.arange(count) + 0.5) / count for count in steps]
    parts = [
        weight * stats.chi2.ppf(chance, freedom) / freedom
        for weight, chance, freedom in zip((share, 1 - share), chances, degrees, strict=True)
    ]
    covered = [
        stats.norm.sf(critical_value(0.05, (first, second), degrees) * math.sqrt(first + second))
        for first in parts[0]
        for second in parts[1]
    ]
    return 1 - 2 * np.mean(covered)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("dialogues", [12, 195])
def test_coverage_of_normal_means(seeds, dialogues):
    found = [coverage(share, (seeds - 1, dialogues - 1)) for share in (0.02, 0.2, 0.5, 0.8, 0.95)]
    assert min(found) > (0.92 if seeds == 2 else 0.94), found
    assert max(found) < 0.972, found


def binomial_slack(rate, count):
    return 3.5 * math.sqrt(rate * (1 - rate) / count)


@pytest.mark.parametrize(("seeds", "dialogues"), [(2, 40), (3, 12), (5, 40)])
def test_coverage_and_size_for_q(seeds, dialogues):
    """A small part of benchmarks/inference.py: the planted truth, and two methods that do not differ."""
    population, repeats = simulate_population(spread=0.2, dialogues=600, seeds=60), 250
    draw = np.random.default_rng(seeds)
    covered = different = 0
    for _ in range(repeats):
        chosen = draw.integers(len(population.counts), size=dialogues)
        ours, theirs = (population.draw(draw, seeds, chosen) for _ in range(2))
        interval = estimate_mean(ours).interval()
        covered += interval.low <= population.truth.mean() <= interval.high
        different += estimate_mean(subtract(ours, theirs)).p() < 0.05
    assert 0.93 - binomial_slack(0.93, repeats) < covered / repeats < 0.97 + binomial_slack(0.97, repeats)
    assert different / repeats < 0.07 + binomial_slack(0.07, repeats)


def test_the_interval_of_b_is_about_less_than_the_value():
    """B of 40 dialogues is too large; about the value itself, the interval of equal width would miss on one side."""
    population, repeats = simulate_population("B", preference=0.3, dialogues=600, seeds=1), 120
    draw, truth = np.random.default_rng(0), population.truth[0]
    found = [population.draw(draw, 1, draw.integers(600, size=40)) for _ in range(repeats)]
    means = [estimate_mean(table) for table in found]
    values = np.array([one.value for one in means])
    corrected = np.array([one.value - one.bias for one in means])
    assert values.mean() - truth > 0.03
    assert abs(corrected.mean() - truth) < 0.02
    covered = np.mean([one.interval(corrected=True).low <= truth <= one.interval(corrected=True).high for one in means])
    assert covered > 0.93 - binomial_slack(0.93, repeats)


def test_a_mean_has_no_parts_of_what_does_not_vary():
    assert CrossedMean(0.5, 0.0, (), ()).interval().value == 0.5
