"""Seeker cards: what ships, what is read, and what is wrong with a card."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from esc_lab.config.converse import SHIPPED_CARDS
from esc_lab.data.cards import HARD, Card, Reveal, Traits, choose_cards, read_cards, shipped_cards, write_cards
from esc_lab.data.cards.esc_eval import read_esc_eval_cards
from esc_lab.data.cards.from_dialogues import build_cards
from esc_lab.data.corpora import read_dialogues, sample_path
from esc_lab.data.dialogue import Survey
from esc_lab.errors import UserError

TRAITS = {"resistance": "low", "disclosure": "high", "engagement": "medium", "verbosity": "low", "volatility": "high"}
CARD = {
    "id": "one", "person": "a baker", "problem": "job loss", "emotion": "sadness", "intensity": 4,
    "situation": "They closed the shop.", "traits": TRAITS,
}  # fmt: skip


def write(path: Path, *cards: object, **top: object) -> Path:
    path.write_text(yaml.safe_dump({"format": "esc-lab-cards/1", "cards": [*cards], **top}), encoding="utf-8")
    return path


def test_the_shipped_sets():
    cards = {name: read_cards(shipped_cards(name)) for name in SHIPPED_CARDS}
    assert {name: len(found) for name, found in cards.items()} == {"default": 40, "crisis": 12}
    assert Counter(card.hard for card in cards["default"]) == {"": 32, **dict.fromkeys(HARD, 2)}
    assert not any(card.severity for card in cards["default"])
    assert {card.severity for card in cards["crisis"]} == {1, 2, 3, 4}
    every = [card for found in cards.values() for card in found]
    assert len({card.id for card in every}) == len({card.situation for card in every}) == 52
    assert all(card.opening and card.reveals for card in every)
    assert len({card.person for card in every}) == 52


def test_a_card_of_all_fields(tmp_path):
    reveals = [{"when": 3, "text": "She left."}, {"when": "asked about her", "text": "It hurts."}]
    more = {"opening": "Hello.", "behaviour": "You joke.", "hard": "testing", "severity": 2, "reveals": reveals}
    (card,) = read_cards(write(tmp_path / "cards.yaml", {**CARD, **more}, name="own", licence="CC0"))
    assert card == Card(
        "one", "They closed the shop.", "job loss", "sadness", 4, "a baker", "Hello.",
        (Reveal(3, "She left."), Reveal("asked about her", "It hurts.")), Traits(**TRAITS), "You joke.", "testing", 2,
    )  # fmt: skip
    assert json.loads(json.dumps(card.record()))["reveals"] == reveals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"situation": None}, "card 1 (one): 'situation' is null. Fix: make it a text"),
        ({"emotion": 3}, "card 1 (one): 'emotion' is 3. Fix: make it a text"),
        ({"person": " "}, "card 1 (one): 'person' is empty. Fix: write it"),
        ({"intensity": 6}, "card 1 (one): 'intensity' is 6. Fix: give a whole number from 1 to 5"),
        ({"intensity": True}, "'intensity' is True"),
        ({"intensity": 2.5}, "'intensity' is 2.5. Fix: make it a whole number"),
        ({"severity": 5}, "'severity' is 5. Fix: give a whole number from 0 to 4"),
        ({"hard": "resistent"}, "'hard' is 'resistent'; did you mean 'resistant'? Fix: use resistant, hopeless"),
        ({"traits": {**TRAITS, "volatility": "hi"}}, "traits: 'volatility' is 'hi'; did you mean 'high'? Fix: use low"),
        ({"traits": {"resistance": "low"}}, "traits: no 'disclosure' among the keys resistance. Fix: add 'disclosure'"),
        ({"traits": {**TRAITS, "humour": "low"}}, "traits: unknown trait 'humour'"),
        ({"reveals": [{"when": 0, "text": "x"}]}, "card 1 (one), reveal 1: 'when' is 0. Fix: give the number"),
        ({"reveals": [{"text": "x"}]}, "reveal 1: 'when' is None"),
        ({"reveals": [{"when": 2}]}, "reveal 1: no 'text' among the keys when. Fix: add 'text'"),
        ({"id": "a/b"}, "'id' is 'a/b'. Fix: use letters, digits, - and _"),
        ({"mood": "x"}, "card 1: unknown key 'mood'"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_card(tmp_path, change, message):
    path = write(tmp_path / "cards.yaml", {**CARD, **change})
    with pytest.raises(UserError) as error:
        read_cards(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))


def test_what_is_wrong_with_a_file(tmp_path):
    path = tmp_path / "cards.yaml"
    lacking = {name: value for name, value in CARD.items() if name != "situation"}
    cases = {
        "two cards have the id 'one'": [CARD, CARD],
        "there are no cards": [],
        "no 'situation' among the keys": [lacking],
        'the card is "x"': ["x"],
    }
    for message, cards in cases.items():
        with pytest.raises(UserError, match=message):
            read_cards(write(path, *cards))
    for text, message in {"- a: b": "make it an object", "format: x": "unknown format 'x'", "a: [": "not YAML"}.items():
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_cards(path)
    with pytest.raises(UserError, match="No such file"):
        read_cards(tmp_path / "absent.yaml")


def test_cards_of_esc_eval(tmp_path):
    base = "Age: young\nGender: Not mentioned\nOccupation: student\nProblem: She was left\non her birthday."
    chinese = "年龄：未提及\n性别：女\n职业：教师\n问题：求助者失去了工作。"  # noqa: RUF001
    records = [
        {"base": base, "res": "家庭生活", "source": "ESconv", "language": "english", "id": 32025},
        {"base": chinese, "res": "其他", "id": 7},
    ]
    path = tmp_path / "cards.json"
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    assert read_esc_eval_cards(path) == [
        Card(
            "esc-eval-32025", "She was left on her birthday.", "family life", person="age: young, occupation: student"
        ),
        Card("esc-eval-7", "求助者失去了工作。", "其他", person="gender: 女, occupation: 教师"),
    ]
    wrong = {
        json.dumps([{"base": "Age: 3"}]): "card 1: 'base' has no line 'Problem: ...'. Fix: add it",
        json.dumps([{"bass": base}]): "no 'base' among the keys bass",
        json.dumps({"base": base}): "Fix: make it a list",
        json.dumps([{**records[0], "id": "../7"}]): "card 1: 'id' is 'esc-eval-../7'. Fix: use letters, digits",
        json.dumps([records[0], records[0]]): "two cards have the id 'esc-eval-32025'",
        "[": "not JSON",
    }
    for text, message in wrong.items():
        path.write_text(text)
        with pytest.raises(UserError) as error:
            read_esc_eval_cards(path)
        assert message in str(error.value)


def test_cards_by_rule():
    dialogues = read_dialogues(sample_path())
    told = replace(dialogues[0], survey=Survey(initial_intensity=5))
    cards = build_cards([told, *dialogues[1:], dialogues[0], replace(dialogues[1], situation="", tree_id="x")], "here")
    assert len(cards) == len({dialogue.situation for dialogue in dialogues})
    assert (cards[0].situation, cards[0].emotion, cards[0].intensity) == (told.situation, told.emotion, 5)
    assert cards[1].intensity is None
    for card, dialogue in zip(cards, [told, *dialogues[1:]], strict=False):
        said = [turn.reply.text.split() for turn in dialogue.turns if turn.speaker == "seeker"]
        words = sum(map(len, said)) / len(said)
        assert card.traits.verbosity == ("low" if words < 8 else "high" if words >= 25 else "medium")
    with pytest.raises(UserError, match="there are no cards"):
        build_cards([replace(told, situation="")], "here")


def test_what_is_written_is_read_as_the_same(tmp_path):
    """Cards of all fields, and those by rule, of which much is not known."""
    told = build_cards(read_dialogues(sample_path()), "here")
    assert {told[0].person, told[0].intensity} == {"", None}
    for number, cards in enumerate([*map(read_cards, map(shipped_cards, SHIPPED_CARDS)), told]):
        path = tmp_path / f"{number}.yaml"
        write_cards(path, cards, "own")
        assert read_cards(path) == cards
    assert yaml.safe_load(path.read_text())["cards"][0]["person"] is None
    with pytest.raises(UserError, match=r"card 2 \(b c\): 'id' is 'b c'"):
        write_cards(tmp_path / "wrong.yaml", [replace(told[0], id="a"), replace(told[0], id="b c")], "own")
    assert not (tmp_path / "wrong.yaml").exists()


def test_some_of_the_cards():
    cards = read_cards(shipped_cards("crisis"))
    assert choose_cards(cards, [], None) == cards
    assert choose_cards(cards, [cards[3].id, cards[1].id, cards[3].id], None) == [cards[3], cards[1]]
    assert choose_cards(cards, [], 2) == cards[:2]
