"""What log-probabilities and scores of roles come to: priors of a policy, a reward model's share, a turn's score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from esc_lab.prompts.trained import RewardPrompts
from esc_lab.search.iteration import StrategyPriors
from esc_lab.search.role_prompts import Axis


def policy_priors(
    names: Sequence[str], log_probs: Sequence[float], temperature: float, min_prior: float
) -> StrategyPriors:
    """The priors of a policy: shares by `p^(1 / temperature)` of its labels, mixed with `min_prior` for each."""
    weights = np.array(log_probs) / temperature
    shares = np.exp(weights - np.logaddexp.reduce(weights))
    priors = min_prior + (1 - min_prior * len(names)) * shares
    return StrategyPriors(dict(zip(names, priors.tolist(), strict=True)))


def reward_share(judge: RewardPrompts, strategy: str, better: float, strategy_odds: Sequence[float]) -> float:
    """The probability in [0, 1] that a reply beats a middling one, in part that of its strategy alone.

    Args:
        better: log-probability that the reply's words do.
        strategy_odds: log-probabilities that the strategy without words does, and that it does not.
    """
    fits, misfits = strategy_odds
    logit = fits - misfits - judge.strategy_centers.get(strategy, 0.0)
    return (1 - judge.strategy_share) * math.exp(better) + judge.strategy_share / (1 + math.exp(-logit))


def score_turn(scores: Mapping[str, float], axes: Sequence[Axis]) -> float:
    """Weighted mean of a reply's scores, in [0, 4]: with the published weights 0.1 E + 0.1 I + 0.1 H + 0.7 S."""
    return sum(axis.weight * scores[axis.name] for axis in axes)
