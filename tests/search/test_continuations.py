"""What becomes of an answer that is to be a training reply."""

from __future__ import annotations

import pytest

from esc_lab.data.strategies import Inventory, load_inventory
from esc_lab.metrics.text import copied_share
from esc_lab.search.continuations import REMOVED, UNUSABLE, read_continuation
from esc_lab.search.requests import Answer
from esc_lab.search.role_answers import UnusableError

SRA = load_inventory("extes_sra")
SAID = "That sounds very lonely. Who could sit with you tonight?"
LAST = "My flat is so quiet since she moved out in March."
HISTORY = ("Hi.", "What brings you here?", LAST)


def read(text: str, **fields) -> tuple[str, frozenset[str]]:
    answer = Answer(text, **fields)
    return read_continuation(answer, HISTORY, SRA, max_tokens=40, max_copied=0.5)


@pytest.mark.parametrize(
    ("text", "fields", "reply", "removed"),
    [
        (SAID, {}, SAID, set()),
        (f"assistant: {SAID}", {}, SAID, {"role_prefix"}),
        (f"(Clarification) {SAID}", {}, SAID, {"label"}),
        (f"Supporter: Clarification: {SAID}", {}, SAID, {"role_prefix", "label"}),
        (f"{SAID} [Offer Hope]", {}, SAID, {"label"}),
        (f"{SAID}\nUser: I have nobody.", {}, SAID, {"further_turns"}),
        (f"{SAID} Perhaps your", {"completion_tokens": 40}, SAID, {"unfinished_sentence"}),
        (SAID, {"finish_reason": "length"}, SAID, set()),
        (f"{SAID}\nUser: I have nob", {"finish_reason": "length"}, SAID, {"further_turns"}),
        (f"It's hard, it's so hard. {SAID}", {}, f"It's hard, it's so hard. {SAID}", set()),
        (f"<think>She is alone.</think>{SAID}", {}, SAID, set()),
        (f"You said: it is so quiet since she left. {SAID}", {},
         f"You said: it is so quiet since she left. {SAID}", set()),
    ],
)  # fmt: skip
def test_what_is_no_part_of_a_reply_is_taken_off(text, fields, reply, removed):
    assert read(text, **fields) == (reply, removed)
    assert removed <= set(REMOVED)


@pytest.mark.parametrize(
    ("text", "fields", "kind"),
    [
        ("", {}, "empty"),
        (" ... ", {}, "empty"),
        ("(Offer Hope)", {}, "empty"),
        ("", {"refusal": "No."}, "refused"),
        ("It may well be that the evenings", {"completion_tokens": 40}, "cut_off"),
        ("<think>She is so", {"finish_reason": "length"}, "cut_off"),
        (LAST, {}, "copy"),
        ("my flat is so quiet, since she moved out!", {}, "copy"),
        ("What brings you here?", {}, "copy"),
        ("hi", {}, "copy"),
        (f"Seeker: {LAST}", {}, "other_side"),
        ("As you are the supporter, listen to her.", {}, "meta"),
        ("The seeker's loss is recent, so the evenings are hard.", {}, "meta"),
        ("Here's a possible response:", {}, "meta"),
        ("Sure! Here is a rewritten version of the conversation: you are not alone.", {}, "meta"),
        ("I'm not okay with it at all. " * 4, {}, "repetition"),
    ],
)
def test_what_cannot_be_used_says_why(text, fields, kind):
    with pytest.raises(UnusableError) as error:
        read(text, **fields)
    assert error.value.kind == kind
    assert kind in UNUSABLE


def test_what_is_said_of_the_strategy_is_not_recited():
    """Neither as the reply nor within a longer one; some words of it in passing are a reply's own."""
    name = "Offer Hope"
    told = [name, SRA.definition(name)]
    recited = f"{SAID} You are not alone in this. {told[1]} I would like to hear more about your days with her."
    limits = {"max_tokens": 80, "max_copied": 0.5}
    for text in (told[1], recited, name):
        assert read_continuation(Answer(text + "."), HISTORY, Inventory("", ()), **limits)
        with pytest.raises(UnusableError, match=r"recites|copies") as error:
            read_continuation(Answer(text + "."), HISTORY, Inventory("", ()), **limits, told=told)
        assert error.value.kind == "copy"
    hopeful = "I believe that things can get better for you, step by step."
    assert read_continuation(Answer(hopeful), HISTORY, SRA, **limits, told=told)[0] == hopeful


def test_copied_runs_are_counted_over_all_of_a_reply():
    history = ["one two three four five", "six seven eight nine"]
    assert copied_share("One two, three FOUR five.", history) == 1.0
    assert copied_share("four five six seven eight nine", history) == pytest.approx(1 / 3)  # runs end with their text
    assert copied_share("I don't know", ["I don\u2019t know!"]) == 1.0
    assert copied_share("I don't", ["I don't know"]) == 0.0
