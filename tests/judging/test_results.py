"""Outcomes of pairs, and win rates with their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from esc_lab.judging.results import Pair, summarize_pairs, summarize_rubric
from esc_lab.search.role_prompts import Axis
from esc_lab.statistics.bootstrap import ClusterSample


@pytest.mark.parametrize(
    ("first", "second", "consistent", "outcome"),
    [
        (1, 1, True, 1), (0, 0, True, 0), (1, 0, False, 0.5), (0, 1, False, 0.5),
        (0.6, 0.51, True, 1), (0.4, 0.2, True, 0), (0.9, 0.4, False, 0.5), (0.5, 0.9, False, 0.5),
        (None, 1, None, None), (1, None, None, None),
    ],
)  # fmt: skip
def test_both_orders_make_an_outcome(first, second, consistent, outcome):
    pair = Pair(first, second, 3)
    assert (pair.consistent, pair.outcome) == (consistent, outcome)


def test_identical_replies_are_a_tie_that_says_nothing_of_consistency():
    pair = Pair(None, None, 0, identical=True)
    assert (pair.consistent, pair.outcome) == (None, 0.5)


def test_result_counts_and_leaves_out_what_is_missing():
    pairs = [Pair(1, 1, 5), Pair(1, 1, 0), Pair(0, 0, -9), Pair(1, 0, 2), Pair(None, 1, 8), Pair(None, None, 0, True)]
    found = summarize_pairs(pairs, ClusterSample(list("aabbcc"), 500, 1))
    assert (found.wins, found.ties, found.losses, found.identical, found.missing) == (2, 2, 1, 1, 1)
    assert found.win_rate.value == pytest.approx((2 + 2 / 2) / 5)
    assert found.consistency.value == pytest.approx(3 / 4)
    assert found.win_rate.low < found.win_rate.value < found.win_rate.high
    assert found.length_controlled.low <= found.length_controlled.value <= found.length_controlled.high


def test_interval_at_equal_length():
    """Where lengths are equal it is that of the win rate; elsewhere that of fits to whole dialogues drawn anew."""
    draw = np.random.default_rng(4)
    trees = [f"d{n % 12}" for n in range(60)]
    won = draw.integers(0, 2, size=60)
    alike = summarize_pairs([Pair(one, one, 3) for one in won], ClusterSample(trees, 300, 1))
    assert alike.length_controlled.value == pytest.approx(alike.win_rate.value)
    assert alike.length_controlled.low == pytest.approx(alike.win_rate.low)
    assert alike.length_controlled.high == pytest.approx(alike.win_rate.high)
    assert alike.win_rate.high - alike.win_rate.low > 0.1


def test_nothing_known_is_not_a_number():
    found = summarize_pairs([Pair(None, None, 1), Pair(None, 1, 2)], ClusterSample(["a", "b"], 50, 1))
    assert math.isnan(found.win_rate.value)
    assert math.isnan(found.length_controlled.value)
    assert math.isnan(found.consistency.value)
    assert found.missing == 2


def test_one_dialogue_has_no_interval():
    found = summarize_pairs([Pair(1, 1, 1), Pair(0, 0, 2)], ClusterSample(["a", "a"], 50, 1))
    assert found.win_rate.value == 0.5
    assert math.isnan(found.win_rate.low)
    assert math.isnan(found.length_controlled.low)


def test_rubric_means():
    axes = [Axis("warmth", 0.25, "x"), Axis("strategy", 0.75, "y")]
    scores = [{"warmth": 4.0, "strategy": 2.0}, None, {"warmth": 0.0, "strategy": 4.0}]
    found = summarize_rubric(scores, axes, ClusterSample(["a", "b", "c"], 200, 1))
    assert {name: one.value for name, one in found.means.items()} == {"warmth": 2, "strategy": 3, "overall": 2.75}
    assert (found.replies, found.missing) == (2, 1)
    assert (found.means["overall"].low, found.means["overall"].high) == (2.5, 3)
