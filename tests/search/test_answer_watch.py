"""A search of which no answer can be used stops, and says why."""

from __future__ import annotations

import pytest

from esc_lab.errors import UserError
from esc_lab.search.answer_watch import MIN_ANSWERS, AnswerWatch, describe_unusable
from esc_lab.search.requests import Answer

CUT_OFF = Answer('{"Affirm', finish_reason="length")
KINDS = {
    "refused": Answer(refusal="No.", finish_reason="content_filter"),
    "cut off": CUT_OFF,
    "empty": Answer(" \n", finish_reason="stop"),
    "unreadable": Answer("Well, hm.", completion_tokens=3),
}


def note(watch: AnswerWatch, answers: list[Answer], role: str = "judge") -> None:
    for answer in answers:
        watch.note_unusable(role, answer, 256, "there is no score in it")


@pytest.mark.parametrize(("kind", "answer"), KINDS.items())
def test_kinds(kind, answer):
    assert describe_unusable(answer, 256) == kind
    assert describe_unusable(Answer("Well, hm.", completion_tokens=256), 256) == "cut off"


@pytest.mark.parametrize(
    ("kind", "told", "fix"),
    [
        ("cut off", "30 cut off at max_tokens (256)", "raise llm.judge.max_tokens"),
        ("empty", "30 empty", "llm.openai.extra_body"),
        ("refused", "30 refused", "another model"),
        ("unreadable", "30 unreadable", "llm.openai.structured=true"),
    ],
)
def test_it_says_what_is_wrong_with_all_of_them(kind, told, fix):
    watch = AnswerWatch()
    note(watch, [KINDS[kind]] * (MIN_ANSWERS - 1))
    with pytest.raises(UserError) as caught:
        note(watch, [KINDS[kind]])
    text = str(caught.value)
    assert f"llm.judge: 30 of 30 answers cannot be used: {told}; of the last one: there is no score in it" in text
    assert fix in text


def test_several_kinds_are_counted():
    with pytest.raises(
        UserError, match=r"20 cut off at max_tokens \(256\), 10 empty;.*Fix: raise llm.judge.max_tokens"
    ):
        note(AnswerWatch(), [KINDS["empty"]] * 10 + [CUT_OFF] * 20)


def test_one_usable_answer_is_enough_and_roles_are_apart():
    watch = AnswerWatch()
    note(watch, [CUT_OFF] * 20)
    watch.note_usable("judge")
    note(watch, [CUT_OFF] * 100)
    note(watch, [CUT_OFF] * 20, "seeker")
    with pytest.raises(UserError, match=r"llm.seeker: 30 of 30"):
        note(watch, [CUT_OFF] * 10, "seeker")
