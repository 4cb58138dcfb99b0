"""AUC against SciPy and by hand, and its bootstrap over clusters."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from esc_lab.statistics.auc import measure_auc
from esc_lab.statistics.bootstrap import ClusterSample, draw_weights
from esc_lab.statistics.intervals import percentile_interval

SCORES = st.sampled_from([0.0, 0.1, 1.5, 2.0, 3.9, 4.0])


def auc(positive: list[float], negative: list[float], labels: list[str], draws: int = 2, seed: int = 0) -> np.ndarray:
    return measure_auc(np.array(positive), np.array(negative), ClusterSample(labels, draws, seed))


@given(scores=st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=12))
def test_it_is_that_of_mann_whitney(scores: list[tuple[float, float]]) -> None:
    positive, negative = map(list, zip(*scores, strict=True))
    labels = [str(number) for number in range(len(scores))]
    expected = mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative))
    assert auc(positive, negative, labels)[0] == pytest.approx(expected, abs=1e-12)
    assert auc(negative, positive, labels)[0] == pytest.approx(1 - expected, abs=1e-12)


def test_ties_count_half() -> None:
    assert auc([3.0, 2.0], [2.0, 1.0], ["a", "b"])[0] == 0.875
    assert auc([1.0], [1.0], ["a"])[0] == 0.5


@pytest.mark.parametrize(("positive", "negative"), [([], []), ([float("nan")], [1.0]), ([1.0, 2.0], [0.0, 0.5])])
def test_each_observation_has_two_scores(positive: list[float], negative: list[float]) -> None:
    with pytest.raises(ValueError, match="two finite scores for each of 1 observations"):
        measure_auc(np.array(positive), np.array(negative), ClusterSample(["a"], 2, 0))


def test_draws_are_those_of_repeated_observations() -> None:
    """Each draw by hand: the observations of a cluster repeated as often as it was drawn."""
    chance = random.Random(3)
    labels = ["a"] * 4 + ["b"] * 2 + ["c"] * 3 + ["d"]
    positive = [chance.choice([1.0, 2.0, 3.0, 4.0]) for _ in labels]
    negative = [chance.choice([0.0, 1.0, 2.0, 3.0]) for _ in labels]
    expected = []
    for weights in draw_weights(4, 50, seed=5):
        times = dict(zip("abcd", weights.tolist(), strict=True))
        good = [score for score, label in zip(positive, labels, strict=True) for _ in range(times[label])]
        bad = [score for score, label in zip(negative, labels, strict=True) for _ in range(times[label])]
        expected.append(mannwhitneyu(good, bad).statistic / len(good) ** 2)
    assert auc(positive, negative, labels, 50, 5)[1:].tolist() == pytest.approx(expected, abs=1e-12)


def test_interval_covers_the_truth() -> None:
    """Both scores from the same normal distribution, alike within a cluster: the AUC is one half."""
    covered = 0
    labels = [str(number) for number in range(40) for _ in range(3)]
    for trial in range(100):
        draw = np.random.default_rng(trial)
        shared = np.repeat(draw.normal(size=(2, 40)), 3, axis=1)
        positive, negative = (shared + draw.normal(size=(2, 120))).tolist()
        drawn = auc(positive, negative, labels, 400, trial)
        interval = percentile_interval(drawn[0], drawn[1:])
        covered += interval.low <= 0.5 <= interval.high
    assert 85 <= covered <= 100
