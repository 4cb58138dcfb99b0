"""Seeker cards: who a simulated seeker is, what weighs on it, what it tells when, and how it behaves in a talk.

Cards are YAML files (docs/data-format.md); `default.yaml` and `crisis.yaml` beside this module ship with esc-lab.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from esc_lab.artifacts import read_yaml, write_atomic
from esc_lab.data.fields import check_keys, check_type, items, optional, require
from esc_lab.errors import UserError, nearest

FORMAT = "esc-lab-cards/1"
LEVELS = ("low", "medium", "high")
# What makes a seeker hard to support.
HARD = ("resistant", "hopeless", "off_topic", "testing")
STRONGEST = 5  # intensity of an emotion, from 1, as ESConv's seekers were asked
MOST_SEVERE = 4
_TOP_KEYS = ("format", "name", "licence", "cards")
# Fields that a file has to name, null where nothing is known of them.
_NULLABLE = ("person", "problem", "emotion", "intensity")
_OPTIONAL = ("opening", "reveals", "behaviour", "hard", "severity")


@dataclass(frozen=True)
class Reveal:
    """What a seeker does not tell at first.

    `when` is the number of the seeker's message from which it may be told, or says in words what has to happen before.
    """

    when: int | str
    text: str


@dataclass(frozen=True)
class Traits:
    """How a seeker behaves in a talk, each one of `LEVELS`.

    Attributes:
        resistance: to what the supporter says.
        disclosure: how openly it tells of itself.
        engagement: how much of the talk it carries.
        verbosity: how much it writes at a time.
        volatility: how fast its feelings change.
    """

    resistance: str = "medium"
    disclosure: str = "medium"
    engagement: str = "medium"
    verbosity: str = "medium"
    volatility: str = "medium"


@dataclass(frozen=True)
class Card:
    """A simulated seeker.

    Attributes:
        id: letters, digits, `-` and `_`.
        person: who it is, in a few words.
        problem, emotion, situation: as of a `Dialogue`; all but the situation are empty where they are not known.
        intensity: of the emotion before the talk, from 1 to 5; None where it is not known.
        opening: its first message; empty where the model that plays it is to write it.
        behaviour: how it acts, beyond its traits.
        hard: of `HARD`, or empty.
        severity: of a crisis, from 1 to 4; 0 for none.
        where: file and card it was read from; no part of it.
    """

    id: str
    situation: str
    problem: str = ""
    emotion: str = ""
    intensity: int | None = None
    person: str = ""
    opening: str = ""
    reveals: tuple[Reveal, ...] = ()
    traits: Traits = Traits()
    behaviour: str = ""
    hard: str = ""
    severity: int = 0

    def record(self) -> dict[str, Any]:
        """All of it, as JSON types."""
        return {**asdict(self), "reveals": [asdict(reveal) for reveal in self.reveals]}


def shipped_cards(name: str) -> Path:
    """The file of a set of cards that ships with esc-lab."""
    return Path(__file__).parent / f"{name}.yaml"


def read_cards(path: Path) -> list[Card]:
    """The cards of a YAML file, in its order.

    Raises:
        UserError: it cannot be read, a card lacks a field or has a wrong value, or two have the same id.
    """
    where = str(path)
    try:
        content = read_yaml(path)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=where, fix="check cards.path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"not YAML: {' '.join(str(error).split())}", where=where, fix="correct the file") from error
    data = check_type(content, dict, "the file", where)
    if (version := require(data, "format", str, where)) != FORMAT:
        raise UserError(f"unknown format '{version}'", where=where, fix=f"write format: {FORMAT}")
    check_keys(data, _TOP_KEYS, where)
    records = items(require(data, "cards", list, where), dict, "card", where)
    return check_ids([parse_card(record, place) for record, place in records], where)


def write_cards(path: Path, cards: Sequence[Card], name: str) -> None:
    """Write cards as a file that `read_cards` reads as the same ones.

    Raises:
        UserError: the reader would refuse a card.
    """
    records = []
    for number, card in enumerate(cards, start=1):
        record = card.record()
        record |= {key: record[key] or None for key in _NULLABLE}
        records.append({key: value for key, value in record.items() if value or key not in _OPTIONAL})
        parse_card(records[-1], f"{path}, card {number} ({card.id})")
    text = yaml.safe_dump(
        {"format": FORMAT, "name": name, "cards": records}, sort_keys=False, allow_unicode=True, width=120
    )
    write_atomic(path, text)


def choose_cards(cards: Sequence[Card], only: Sequence[str], limit: int | None) -> list[Card]:
    """The cards of these ids, in their order, or all; the first so many of them.

    Raises:
        UserError: there is no card of an id.
    """
    ids = {card.id: card for card in cards}
    for name in only:
        if name not in ids:
            what = f"there is no card '{name}'{nearest(name, ids)}"
            raise UserError(what, where="cards.only", fix="name ids of cards, or leave it out")
    return [ids[name] for name in dict.fromkeys(only or ids)][:limit]


def check_ids(cards: list[Card], where: str) -> list[Card]:
    """The cards, of which there are some, with ids of their own; a UserError otherwise."""
    if not cards:
        raise UserError("there are no cards", where=where, fix="write some, or name another file")
    seen: set[str] = set()
    for card in cards:
        if card.id in seen:
            raise UserError(f"two cards have the id '{card.id}'", where=where, fix="give each an id of its own")
        seen.add(card.id)
    return cards


def check_id(name: str, where: str) -> str:
    """The id of a card; a UserError where no file can be named after it."""
    if not re.fullmatch(r"[\w-]{1,60}", name, re.ASCII):
        fix = "use letters, digits, - and _, at most 60: files are named after it"
        raise UserError(f"'id' is {name!r}", where=where, fix=fix)
    return name


def parse_card(data: Mapping[str, Any], where: str) -> Card:
    """The card of a JSON object.

    Raises:
        UserError: a field is missing, unknown or wrong.
    """
    check_keys(data, Card.__dataclass_fields__, where)
    name = check_id(require(data, "id", str, where), where)
    where = f"{where} ({name})"
    reveals = items(optional(data, "reveals", list, where), dict, "reveal", where)
    unknown = [key for key in _NULLABLE if data.get(key, "") is None]
    return Card(
        id=name,
        **{
            key: "" if key in unknown else _text(data, key, where)
            for key in ("situation", "problem", "emotion", "person")
        },
        **{key: (optional(data, key, str, where) or "").strip() for key in ("opening", "behaviour")},
        intensity=None if "intensity" in unknown else _number(data, "intensity", 1, STRONGEST, where),
        reveals=tuple(_reveal(*item) for item in reveals),
        traits=_traits(require(data, "traits", dict, where), f"{where}, traits"),
        hard=_choice(optional(data, "hard", str, where) or "", ("", *HARD), "hard", where),
        severity=_number({"severity": 0, **data}, "severity", 0, MOST_SEVERE, where),
    )


def _text(data: Mapping[str, Any], key: str, where: str) -> str:
    text = require(data, key, str, where).strip()
    if not text:
        raise UserError(f"'{key}' is empty", where=where, fix="write it")
    return text


def _number(data: Mapping[str, Any], key: str, least: int, most: int, where: str) -> int:
    number = require(data, key, int, where)
    if isinstance(number, bool) or not least <= number <= most:
        raise UserError(f"'{key}' is {number}", where=where, fix=f"give a whole number from {least} to {most}")
    return number


def _choice(value: str, known: tuple[str, ...], key: str, where: str) -> str:
    if value not in known:
        names = ", ".join(filter(None, known))
        raise UserError(f"'{key}' is '{value}'{nearest(value, known)}", where=where, fix=f"use {names}")
    return value


def _traits(data: Mapping[str, Any], where: str) -> Traits:
    names = tuple(field.name for field in fields(Traits))
    check_keys(data, names, where, "unknown trait")
    return Traits(**{name: _choice(require(data, name, str, where), LEVELS, name, where) for name in names})


def _reveal(data: Mapping[str, Any], where: str) -> Reveal:
    check_keys(data, Reveal.__dataclass_fields__, where)
    when = data.get("when")
    if isinstance(when, str) and when.strip():
        return Reveal(when.strip(), _text(data, "text", where))
    if isinstance(when, bool) or not isinstance(when, int) or when < 1:
        fix = "give the number of the seeker's message from which it may be told, or say in words when"
        raise UserError(f"'when' is {when!r}", where=where, fix=fix)
    return Reveal(when, _text(data, "text", where))
