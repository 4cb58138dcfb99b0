"""Measures of whole talks against values by hand and a computation of their own."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.evaluation.arena.measures import describe_talks, entropy, measure_talk, measure_talks


def talk(*turns: tuple[str, ...], ends: str = "max_turns", intensity: tuple[float | None, ...] = ()) -> Dialogue:
    """A talk of turns (seeker's text,) and (strategy, supporter's text), after the greeting."""
    said = [Turn("supporter", Reply("Hello, what can I do for you?"))]
    for turn in turns:
        if len(turn) == 1:
            said.append(Turn("seeker", Reply(turn[0])))
        else:
            said.append(Turn("supporter", Reply(turn[1], (turn[0],) if turn[0] else ())))
    return Dialogue(tuple(said), "esconv", tree_id=f"t{len(said)}", meta={"ends": ends, "intensity": [*intensity]})


ONE = talk(
    ("I lost my job at the shop.",),
    ("Question", "You lost my job at the shop?"),  # 4 runs, 3 of the seeker's
    ("Yes.",),
    ("Question", "How was it for you?"),  # 2 runs
    ("Bad, how was it for you?",),
    ("Others", "How was it for you, then."),  # 3 runs: 2 said by both before
    ends="seeker",
    intensity=(4.0, 3.5, None, 2.0),
)


def test_a_talk_by_hand():
    assert measure_talk(ONE, success=2.0, max_turns=10) == {
        "turns": 3,
        "supporter_words": pytest.approx((7 + 5 + 6) / 3),
        "seeker_words": pytest.approx((7 + 1 + 6) / 3),
        "repeated": pytest.approx(2 / 9),
        "echoed": pytest.approx(5 / 9),
        "asks": pytest.approx(2 / 3),
        "labelled": 1,
        "strategies": 2,
        "strategy_repeats": 0.5,
        "ended_by_seeker": 1,
        "intensity_start": 4,
        "intensity_end": 2,
        "relief": 2,
        "success": 1,
        "turns_to_success": 3,
    }
    strict = measure_talk(ONE, success=1.5, max_turns=10)
    assert (strict["success"], strict["turns_to_success"]) == (0, 10)


def test_what_a_talk_does_not_have_is_missing():
    empty = measure_talk(talk(("Hi.",), ends="supporter_missing", intensity=(3.0,)), success=2, max_turns=5)
    assert empty == {
        "turns": 0, "seeker_words": 1, "ended_by_seeker": 0, "intensity_start": 3, "intensity_end": 3, "relief": 0,
        "success": 0, "turns_to_success": 5,
    }  # fmt: skip
    unlabelled = measure_talk(talk(("Hi.",), ("", "Oh no.")), success=2, max_turns=5)
    assert unlabelled["labelled"] == 0
    assert not {"strategies", "strategy_repeats", "repeated", "relief", "success"} & {*unlabelled}


def test_a_supporter_that_gives_up_is_no_better_for_it():
    """Success, relief and turns to success are of all talks whose start is known, whatever the supporter then does."""
    helped = talk(("Hi.",), ("Question", "Why?"), intensity=(4.0, 2.0))
    silent = talk(("Hi.",), ends="supporter_missing", intensity=(1.5,))
    unread = talk(("Hi.",), ("", "Oh."), ends="seeker", intensity=(4.0, None))
    unknown = talk(("Hi.",), ("", "Oh."), ends="seeker", intensity=(None, 2.0))
    metrics = measure_talks([helped, silent, unread, unknown], success=2.0, max_turns=9)
    assert metrics["success"] == pytest.approx(1 / 3)
    assert metrics["relief"] == pytest.approx(2 / 3)
    assert metrics["turns_to_success"] == pytest.approx((1 + 9 + 9) / 3)


def test_questions_in_other_scripts():
    asking = talk(("Hi.",), ("", "怎么了\uff1f"), ("Ok.",), ("", "لماذا\u061f"), ("Ok.",), ("", "好的。"))
    assert measure_talk(asking, success=2, max_turns=5)["asks"] == pytest.approx(2 / 3)


def test_sets_of_talks():
    other = talk(("Hi.",), ("Others", "Go on."), ("Ok.",), ("Question", "Why?"), intensity=(3.0, 3.0, 3.0))
    metrics = measure_talks([ONE, other, talk(("Hi.",), ("", "Oh."))], success=2.0, max_turns=10)
    assert metrics["turns"] == 2
    assert metrics["success"] == 0.5  # of those that were asked
    assert metrics["turns_to_success"] == 6.5
    assert {name: value for name, value in metrics.items() if name.startswith("ends/") and value} == {
        "ends/seeker": pytest.approx(1 / 3), "ends/max_turns": pytest.approx(2 / 3),
    }  # fmt: skip
    assert (metrics["strategy/Question"], metrics["strategy/Others"]) == (0.6, 0.4)
    assert metrics["strategy_entropy"] == pytest.approx(-(0.6 * math.log2(0.6) + 0.4 * math.log2(0.4)))
    assert metrics["transition_entropy"] == pytest.approx(2 / 3)  # after Question one bit, after Others none
    described = describe_talks([ONE, other], success=2.0, max_turns=10)
    assert described["transitions"] == {"Others": {"Question": 1}, "Question": {"Others": 1, "Question": 1}}
    assert described["intensity"] == [[0, 3.5, 2], [1, 3.25, 2], [2, 3.0, 1], [3, 2.0, 1]]


def test_entropy_of_drawn_counts():
    draw = random.Random(1)
    for _ in range(20):
        names = draw.choices("abcde", k=draw.randrange(1, 60))
        counts = Counter(names)
        direct = -sum(math.log2(counts[name] / len(names)) for name in names) / len(names)
        assert entropy(counts.values()) == pytest.approx(direct, abs=1e-12)
    assert entropy([]) == 0
