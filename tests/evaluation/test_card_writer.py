"""Cards that a model writes: what answers are cards, and what the corpus knows stays."""

from __future__ import annotations

import json

import pytest

from esc_lab.data.cards import Card, Reveal, Traits
from esc_lab.data.strategies import load_inventory
from esc_lab.evaluation.arena.card_writer import SLOTS, CardWriter
from esc_lab.search.requests import Answer
from esc_lab.search.role_answers import UnusableError

WRITER = CardWriter(
    {name: " ".join(f"{{{slot}}}" for slot in slots.split()) for name, slots in SLOTS.items()}, load_inventory("esconv")
)
KNOWN = Card("abc", "My shop closed.", problem="job loss", traits=Traits(verbosity="high"))
FIELDS = {
    "person": "a baker of 50", "problem": "money", "emotion": "sadness", "intensity": 4,
    "situation": "You lost the shop. You miss it.", "opening": "They closed it.", "behaviour": "You sigh.",
}  # fmt: skip
TRAITS = {"resistance": "low", "disclosure": "high", "engagement": "medium", "verbosity": "low", "volatility": "high"}
EXPECTED = Card(
    "abc", "You lost the shop. You miss it.", problem="job loss", emotion="sadness", intensity=4,
    person="a baker of 50", opening="They closed it.", behaviour="You sigh.",
    reveals=(Reveal(3, "She left."), Reveal(5, "You owe rent.")), traits=Traits(**{**TRAITS, "verbosity": "high"}),
)  # fmt: skip
REVEALS = [{"when": "3", "text": "She left."}, {"when": 5, "text": "You owe rent."}]


def lines(**change: object) -> str:
    named = {**FIELDS, "reveal 3": "She left.", "Reveal (5)": "You owe rent.", **TRAITS, **change}
    return "\n".join(f"{name}: {value}" for name, value in named.items() if value is not None)


def read(text: str) -> Card:
    return WRITER.read(Answer(text), KNOWN)


@pytest.mark.parametrize(
    "text",
    [
        lines(),
        json.dumps({**FIELDS, **TRAITS, "reveals": REVEALS}),
        f"Here it is:\n```json\n{json.dumps({**FIELDS, **TRAITS, 'reveals': REVEALS, 'mood': 'x'}, indent=1)}\n```",
        json.dumps({**FIELDS, "traits": TRAITS, "reveals": REVEALS}),
        "<think>A baker, then.</think>\n" + lines(),
        "Here is the card.\n\n- **Person:** a baker of 50\n" + lines(person=None).replace("low", "Low."),
        lines(situation="You lost the shop.\nYou miss it.", opening='"They closed it."'),
        lines(intensity="4 of 5", opening="Seeker: They closed it."),
    ],
    ids=["lines", "object", "code block", "nested traits", "reasoning", "list", "two lines", "words around"],
)
def test_answers_that_are_cards(text):
    assert read(text) == EXPECTED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no 'situation' among the keys"),
        ("I would rather not.", "no 'situation' among the keys"),
        (lines(person=None), "no 'person' among the keys"),
        (lines(person=" "), "'person' is empty"),
        (lines(intensity=9), "'intensity' is 9"),
        (lines(intensity="strong"), "no 'intensity' among the keys"),
        (lines(resistance="very high"), "'resistance' is 'very high'"),
        (lines(volatility=None), "no 'volatility' among the keys"),
        (lines(opening="Supporter: How are you?"), "the other side's"),
        (json.dumps({**FIELDS, **TRAITS, "situation": ["You"]}), "'situation' is ["),
        (json.dumps({**FIELDS, **TRAITS, "opening": 3}), "'opening' is 3"),
        (json.dumps({**FIELDS, **TRAITS, "reveals": [{"when": "later"}]}), "reveal 1: no 'text'"),
        ("<think>A baker", "it ends within its reasoning"),
    ],
    ids=range(13),
)
def test_answers_that_are_none(text, message):
    with pytest.raises(UnusableError) as error:
        read(text)
    assert message in str(error.value)


def test_what_the_corpus_does_not_know_is_the_models():
    card = WRITER.read(Answer(lines(problem="money")), Card("abc", "My shop closed.", emotion="anger", intensity=2))
    assert (card.problem, card.emotion, card.intensity) == ("money", "anger", 2)
