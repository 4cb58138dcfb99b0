"""Slopes over planted utilities: of what a policy learned, and of what a finite sample of preference pairs says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory
from esc_lab.statistics.intervals import FloatArray


@dataclass(frozen=True)
class Slope:
    """Regression of log-ratios on utilities, each turn about its own mean."""

    slope: float  # least squares, in nats per unit of utility
    error: float  # its standard error over turns
    correlation: float  # of both, over all turns and strategies


def fit_pairs_slope(dialogues: Sequence[Dialogue], inventory: Inventory, utilities: FloatArray) -> float:
    """What a finite sample of pairs says: slope of its fitted Bradley-Terry utilities over the planted ones.

    A policy with the same log-ratios at every turn that minimises DPO's loss on these pairs has this slope over beta.
    """
    turns = [turn for dialogue in dialogues for turn in dialogue.turns if turn.rejected]
    wins = np.zeros((len(turns), len(inventory)))
    for number, turn in enumerate(turns):
        wins[number, inventory.index(turn.reply.strategies[0])] += 1
        wins[number, inventory.index(turn.rejected[0].strategies[0])] -= 1
    fitted = np.zeros(len(inventory))
    for _ in range(50):  # Newton's method; the small ridge fixes the sum, which the pairs leave open
        lost = 1 / (1 + np.exp(wins @ fitted))
        curvature = (wins * (lost * (1 - lost))[:, None]).T @ wins + 1e-6 * np.eye(len(fitted))
        fitted += np.linalg.solve(curvature, wins.T @ lost - 1e-6 * fitted)
    x = utilities - utilities.mean()
    return float(fitted @ x / (x @ x))


def fit_slope(log_ratios: FloatArray, utilities: FloatArray) -> Slope:
    """Slope of log-ratios of policy and reference [turns, K] over utilities [K]."""
    x = utilities - utilities.mean()
    y = log_ratios - log_ratios.mean(axis=1, keepdims=True)
    slopes = y @ x / (x @ x)
    correlation = np.corrcoef(np.broadcast_to(x, y.shape).ravel(), y.ravel())[0, 1] if y.any() else 0.0
    error = slopes.std(ddof=1) / np.sqrt(len(slopes)) if len(slopes) > 1 else np.nan
    return Slope(float(slopes.mean()), float(error), float(correlation))
