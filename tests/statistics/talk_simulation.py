"""Talks of two supporters with the same seekers, whose truth is planted: how often intervals hold it."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from esc_lab.metrics.metric import mean
from esc_lab.statistics.crossed_effects import SeedTable, estimate_mean, influence, subtract

EFFECT, OF_CARD, NOISE = 0.3, 0.4, 0.3  # of the supporter, its spread between cards (whose own is 1), of a talk
LIMIT = 0.5  # success above it


def tabulate(values: np.ndarray, cluster: np.ndarray) -> SeedTable:
    sums = np.stack([np.bincount(cluster, values), np.bincount(cluster)])
    return SeedTable(np.array([values.mean()]), influence(sums, mean)[None], np.ones(sums.shape[1], bool))


def count_covered(
    cards: int, talks: int, repeats: int, seed: int, *, success: bool = False, apart: bool = False
) -> tuple[int, int, int]:
    """How many differences in relief (or in success) have an interval, how many of these hold the truth, and how many
    tests of supporters that are equal but by card and talk find a difference. `apart`: talks count as if each had a
    card of its own.
    """
    draw, number = np.random.default_rng(seed), cards * talks
    cluster = np.arange(number) if apart else np.repeat(np.arange(cards), talks)

    def interval(effect: float):
        seeker = draw.normal(size=cards)
        means = seeker, seeker + draw.normal(effect, OF_CARD, cards)
        values = [np.repeat(of_card, talks) + draw.normal(0, NOISE, number) for of_card in means]
        values = [(of > LIMIT).astype(float) for of in values] if success else values
        base, other = (tabulate(of, cluster) for of in values)
        return estimate_mean(subtract(other, base)).interval()

    def rate(effect: float, spread: float) -> float:
        return norm.sf(LIMIT, effect, np.sqrt(1 + NOISE**2 + spread**2))

    # The first supporter has no spread of its own: in success equal supporters differ by that, too.
    truth = {e: rate(e, OF_CARD) - rate(0, 0) if success else e for e in (0.0, EFFECT)}
    known = covered = different = 0
    for _ in range(repeats):
        found, equal = interval(EFFECT), interval(0.0)
        known += not np.isnan(found.low)
        covered += found.low <= truth[EFFECT] <= found.high
        different += equal.low > truth[0.0] or equal.high < truth[0.0]
    return known, covered, different
