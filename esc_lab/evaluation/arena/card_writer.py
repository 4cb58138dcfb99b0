"""Seeker cards that a model writes from dialogues of a corpus: what it is asked, and what its answers say.

What the corpus knows of a seeker stays as it is: problem, emotion, its intensity, and how much the seeker writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from esc_lab.data.cards import LEVELS, STRONGEST, Card, Traits, parse_card
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.prompts import Message, check_wording
from esc_lab.search.requests import Answer, object_schema
from esc_lab.search.role_answers import UnusableError, find_object, parse_message, take_answer
from esc_lab.search.role_prompts import transcript

if TYPE_CHECKING:  # it brings numpy, which the check of a configuration does not need
    from esc_lab.search.roles import Roles

ROLE = "seeker"  # whose model writes its cards
# Slots of each text (see `check_wording`).
SLOTS = {"system": "", "ask": "conversation known", "lines": "levels", "json": "levels"}
_TEXTS = ("person", "problem", "emotion", "situation", "opening", "behaviour")
_TRAITS = tuple(field.name for field in fields(Traits))
_LINE = re.compile(r"^[ \t\-*#\d.)]*(reveals?[ \t(]*\d+|[A-Za-z]+)\)?[ \t]*\**[ \t]*:[ \t*]*(.*)$", re.IGNORECASE)


@dataclass(frozen=True)
class CardWriter:
    """Writes the cards of one inventory's dialogues in the words of a configuration.

    Raises:
        UserError: a text is missing or wrong.
    """

    wording: Mapping[str, Any]
    inventory: Inventory

    def __post_init__(self) -> None:
        check_wording(self.wording, SLOTS, "cards.wording")

    async def write(self, roles: Roles, card: Card, dialogue: Dialogue) -> Card | None:
        """The card of a dialogue, from the one that is by rule; None if no answer can be used.

        Raises:
            what `Roles.send` raises.
        """
        as_json = ROLE not in roles.scoring
        request = roles.request(ROLE, self._ask(card, dialogue, as_json=as_json))
        if as_json:
            request = replace(request, schema=_schema())
        return await roles.ask_until_usable(request, lambda answer: self.read(answer, card))

    def read(self, answer: Answer, known: Card) -> Card:
        """The card that an answer holds, with what is known of it.

        Raises:
            UnusableError: a field is missing or wrong.
        """
        said = _collect_fields(answer.text)
        if isinstance(said.get("opening"), str) and said["opening"]:
            said["opening"] = parse_message(said["opening"], "seeker", self.inventory)
        facts = {name: getattr(known, name) for name in ("problem", "emotion", "intensity")}
        traits = {name: said.pop(name) for name in _TRAITS if name in said} | {"verbosity": known.traits.verbosity}
        record = {**said, **{name: value for name, value in facts.items() if value}, "id": known.id, "traits": traits}
        try:
            return parse_card(record, "the card")
        except UserError as error:
            raise UnusableError(f"{error.where}: {error.message}") from error

    def _ask(self, card: Card, dialogue: Dialogue, *, as_json: bool) -> tuple[Message, ...]:
        facts = {"situation": card.situation, "problem": card.problem, "emotion": card.emotion}
        shown = "\n".join(f"{name}: {value}" for name, value in facts.items() if value)
        asked = self.wording["ask"].format(conversation=transcript(dialogue.turns, labels=False), known=shown)
        form = self.wording["json" if as_json else "lines"].format(levels=", ".join(LEVELS[:-1]) + f" or {LEVELS[-1]}")
        return Message("system", self.wording["system"].strip()), Message("user", f"{asked.strip()}\n\n{form.strip()}")


def _collect_fields(text: str) -> dict[str, Any]:
    """The fields of a card in a JSON object in a text, or in lines `name: value`."""
    text = take_answer(text)
    found = find_object(text)
    named = {str(name).lower(): value for name, value in found.items()} if found else _read_lines(text)
    if isinstance(nested := named.get("traits"), dict):
        named |= nested
    said: dict[str, Any] = {name: named[name] for name in _TEXTS if name in named}
    said |= {name: value.strip(" .\"'*").lower() for name in _TRAITS if isinstance(value := named.get(name), str)}
    if (number := _whole_number(named.get("intensity"))) is not None:
        said["intensity"] = number
    if isinstance(reveals := named.get("reveals"), list):
        said["reveals"] = [_clean_reveal(reveal) for reveal in reveals]
    return said


def _read_lines(text: str) -> dict[str, Any]:
    """Names and values; a line without a known name goes on with the value before it."""
    named: dict[str, Any] = {}
    reveals: list[dict[str, Any]] = []
    last: tuple[dict[str, Any], str] | None = None
    for line in text.splitlines():
        match = _LINE.match(line)
        name = match[1].lower() if match else ""
        if match and name.startswith("reveal") and (when := _whole_number(name)) is not None:
            reveals.append({"when": when, "text": match[2].strip()})
            last = reveals[-1], "text"
        elif match and name in (*_TEXTS, *_TRAITS, "intensity"):
            named[name] = match[2].strip()
            last = named, name
        elif last and line.strip():
            values, key = last
            values[key] = f"{values[key]} {line.strip()}".strip()
    return {**named, "reveals": [reveal for reveal in reveals if reveal["text"]]}


def _clean_reveal(reveal: Any) -> Any:
    """A reveal with a number for its message where one is written in words, such as `"3"`."""
    if not isinstance(reveal, dict):
        return reveal
    number = _whole_number(reveal.get("when"))
    return reveal if number is None else {**reveal, "when": number}


def _whole_number(value: Any) -> int | None:
    """The number that a text has, if it has one."""
    match = re.search(r"\d+", str(value))
    return int(match[0]) if match else None


def _schema() -> Mapping[str, Any]:
    """What endpoints with structured output are held to."""
    text = {"type": "string"}
    reveal = object_schema({"when": {"type": "integer", "minimum": 1}, "text": text})
    return object_schema(
        {
            **dict.fromkeys(_TEXTS, text),
            "intensity": {"type": "integer", "minimum": 1, "maximum": STRONGEST},
            "reveals": {"type": "array", "items": reveal},
            **{trait: {"type": "string", "enum": list(LEVELS)} for trait in _TRAITS},
        }
    )
