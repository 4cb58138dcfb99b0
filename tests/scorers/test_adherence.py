"""Bare replies: no label and no role prefix is left, and ordinary words stay."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.prompts import label_text, parse_reply
from esc_lab.scorers.adherence import LabelledReply, ReplyReport, bare_reply, labelled_replies
from tests.conftest import INVENTORIES

ESCONV = load_inventory("esconv")
inventories = st.sampled_from(sorted(INVENTORIES)).map(INVENTORIES.__getitem__)
# What people and models write: words, names of strategies, and the characters that labels are made of.
names = sorted({name for inventory in INVENTORIES.values() for name in inventory.names})
pieces = st.one_of(
    st.sampled_from([*names, "strategy", "Strategy:", "supporter:", "Assistant :", "question", "What", "I", "other"]),
    st.sampled_from(list("()[]<>{}\"'*_:.-,?|\n \u2013\u201c\u201d\r\u2028")),
    st.text(max_size=4),
)
scraps = st.lists(pieces, max_size=12).flatmap(
    lambda found: st.sampled_from(["", " "]).map(lambda between: between.join(found))
)

words = st.lists(st.sampled_from(["How", "are", "you", "today", "I", "and", "what", "then", "a"]), min_size=1)


@pytest.mark.parametrize(
    "text",
    [
        "What happened?",
        "(Question) What happened?",
        "[question]: What happened?",
        "(Strategy: Question) What happened?",
        "(Question, Providing Suggestions) What happened?",
        "What happened? (Question)",
        "What <Question> happened?",
        "Question: What happened?",
        "Questions - What happened?",
        "Question. What happened?",
        "Question\nWhat happened?",
        "Question What happened?",
        "Reflection of feelings What happened?",
        '"Question" What happened?',
        "**Question**: What happened?",
        "**Question:** What happened?",
        "\u201cQuestion\u201d What happened?",
        "Strategy: Question\n\nWhat happened?",
        'strategy: "question" - What happened?',
        "Strategy: provide suggestions. What happened?",
        "**Strategy: Self-disclosure** What happened?",
        "supporter: What happened?",
        "ASSISTANT: Supporter : What happened?",
        "**Supporter (Question):** What happened?",
        "Supporter: (Question) Question: What   happened?",
        "(Question) (Information) What happened?",
    ],
)
def test_labels_and_role_prefixes_are_removed(text):
    assert bare_reply(text, ESCONV) == "What happened?"


@pytest.mark.parametrize(
    "text",
    [
        "I have a question: what happened?",
        "Information is hard to come by.",
        "Others feel the same, and that question is a good one.",
        "Question everything you hear about providing suggestions.",
        "Suggestions? I could think of one.",
        "(sighs) I know.",
        "He said it (the other day).",
        "The strategy is clear: ask for information.",
        "It is a self-disclosure of sorts.",
        "My assistant: a dog.",
    ],
)
def test_ordinary_words_stay(text):
    assert bare_reply(text, ESCONV) == text


def test_only_names_of_the_inventory_are_labels():
    assert bare_reply("(Clarification) So?", ESCONV) == "(Clarification) So?"
    assert bare_reply("(Clarification) So?", load_inventory("extes")) == "So?"


@pytest.mark.parametrize(
    "text", ["", " \n ", "(Question)", "Strategy: Question", "supporter:", "Question", "**Others**"]
)
def test_nothing_but_labels_is_empty(text):
    assert bare_reply(text, ESCONV) == ""


@given(scraps, inventories)
def test_applied_twice_is_applied_once(text, inventory):
    bare = bare_reply(text, inventory)
    assert bare_reply(bare, inventory) == bare
    assert len(bare) <= len(text)


@given(words, inventories, st.data())
def test_labels_go_and_words_stay(words, inventory, data):
    text = " ".join(words)
    name = data.draw(st.sampled_from(inventory.names))
    label = label_text(name)
    assert bare_reply(text, inventory) == text
    for labelled in (f"{label} {text}", f"{text} {label}", f"supporter: {label}: {text}", f"Strategy: {name}\n{text}",
                     f"{name}: {text}", f'"{name}" {text}', f"{name.upper()} - {text}"):  # fmt: skip
        assert bare_reply(labelled, inventory) == text


@given(inventories, st.data())
def test_nothing_is_left_for_the_reply_parser(inventory, data):
    name = data.draw(st.sampled_from(inventory.names))
    text = bare_reply(f"Assistant: ({name}) I am with you.", inventory)
    assert parse_reply(text, inventory) == (None, "I am with you.")


def test_examples_are_the_labelled_replies():
    dialogue = Dialogue(
        (
            Turn("supporter", Reply("Hello.", ("Others",))),
            Turn("seeker", Reply("(Question) No.", ("Question",))),
            Turn("supporter", Reply("(Question) Why?", ("Question", "Others")), (Reply("Because.", ("Information",)),)),
            Turn("supporter", Reply("Well.")),
            Turn("supporter", Reply("(Information)", ("Information",))),
        ),
        "esconv",
    )
    cut = replace(dialogue, turns=dialogue.turns[:3])
    assert labelled_replies([cut], ESCONV, last=True)[0] == [LabelledReply("Why?", 0, cut.id)]
    examples, report = labelled_replies([dialogue, dialogue], ESCONV)
    once = [LabelledReply("Hello.", 7, dialogue.id), LabelledReply("Why?", 0, dialogue.id)]
    assert examples == once * 2
    assert report == ReplyReport(replies=4, stripped=2, empty=2, unlabelled=2)


def test_a_strategy_outside_the_inventory_is_an_error():
    dialogue = Dialogue((Turn("supporter", Reply("So?", ("Clarification",))),), "extes")
    with pytest.raises(ValueError, match="not in tuple"):
        labelled_replies([dialogue], ESCONV)


def test_the_sample_corpus_has_no_labels_in_its_words(sample_dialogues):
    examples, report = labelled_replies(sample_dialogues, ESCONV)
    assert len(examples) == report.replies > 400
    assert report.stripped == report.empty == 0
