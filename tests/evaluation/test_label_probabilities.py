"""Probabilities of strategies from served alternatives, against the sum over all replies of a model that is known."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from esc_lab.evaluation.label_probabilities import read_label_probabilities

NAMES = ("Question", "Reflection", "Restatement", "Others")


class Toy:
    """A model over a handful of tokens: the next one's probabilities depend on the text so far."""

    def __init__(self, seed: int, pieces: Mapping[str, tuple[str, ...]]) -> None:
        self._draw = np.random.default_rng(seed)
        self._labels = {name: ("(", *parts, ")") for name, parts in pieces.items()}
        self._known: dict[tuple[str, ...], dict[str, float]] = {}

    def next(self, path: tuple[str, ...]) -> dict[str, float]:
        """Of each token; what is neither a label nor on the way to one is `I`, with more to come."""
        if path not in self._known:
            after = {label[len(path)] for label in self._labels.values() if label[: len(path)] == path != label}
            # Once a token tells the label from the others, the model finishes it.
            certain = sum(label[: len(path)] == path for label in self._labels.values()) == 1
            tokens = sorted(after) if certain else [*sorted(after), "I"]
            shares = self._draw.dirichlet(np.ones(len(tokens)))
            self._known[path] = dict(zip(tokens, shares.tolist(), strict=True))
        return self._known[path]

    def brute_force(self) -> np.ndarray:
        """Probability of each complete label."""
        labels = self._labels.values()
        return np.array([math.prod(self.next(label[:n])[label[n]] for n in range(len(label))) for label in labels])

    def served(self, name: str) -> tuple:
        """What an endpoint serves with a reply that begins with a label."""
        rows = []
        for n, token in enumerate(self._labels[name]):
            shares = self.next(self._labels[name][:n])
            others = sorted((other for other in shares if other != token), key=shares.__getitem__, reverse=True)
            rows.append(tuple((other, math.log(shares[other])) for other in (token, *others)))
        return tuple(rows)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("written", ["Question", "Others"])
def test_probabilities_are_exact_where_first_tokens_tell_labels_apart(seed, written):
    toy = Toy(seed, {"Question": ("Quest", "ion"), "Reflection": ("Ref", "lection"), "Restatement": ("Rest", "atement"),
                     "Others": ("Others",)})  # fmt: skip
    shares, mass = read_label_probabilities(toy.served(written), NAMES)
    expected = toy.brute_force()
    assert mass == pytest.approx(expected.sum())
    np.testing.assert_allclose([shares[name] for name in NAMES], expected / expected.sum(), rtol=1e-9)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("written", NAMES)
def test_a_token_that_several_labels_begin_with(seed, written):
    """On the path of the reply it is followed further; beside it, it is shared, and the other labels stay exact."""
    toy = Toy(seed, {"Question": ("Question",), "Reflection": ("Re", "flection"), "Restatement": ("Re", "statement"),
                     "Others": ("Others",)})  # fmt: skip
    shares, mass = read_label_probabilities(toy.served(written), NAMES)
    expected = toy.brute_force()
    own = np.array([shares[name] for name in NAMES]) * mass
    if written in ("Reflection", "Restatement"):
        np.testing.assert_allclose(own, expected, rtol=1e-9)
    else:
        np.testing.assert_allclose(own[[0, 3]], expected[[0, 3]], rtol=1e-9)
        assert own[1] == pytest.approx(own[2])
        assert own[1] == pytest.approx(toy.next(("(",))["Re"] * toy.next(())["("] / 2)


def test_brackets_case_spaces_and_tokens_that_hold_more_than_a_label():
    half = math.log(0.5)
    rows = (((" [question] What", half), ("(Others", math.log(0.25)), ("Hello", math.log(0.25))),)
    shares, mass = read_label_probabilities(rows, NAMES)
    assert mass == pytest.approx(0.75)
    assert shares == pytest.approx({"Question": 2 / 3, "Others": 1 / 3, "Reflection": 0, "Restatement": 0})


@pytest.mark.parametrize(
    "rows",
    [
        (),
        ((("I", -0.1), ("You", -2.0)), (("(Question)", 0.0),)),  # a label later in the reply is none
        (((" ", -0.1), ("(", -2.0)),),  # any label may follow
    ],
)
def test_where_no_label_can_be_seen_nothing_is_said(rows):
    assert read_label_probabilities(rows, NAMES) == (None, 0.0)


def test_an_alternative_that_any_label_may_follow_says_nothing():
    rows = ((("(", math.log(0.5)), (" ", math.log(0.4))), (("Question", math.log(0.8)), ("Others", math.log(0.2))))
    shares, mass = read_label_probabilities(rows, NAMES)
    assert mass == pytest.approx(0.5)
    assert shares["Question"] == pytest.approx(0.8)
