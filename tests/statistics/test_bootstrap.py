"""The bootstrap over dialogues: what is drawn, and that its intervals are those of whole dialogues."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from esc_lab.statistics.bootstrap import ClusterSample, draw_weights


def test_draws_are_resamples_and_depend_on_the_seed_alone():
    weights = draw_weights(20, 500, seed=3)
    assert weights.shape == (500, 20)
    assert (weights.sum(axis=1) == 20).all()
    np.testing.assert_array_equal(weights, draw_weights(20, 500, seed=3))
    assert (weights != draw_weights(20, 500, seed=4)).any()
    # Each dialogue is drawn once on average, with the variance of a multinomial.
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.25)
    assert weights.var() == pytest.approx(1 - 1 / 20, abs=0.05)


def test_bootstrap_interval_is_scipys():
    drawn = np.random.default_rng(0)
    values, counts = drawn.normal(5, 2, size=40), drawn.integers(1, 9, size=40)
    found = ClusterSample(np.repeat([f"d{n:02}" for n in range(40)], counts).tolist(), 20_000, seed=0).mean(
        np.repeat(values, counts)
    )
    expected = stats.bootstrap(
        (values * counts, counts), lambda total, count, axis: total.sum(axis) / count.sum(axis),
        paired=True, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.03)


def test_one_dialogue_says_nothing_of_others():
    found = ClusterSample(["a", "a", "b"], 10, seed=0).mean(np.array([3.0, 1.0, math.nan]))
    assert found.value == 2
    assert math.isnan(found.low)


def test_interval_is_that_of_whole_dialogues():
    """Against the normal interval for means of dialogues of equal size, whose replies are all alike."""
    draw = np.random.default_rng(3)
    of_dialogue = draw.normal(size=60)
    trees, values = np.repeat([f"d{n}" for n in range(60)], 5), np.repeat(of_dialogue, 5)
    found = ClusterSample(trees, 4000, 1).mean(values)
    half = 1.96 * of_dialogue.std() / math.sqrt(60)
    assert found.value == pytest.approx(of_dialogue.mean())
    assert [found.low, found.high] == pytest.approx([found.value - half, found.value + half], abs=0.03)
