"""Planted preferences: the data say what they should, and CSO learns it, its reverse, or nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from esc_lab.data.planted import (
    ORDERS,
    SPREAD,
    collect_messages,
    draw_dialogues,
    draw_utilities,
)
from esc_lab.data.strategies import load_inventory
from esc_lab.statistics.utility_slope import fit_pairs_slope, fit_slope
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


def test_slope_is_that_of_least_squares_with_a_constant_for_each_turn():
    draw = np.random.default_rng(0)
    utilities = draw.normal(size=8)
    ratios = 3 * utilities + draw.normal(size=(40, 1)) + 0.5 * draw.normal(size=(40, 8))
    found = fit_slope(ratios, utilities)
    design = np.concatenate([np.tile(utilities, 40)[:, None], np.kron(np.eye(40), np.ones((8, 1)))], axis=1)
    expected = np.linalg.lstsq(design, ratios.ravel(), rcond=None)[0][0]
    assert found.slope == pytest.approx(expected, rel=1e-9)
    by_turn = [np.polyfit(utilities, row, 1)[0] for row in ratios]
    assert found.error == pytest.approx(np.std(by_turn, ddof=1) / np.sqrt(40))
    assert 0.9 < found.correlation < 1


def test_what_the_pairs_say(sample_dialogues):
    """The fitted utilities of many pairs are the planted ones, and those that a general optimiser finds."""
    utilities, texts = draw_utilities(ESCONV, 2), collect_messages(sample_dialogues)
    assert fit_pairs_slope(draw_dialogues(ESCONV, utilities, 20_000, texts, 2), ESCONV, utilities) == pytest.approx(
        1, abs=0.05
    )
    few = draw_dialogues(ESCONV, utilities, 60, texts, 2)
    outcomes = [(ESCONV.index(a), ESCONV.index(b)) for a, b in pairs(few)]
    fitted = torch.zeros(len(ESCONV), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([fitted], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -sum(torch.nn.functional.logsigmoid(fitted[a] - fitted[b]) for a, b in outcomes)
        value.backward()
        return value

    optimizer.step(loss)
    expected = np.polyfit(utilities, fitted.detach().numpy(), 1)[0]
    assert fit_pairs_slope(few, ESCONV, utilities) == pytest.approx(expected, abs=1e-3)


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
