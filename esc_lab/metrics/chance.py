"""What blind guesses would score on a test set: the level that Q and accuracy have to be read against.

Where a supporter turn has a set of gold strategies (`data.merge=set`), a guess is right if it is any of them, and gold
is then the guess: the level rises with the size of the sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from esc_lab.metrics.metric import Metric
from esc_lab.metrics.prediction_table import FloatArray, TestSet
from esc_lab.metrics.strategy_choice import accuracy, macro_f1

_MAX_POINTS = 1000  # more change the last digits alone: what is integrated is smooth


def chance_levels(test: TestSet) -> dict[str, float]:
    """Q and accuracy of two guessers that know how common each strategy is (as first gold strategy), and nothing else.

    Returns:
        `chance/prior_Q` and `chance/prior_accuracy`, of one that draws from these shares: exact expectations;
        `chance/majority_Q` and `chance/majority_accuracy`, of one that always says the most common strategy. Decisions
        without a gold strategy are left out; nothing if all are.
    """
    if (known := test.first >= 0).sum() < len(known):
        test = replace(test, first=test.first[known], gold=test.gold[known])
    if not len(test.first):
        return {}
    classes = len(test.strategies)
    shares = np.bincount(test.first, minlength=classes) / len(test.first)
    majority = np.full(len(test.first), shares.argmax())
    right = test.gold[np.arange(len(majority)), majority]
    gold = np.where(right, majority, test.first)
    counts = [np.bincount(numbers, minlength=classes) for numbers in (majority[right], majority, gold)]
    margins = np.stack(counts)[..., None].astype(float)
    return {
        "chance/prior_Q": expected_macro_f1(test, shares),
        "chance/prior_accuracy": float((test.gold @ shares).mean()),
        "chance/majority_Q": float(macro_f1(margins)[0]),
        "chance/majority_accuracy": float(accuracy(margins)[0]),
    }


def describe_chance(levels: Mapping[str, float]) -> str:
    """The levels in a sentence."""
    texts = (
        f"Q {levels[f'chance/{guesser}_Q']:.3f}, acc {levels[f'chance/{guesser}_accuracy']:.3f} {how}"
        for guesser, how in (
            ("prior", "(drawn by the gold shares)"),
            ("majority", "(always the most common)"),
        )
    )
    return f"By chance: {'; '.join(texts)}."


def expected_macro_f1(test: TestSet, shares: FloatArray) -> float:
    """Expected macro-F1 of guesses that are drawn for each decision on its own; over the strategies that can occur.

    Of a class let X be the hits and Y the other guesses and misses of it, so that F1 = 2 X / (2 X + Y). With
    G_d(t) = a_d t^2 + b_d t + c_d, in which a_d, b_d and c_d are the chances that decision d is a hit, one of the
    others, or neither, E[F1] = 2 * integral over t from 0 to 1 of t * sum_d a_d * product over the others of G_e(t):
    a polynomial, which Gauss and Legendre's rule integrates exactly with as many points as there are decisions.

    Args:
        test: the decisions.
        shares: [classes], of each strategy among the guesses.
    """
    points, weights = np.polynomial.legendre.leggauss(min(len(test.first), _MAX_POINTS))
    t, weights = (points + 1) / 2, weights / 2
    missed = 1 - test.gold @ shares
    scores = []
    for number, share in enumerate(shares):
        hit = np.where(test.gold[:, number], share, 0.0)
        other = np.where(test.gold[:, number], 0.0, share)  # guessed in vain
        other = other + np.where(test.first == number, missed, 0.0)  # and what was to be guessed and nothing right was
        if not (hit + other).any():
            continue
        kinds, counts = np.unique(np.stack([hit, other], axis=1), axis=0, return_counts=True)
        generating = 1 + kinds[:, :1] * (t**2 - 1) + kinds[:, 1:] * (t - 1)  # [kinds, points]
        product = np.exp(counts @ np.log(generating))
        scores.append(2 * float(weights @ (t * product * ((counts * kinds[:, 0]) @ (1 / generating)))))
    return math.fsum(scores) / len(scores)


def _level(name: str, heading: str, meaning: str) -> Metric:
    return Metric(f"chance/{name}", heading, None, count="decisions", meaning=meaning)


METRICS = (
    _level("prior_Q", "Q by prior", "Q of guesses drawn from the shares of the strategies in the test set, expected."),
    _level("prior_accuracy", "acc by prior", "Accuracy of guesses drawn from the shares of the strategies, expected."),
    _level("majority_Q", "Q by majority", "Q of always choosing the strategy that is most common in the test set."),
    _level("majority_accuracy", "acc by majority", "Accuracy of always choosing the most common strategy."),
)
