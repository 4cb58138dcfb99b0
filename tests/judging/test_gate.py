"""What a judge has to do before it is believed."""

from __future__ import annotations

import asyncio
import math

import pytest

from esc_lab.judging.gate import Gate, check_pairwise, check_rubric
from esc_lab.judging.inputs import build_history
from esc_lab.judging.results import Pair
from tests.judging.evaluations import decisions, sample

DIALOGUES = sample(6)
GIVEN = {build_history(d, turn): d.turns[turn].reply.text for d, turn in decisions(DIALOGUES)}


@pytest.mark.parametrize(
    ("value", "low", "passed"),
    [(0.6, 0.51, True), (0.59, 0.55, False), (0.8, 0.5, False), (1, 1, True), (math.nan, math.nan, False)],
)
def test_rule(value, low, passed):
    assert Gate("rubric", value, low, 1, 10, 5, 0.6).passed is passed


def shares(prefers) -> Gate:
    """The gate of a judge whose `prefers(history, one, other)` says whether it takes the first."""

    async def compare(history, one, other):
        return Pair(float(prefers(history, one, other)), 1 - float(prefers(history, other, one)), 0)

    return asyncio.run(check_pairwise(compare, DIALOGUES, 30, 0.6, 1))


def test_a_judge_that_knows_the_given_replies_passes():
    gate = shares(lambda history, one, other: one.reply.text == GIVEN.get(history))
    assert (gate.value, gate.low, gate.contexts, gate.dialogues) == (1, 1, 30, 6)
    assert gate.passed
    assert gate.text == "pairwise judge: share 1.00 [1.00, 1.00] of gold preferred to shuffled replies (30 contexts)"


def test_judges_of_position_and_of_length_do_not():
    first = shares(lambda history, one, other: True)
    assert (first.value, first.low, first.passed) == (0.5, 0.5, False)
    longer = shares(lambda history, one, other: len(one.reply.text) > len(other.reply.text))
    assert longer.value == pytest.approx(0.5, abs=0.15)
    assert not longer.passed


def test_a_judge_without_answers_does_not():
    async def compare(history, one, other):
        return Pair(None, 1, 0)

    async def score(history):
        return None

    pairwise = asyncio.run(check_pairwise(compare, DIALOGUES, 4, 0.6, 1))
    rubric = asyncio.run(check_rubric(score, DIALOGUES, 4, 0.6, 1))
    for gate in (pairwise, rubric):
        assert not gate.passed
        assert gate.text == f"{gate.judge} judge: no usable answer"


def test_rubric_gate_is_the_check_of_the_search():
    async def score(history):
        return float(history[-1].reply.text == GIVEN.get(tuple(history[:-1])))

    gate = asyncio.run(check_rubric(score, DIALOGUES, 20, 0.6, 1))
    assert (gate.value, gate.low, gate.passed) == (1, 1, True)
    assert gate.text.startswith("rubric judge: AUC 1.00")
