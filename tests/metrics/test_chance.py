"""The level of blind guesses: against every way to guess, and by chance."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from esc_lab.metrics.chance import chance_levels, describe_chance, expected_macro_f1
from tests.statistics.samples import plain_macro_f1


def decisions(golds, classes):
    marks = np.zeros((len(golds), classes), bool)
    for row, gold in zip(marks, golds, strict=True):
        row[list(gold)] = True
    first = np.array([gold[0] for gold in golds])
    return SimpleNamespace(strategies=[*map(str, range(classes))], gold=marks, first=first)


def scored(guesses, golds):
    """Macro-F1 with gold = the guess where it is in the set, else the first."""
    return plain_macro_f1(guesses, [g if g in gold else gold[0] for g, gold in zip(guesses, golds, strict=True)])


def test_expectation_is_over_all_ways_to_guess():
    golds = [(0,), (0, 1), (1,), (2, 0), (0, 1, 2)]
    shares = np.array([0.5, 0.3, 0.2])
    # A class that occurs in neither guess nor gold has F1 = 0 here, while macro-F1 leaves it out.
    expected = 0.0
    for guesses in itertools.product(range(3), repeat=len(golds)):
        gold = [g if g in own else own[0] for g, own in zip(guesses, golds, strict=True)]
        present = len({*guesses, *gold})
        expected += math.prod(shares[list(guesses)]) * scored(guesses, golds) * present / 3
    assert expected_macro_f1(decisions(golds, 3), shares) == pytest.approx(expected, abs=1e-12)


def test_expectation_of_many_decisions_is_what_guessing_gives():
    draw = np.random.default_rng(0)
    golds = [tuple(draw.permutation(8)[: draw.integers(1, 4)].tolist()) for _ in range(1500)]
    test = decisions(golds, 8)
    shares = np.bincount(test.first, minlength=8) / len(golds)
    scores = [scored(draw.choice(8, size=len(golds), p=shares).tolist(), golds) for _ in range(60)]
    slack = 4 * np.std(scores) / math.sqrt(len(scores))
    assert chance_levels(test)["chance/prior_Q"] == pytest.approx(np.mean(scores), abs=slack)


def test_levels_by_hand():
    golds = [(0,), (0,), (1,), (1, 0)]
    found = chance_levels(decisions(golds, 3))
    assert found["chance/prior_accuracy"] == pytest.approx((0.5 + 0.5 + 0.5 + 1) / 4)
    assert found["chance/majority_accuracy"] == 0.75
    assert found["chance/majority_Q"] == pytest.approx(scored([0, 0, 0, 0], golds))
    text = describe_chance(found)
    assert text.startswith("By chance: Q 0.")
    assert "acc 0.750 (always the most common)." in text


def test_sets_raise_the_level():
    alone = chance_levels(decisions([(number % 4,) for number in range(80)], 4))
    sets = chance_levels(decisions([(number % 4, (number + 1) % 4) for number in range(80)], 4))
    assert alone["chance/prior_accuracy"] == pytest.approx(0.25)
    assert sets["chance/prior_accuracy"] == pytest.approx(0.5)
    assert sets["chance/prior_Q"] > alone["chance/prior_Q"] + 0.2
