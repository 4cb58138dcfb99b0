"""Bootstrap, permutation test and correction against loops, enumeration, scipy and hand-worked examples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from esc_lab.comparison.measures import bias, macro_f1, mean
from esc_lab.statistics.significance import Draws, bootstrap, draw_seeds, holm, over_seeds, permutation_p


def choices(clusters, runs, classes=3, each=5, seed=0):
    """Predicted and gold classes [runs, clusters, each] of made-up models."""
    drawn = np.random.default_rng(seed)
    gold = drawn.integers(classes, size=(clusters, each))
    wrong = drawn.integers(classes, size=(runs, clusters, each))
    return np.where(drawn.random(wrong.shape) < 0.4, gold, wrong), np.broadcast_to(gold, wrong.shape)


def f1_sums(predicted, gold, classes=3):
    """[runs, 3 * classes, clusters] float32."""
    marks = [predicted[..., None] == np.arange(classes), gold[..., None] == np.arange(classes)]
    parts = [marks[0] & marks[1], *marks]
    return np.concatenate([part.sum(axis=2).transpose(0, 2, 1) for part in parts], axis=1).astype(np.float32)


def error_sums(predicted, gold, classes=3):
    """[runs, classes ** 2, clusters] float32."""
    cell = predicted * classes + gold
    return (cell[..., None] == np.arange(classes**2)).sum(axis=2).transpose(0, 2, 1).astype(np.float32)


def plain_macro_f1(predicted, gold):
    """Macro-F1 of lists of classes, written down once more."""
    scores = []
    for one in {*predicted, *gold}:
        hits = sum(p == g == one for p, g in zip(predicted, gold, strict=True))
        scores.append(2 * hits / (list(predicted).count(one) + list(gold).count(one)))
    return sum(scores) / len(scores)


# --- bootstrap


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
    of_errors = bootstrap(error_sums(predicted, gold), bias, draws)
    for number, weights in enumerate(draws.weights[np.dtype(np.float64)].T.astype(int)):
        drawn = np.repeat(np.arange(6), weights)
        for run in range(2):
            ours, theirs = predicted[run, drawn].ravel(), gold[run, drawn].ravel()
            assert found[run, number] == pytest.approx(plain_macro_f1(ours, theirs), abs=1e-6)
            table = np.zeros((3, 3))
            np.add.at(table, (ours, theirs), 1)
            assert of_errors[run, number] == pytest.approx(bias(table.reshape(9, 1))[0], abs=1e-5)


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
    assert over_seeds(values, few).tolist() == expected
    assert (draw_seeds(1, 5, 0, "a") == 0).all()


def test_interval_covers_what_it_should():
    drawn = np.random.default_rng(0)
    draws = Draws(40, 300, seed=0)
    # 300 samples of 40 dialogues with 5 decisions each, some dialogues easier than others.
    easy = drawn.beta(2, 3, size=(300, 1, 40))
    sums = np.concatenate([drawn.binomial(5, easy), np.full_like(easy, 5)], axis=1)
    low, high = np.percentile(bootstrap(sums.astype(float), mean, draws), (2.5, 97.5), axis=1)
    assert 0.90 < ((low <= 0.4) & (high >= 0.4)).mean() < 0.98


# --- permutation test


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


# --- Holm


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
