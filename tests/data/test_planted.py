"""Planted preferences: the data say what they should, and CSO learns it, its reverse, or nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from esc_lab.data.planted import (
    ORDERS,
    SPREAD,
    collect_messages,
    draw_dialogues,
    draw_utilities,
)
from esc_lab.data.strategies import load_inventory
from tests.e2e.conftest import execute

ESCONV = load_inventory("esconv")


def pairs(dialogues):
    """(chosen, rejected) strategies of every pair."""
    return [
        (turn.reply.strategies[0], turn.rejected[0].strategies[0])
        for dialogue in dialogues
        for turn in dialogue.turns
        if turn.speaker == "supporter"
    ]


def test_utilities_are_a_permutation_that_the_seed_decides():
    first, again, other = (draw_utilities(ESCONV, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert sorted(first) == pytest.approx(np.linspace(-SPREAD, SPREAD, len(ESCONV)))


def test_preferences_follow_bradley_and_terry(sample_dialogues):
    utilities = dict(zip(ESCONV.names, draw_utilities(ESCONV, 3), strict=True))
    texts = collect_messages(sample_dialogues)
    dialogues = draw_dialogues(ESCONV, np.array(list(utilities.values())), 30_000, texts, 3)
    wins = Counter(pairs(dialogues))
    assert sum(wins.values()) == 30_000
    for number, a in enumerate(ESCONV.names):
        for b in ESCONV.names[number + 1 :]:
            shown = wins[a, b] + wins[b, a]
            expected = 1 / (1 + np.exp(utilities[b] - utilities[a]))
            assert abs(wins[a, b] / shown - expected) < 4 * np.sqrt(expected * (1 - expected) / shown)


def test_orders_differ_in_what_is_preferred_only(sample_dialogues):
    utilities, texts = draw_utilities(ESCONV, 1), collect_messages(sample_dialogues)
    made = {order: draw_dialogues(ESCONV, utilities, 100, texts, 1, order) for order in ORDERS}
    assert [len(dialogue.turns) // 2 for dialogue in made["planted"]] == [3] * 33 + [1]
    planted, swapped, shuffled = (pairs(made[order]) for order in ORDERS)
    assert swapped == [(b, a) for a, b in planted]
    assert [set(pair) for pair in shuffled] == [set(pair) for pair in planted]
    assert 25 < sum(a == b for a, b in zip(shuffled, planted, strict=True)) < 75
    for turns in zip(*(dialogue.turns for dialogue in (made[order][0] for order in ORDERS)), strict=True):
        assert len({turn.reply.text for turn in turns}) == 1
        assert all(reply.text == turns[0].reply.text for turn in turns for reply in turn.rejected)


def test_cso_learns_what_its_pairs_say(tmp_path):
    words = ("planted.pairs=180", "planted.held_out=30", "planted.seeds=1", "data.step_pairs=12")
    outcome = execute(tmp_path, "experiment=planted_preference", *words)
    assert outcome.status == 0, outcome.errors
    metrics = outcome.metrics
    assert 0.4 < metrics["planted/slope_times_beta"] < 1.1
    assert -1.1 < metrics["swapped/slope_times_beta"] < -0.4
    assert abs(metrics["shuffled/slope"]) < 0.2 * metrics["planted/slope"]
    assert {entry["order"] for entry in outcome.read("slopes.json")} == set(ORDERS)
    assert "in the pairs" in outcome.output
    assert metrics["planted/pairs_slope"] == pytest.approx(-metrics["swapped/pairs_slope"])
