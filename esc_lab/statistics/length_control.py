"""Win rates at equal length, after length-controlled AlpacaEval (Dubois et al. 2024, arXiv 2404.04475, eq. 1 and 2).

Judges like long replies. So the outcome of a pair is modelled by who wrote the reply and by the difference in length,
and the length-controlled win rate is what the model says at a difference of zero:

    P(win) = logistic(theta + phi * tanh(d / std(d)))        d = length of the run's reply - length of the baseline's
    length-controlled win rate = logistic(theta)

The published model has one more term, the difficulty of each instruction, which takes many runs to estimate; with it
left out the mean over the decisions in eq. 2 is over equal values. As there, phi is held back by a weak L2 penalty.

Fitted here and not by a library, since every draw of a bootstrap is a fit with weights of its own, and outcomes are
shares: all draws are fitted at once, in some milliseconds. Tests hold the fit to a general optimiser.
"""

from __future__ import annotations

import math

import numpy as np

from esc_lab.statistics.intervals import FloatArray

# Standard deviation of the normal prior of phi (its penalty is phi**2 / (2 * PRIOR**2)); theta has none.
PRIOR = 2.5
_MAX_STEPS = 200
_MAX_NUMBERS = 2_000_000  # in an array of pairs and draws


def length_controlled_win_rate(
    outcome: FloatArray, difference: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Length-controlled win rates and phi, in each draw of a bootstrap.

    The fit maximises the likelihood of the outcomes (a tie counts half to each side) less the penalty. With the penalty
    it is finite, also where the longer reply always wins, unless all outcomes of a draw are wins (or all are losses):
    then theta has no bound, the win rate is 1 (or 0), and phi is 0. Where lengths do not differ it is the win rate.

    Args:
        outcome: [n]; 1 where the run's reply is preferred, 0 where the baseline's is, 0.5 for a tie.
        difference: [n], length of the run's reply minus that of the baseline's.
        weights: [draws, n], how often a draw has each pair.

    Returns:
        [draws] each; nan where a draw has no pair.
    """
    scale = difference.std() if len(difference) else 0.0
    x = np.tanh(difference / scale) if scale > 0 else np.zeros(len(difference))
    size = max(1, _MAX_NUMBERS // max(1, len(outcome)))
    parts = [_fit(outcome, x, weights[start : start + size]) for start in range(0, len(weights), size)]
    theta, phi = np.concatenate(parts, axis=1)
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-theta)), phi


def _fit(y: FloatArray, x: FloatArray, weights: FloatArray) -> FloatArray:
    """theta and phi [2, draws] by Newton's method."""
    total, won = weights.sum(axis=1), weights @ y
    fitted = np.zeros((2, len(weights)))
    fitted[0] = np.where(total > 0, np.where(won == 0, -math.inf, math.inf), math.nan)
    bounded = np.flatnonzero((won > 0) & (won < total))
    w, theta, phi = weights[bounded], np.zeros(len(bounded)), np.zeros(len(bounded))
    for _ in range(_MAX_STEPS):
        p = 1 / (1 + np.exp(-(theta[:, None] + phi[:, None] * x)))
        residual, curvature = w * (y - p), w * p * (1 - p)
        g0, g1 = residual.sum(axis=1), residual @ x - phi / PRIOR**2
        h00, h01, h11 = curvature.sum(axis=1), curvature @ x, curvature @ x**2 + 1 / PRIOR**2
        determinant = h00 * h11 - h01**2
        step = np.stack([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0]) / determinant
        # Shortened so that no step overshoots (generalised self-concordance; Sun and Tran-Dinh 2019).
        size = math.sqrt(2) * np.hypot(*step)
        step *= np.where(size > 0, np.log1p(size) / np.where(size > 0, size, 1), 1)
        theta, phi = theta + step[0], phi + step[1]
        if not len(bounded) or np.abs(step).max() < 1e-10:
            break
    fitted[:, bounded] = theta, phi
    return fitted
