"""Temperature and calibration error against a general optimiser, simulated truth and sums by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from esc_lab.statistics.calibration import calibration_error, fit_temperature


def simulate(temperature: float, n: int = 20_000, seed: int = 0) -> np.ndarray:
    """Differences of the better and the worse of two replies whose probabilities are right at a temperature."""
    chance = np.random.default_rng(seed)
    raw = chance.normal(0, 3, n)
    first_is_better = chance.random(n) < 1 / (1 + np.exp(-raw / temperature))
    return np.where(first_is_better, raw, -raw)


@pytest.mark.parametrize("temperature", [0.5, 1, 2.5])
def test_temperature_is_the_one_of_the_greatest_likelihood(temperature):
    differences = simulate(temperature)
    found = fit_temperature(differences)
    loss = lambda log_t: np.log1p(np.exp(-differences * np.exp(-log_t))).mean()  # noqa: E731
    assert found == pytest.approx(math.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded").x), rel=1e-3)
    assert found == pytest.approx(temperature, rel=0.1)


def test_temperature_without_a_maximum_is_the_end_of_the_range():
    assert fit_temperature(np.array([1.0, 2.0])) == pytest.approx(math.exp(-5))
    assert fit_temperature(np.array([-1.0, -2.0])) == pytest.approx(math.exp(5))
    assert fit_temperature(np.empty(0)) == 1


def test_what_is_calibrated_has_no_error():
    assert calibration_error(simulate(1)) < 0.02
    assert calibration_error(simulate(3)) > 0.1
    assert calibration_error(simulate(3) / 3) < 0.02


def test_error_of_a_few_pairs_by_hand():
    sure = math.log(0.95 / 0.05)  # confidence .95, in the last bin
    assert calibration_error(np.array([sure] * 3 + [-sure])) == pytest.approx(0.95 - 0.75)
    assert calibration_error(np.array([0.0])) == pytest.approx(0)
    assert calibration_error(np.array([sure, 0.0])) == pytest.approx(0.05 / 2)
    assert math.isnan(calibration_error(np.empty(0)))
