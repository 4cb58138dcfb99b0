"""The bootstrap against loops over explicit resamples, scipy, and the normal interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from esc_lab.metrics.metric import mean
from esc_lab.statistics.bootstrap import ClusterSample, Draws, average_over_seeds, bootstrap, draw_seeds
from tests.statistics.samples import bias, choices, error_sums, f1_sums, macro_f1, plain_macro_f1


def test_draws_are_resamples_and_depend_on_the_seed_alone():
    draws = Draws(20, 500, seed=3)
    weights = draws.weights[np.dtype(np.float64)]
    assert weights.shape == (20, 500)
    assert (weights.sum(axis=0) == 20).all()
    assert (weights == weights.astype(int)).all()
    np.testing.assert_array_equal(weights, Draws(20, 500, seed=3).weights[np.dtype(np.float32)])
    assert (weights != Draws(20, 500, seed=4).weights[np.dtype(np.float64)]).any()
    # Each dialogue is drawn once on average, with the variance of a multinomial.
    np.testing.assert_allclose(weights.mean(axis=1), 1, atol=0.25)
    assert weights.var() == pytest.approx(1 - 1 / 20, abs=0.05)


def test_bootstrap_is_explicit_resampling():
    predicted, gold = choices(clusters=6, runs=2)
    draws = Draws(6, 40, seed=0)
    found = bootstrap(f1_sums(predicted, gold), macro_f1, draws)
    biases = bootstrap(error_sums(predicted, gold), bias, draws)
    for number, weights in enumerate(draws.weights[np.dtype(np.float64)].T.astype(int)):
        drawn = np.repeat(np.arange(6), weights)
        for run in range(2):
            ours, theirs = predicted[run, drawn].ravel(), gold[run, drawn].ravel()
            assert found[run, number] == pytest.approx(plain_macro_f1(ours, theirs), abs=1e-6)
            table = np.zeros((3, 3))
            np.add.at(table, (ours, theirs), 1)
            assert biases[run, number] == pytest.approx(bias(table.reshape(9, 1))[0], abs=1e-5)


def test_bootstrap_interval_is_scipys():
    drawn = np.random.default_rng(0)
    values, counts = drawn.normal(5, 2, size=40), drawn.integers(1, 9, size=40)
    found = bootstrap(np.stack([values * counts, counts])[None].astype(float), mean, Draws(40, 20_000, seed=0))
    expected = stats.bootstrap(
        (values * counts, counts), lambda total, count, axis: total.sum(axis) / count.sum(axis),
        paired=True, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    np.testing.assert_allclose(np.percentile(found[0], (2.5, 97.5)), expected, atol=0.03)


def test_one_dialogue_says_nothing_of_others():
    sums = np.zeros((2, 2, 5))
    sums[0, :, 1], sums[1] = 3, 1
    found = bootstrap(sums, mean, Draws(5, 10, seed=0))
    assert np.isnan(found[0]).all()
    assert (found[1] == 1).all()


def test_seeds_are_drawn_for_each_cell_on_its_own():
    picked = draw_seeds(3, 3000, 0, "a")
    assert picked.shape == (3000, 3)
    assert (picked != draw_seeds(3, 3000, 0, "b")).any()
    np.testing.assert_allclose(np.bincount(picked.ravel()) / 9000, 1 / 3, atol=0.02)
    values = np.arange(12.0).reshape(3, 4)
    few = np.array([[0, 0, 0], [0, 1, 2], [2, 2, 1], [1, 1, 1]])
    expected = [np.mean([values[run, draw] for run in few[draw]]) for draw in range(4)]
    assert average_over_seeds(values, few).tolist() == expected
    assert (draw_seeds(1, 5, 0, "a") == 0).all()


def test_interval_covers_what_it_should():
    drawn = np.random.default_rng(0)
    draws = Draws(40, 300, seed=0)
    # 300 samples of 40 dialogues with 5 decisions each, some dialogues easier than others.
    easy = drawn.beta(2, 3, size=(300, 1, 40))
    sums = np.concatenate([drawn.binomial(5, easy), np.full_like(easy, 5)], axis=1)
    low, high = np.percentile(bootstrap(sums.astype(float), mean, draws), (2.5, 97.5), axis=1)
    assert 0.90 < ((low <= 0.4) & (high >= 0.4)).mean() < 0.98


def test_interval_is_that_of_whole_dialogues():
    """Against the normal interval for means of dialogues of equal size, whose replies are all alike."""
    draw = np.random.default_rng(3)
    of_dialogue = draw.normal(size=60)
    trees, values = np.repeat([f"d{n}" for n in range(60)], 5), np.repeat(of_dialogue, 5)
    found = ClusterSample(trees, 4000, 1).mean(values)
    half = 1.96 * of_dialogue.std() / math.sqrt(60)
    assert found.value == pytest.approx(of_dialogue.mean())
    assert [found.low, found.high] == pytest.approx([found.value - half, found.value + half], abs=0.03)
