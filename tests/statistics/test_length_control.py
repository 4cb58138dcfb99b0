"""Length-controlled win rates against a general optimiser, and where plain logistic regression has no answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, xlog1py, xlogy

from esc_lab.statistics.length_control import PRIOR, length_controlled_win_rate


def optimised(outcome, difference, weights):
    """Win rate and phi at the maximum of the penalised likelihood, as SciPy finds it."""
    x = np.tanh(difference / difference.std())

    def loss(parameters):
        p = expit(parameters[0] + parameters[1] * x)
        likelihood = xlogy(outcome, p) + xlog1py(1 - outcome, -p)
        return -(weights * likelihood).sum() + parameters[1] ** 2 / (2 * PRIOR**2)

    theta, phi = minimize(loss, (0.0, 0.0), method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-13}).x
    return expit(theta), phi


def test_against_scipy():
    draw = np.random.default_rng(1)
    difference = draw.normal(20, 60, size=80)
    outcome = draw.choice([0, 0.5, 1], size=80, p=[0.3, 0.2, 0.5]) * (difference > -40)
    weights = np.stack([np.ones(80), *draw.multinomial(80, np.full(80, 1 / 80), size=5)])
    found = np.stack(length_controlled_win_rate(outcome, difference, weights), axis=1)
    for row, one in zip(found, weights, strict=True):
        assert row == pytest.approx(optimised(outcome, difference, one), abs=1e-6)


def test_a_judge_of_length_alone_finds_no_winner():
    difference = np.repeat([-30.0, 50.0], [30, 70])  # the run is longer in 70 of 100
    outcome = (difference > 0).astype(float)
    assert outcome.mean() == 0.7
    (rate,), (phi,) = length_controlled_win_rate(outcome, difference, np.ones((1, 100)))
    assert rate == pytest.approx(optimised(outcome, difference, np.ones(100))[0], abs=1e-6)
    assert abs(rate - 0.5) < 0.1
    assert phi > 3


def test_a_better_run_that_is_also_longer():
    """Outcomes are drawn with a known theta; the plain win rate is far from it, the controlled one is not."""
    draw = np.random.default_rng(0)
    difference = draw.normal(60, 40, size=20_000)
    x = np.tanh(difference / difference.std())
    outcome = (draw.random(20_000) < expit(0.4 + 1.5 * x)).astype(float)
    rate, phi = length_controlled_win_rate(outcome, difference, np.ones((1, 20_000)))
    assert outcome.mean() > 0.78
    assert rate == pytest.approx(expit(0.4), abs=0.02)
    assert phi == pytest.approx(1.5, abs=0.1)


outcomes = st.lists(st.tuples(st.sampled_from([0, 0.5, 1]), st.integers(-500, 500)), min_size=1, max_size=30)


@given(outcomes)
@settings(max_examples=60)
def test_always_a_share_and_symmetric(pairs):
    outcome, difference = np.array(pairs, dtype=float).T
    every = np.ones((1, len(pairs)))
    (rate,), (phi,) = length_controlled_win_rate(outcome, difference, every)
    assert 0 <= rate <= 1
    assert np.isfinite(phi)
    (other,), (same,) = length_controlled_win_rate(1 - outcome, -difference, every)
    assert other == pytest.approx(1 - rate, abs=1e-7)
    assert same == pytest.approx(phi, abs=1e-6)


@given(outcomes)
@settings(max_examples=30)
def test_equal_lengths_give_the_win_rate(pairs):
    outcome = np.array([one for one, _ in pairs], dtype=float)
    (rate,), (phi,) = length_controlled_win_rate(outcome, np.full(len(pairs), 7.0), np.ones((1, len(pairs))))
    assert (rate, phi) == (pytest.approx(outcome.mean(), abs=1e-9), 0)


def test_separated_outcomes_are_finite():
    """All wins where the run is longer: the likelihood alone has no maximum."""
    difference = np.array([-400.0, -3, 1, 2, 1000])
    (rate,), (phi,) = length_controlled_win_rate((difference > 0).astype(float), difference, np.ones((1, 5)))
    assert 0 < rate < 1
    assert 0 < phi < 10
    rates, effects = length_controlled_win_rate(
        np.array([1.0, 1, 0]), np.array([1.0, 5, 9]), np.array([[1.0, 2, 0], [0, 0, 3], [0, 0, 0]])
    )
    assert rates[:2].tolist() == [1, 0]
    assert effects[:2].tolist() == [0, 0]
    assert np.isnan(rates[2])


def test_steps_do_not_overshoot():
    """Weights of very different size, where full steps of Newton's method end in infinity."""
    draw = np.random.default_rng(7500)
    difference, outcome = draw.standard_t(1, size=10), draw.integers(0, 2, size=10).astype(float)
    weights = np.exp(4 * draw.normal(size=(1, 10)))
    (rate,), (phi,) = length_controlled_win_rate(outcome, difference, weights)
    assert (rate, phi) == pytest.approx(optimised(outcome, difference, weights[0]), abs=1e-4)


def test_many_draws_are_split():
    draw = np.random.default_rng(2)
    outcome, difference = draw.integers(0, 2, 3000).astype(float), draw.normal(size=3000)
    weights = draw.integers(0, 3, size=(1500, 3000)).astype(float)
    rates, _ = length_controlled_win_rate(outcome, difference, weights)
    assert rates[[0, -1]] == pytest.approx(
        [length_controlled_win_rate(outcome, difference, weights[[row]])[0][0] for row in (0, -1)]
    )
