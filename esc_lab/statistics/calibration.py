"""Calibration of a score of pairs: its temperature, and how far its confidence is from how often it is right."""

from __future__ import annotations

import numpy as np

from esc_lab.statistics.intervals import FloatArray

BINS = 10
_STEPS = 100
_RANGE = (-5.0, 5.0)  # of the temperature's logarithm


def fit_temperature(difference: FloatArray) -> float:
    """The temperature T with the greatest likelihood of `logistic(d / T)`, after Guo et al. (2017, arXiv 1706.04599).

    Args:
        difference: [n], score of the better less that of the worse reply of each pair.

    Returns:
        1 without pairs. The likelihood has one maximum in 1 / T, which is found by bisection of its derivative; where
        it has none (all pairs are right, or wrong), the end of the range that is searched, e**-5 or e**5.
    """
    if not len(difference):
        return 1.0
    low, high = _RANGE
    for _ in range(_STEPS):
        middle = (low + high) / 2
        scaled = difference * np.exp(-middle)
        # Derivative of the mean log-likelihood by 1 / T; positive: differences have to count more, so T has to fall.
        slope = float((difference * _logistic(-scaled)).mean())
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(np.exp((low + high) / 2))


def calibration_error(difference: FloatArray) -> float:
    """Expected calibration error (Naeini et al. 2015) of `logistic(d)` over pairs, in ten bins; nan without pairs.

    The confidence of a pair is the probability of the reply that is preferred, from one half to 1; it is right where
    that is the better one, and half right where the scores are equal.

    Args:
        difference: [n], calibrated score of the better less that of the worse reply of each pair.
    """
    if not len(difference):
        return float("nan")
    confidence = _logistic(np.abs(difference))
    right = np.heaviside(difference, 0.5)
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    gap = np.bincount(bins, confidence, BINS) - np.bincount(bins, right, BINS)
    return float(np.abs(gap[count > 0]).sum() / len(difference))


def _logistic(x: FloatArray) -> FloatArray:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))
