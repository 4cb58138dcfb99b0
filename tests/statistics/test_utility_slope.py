"""Slopes over planted utilities: those of least squares, and of what a sample of pairs says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from esc_lab.data.planted import collect_messages, draw_dialogues, draw_utilities
from esc_lab.statistics.utility_slope import fit_pairs_slope, fit_slope
from tests.data.test_planted import ESCONV, pairs


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
