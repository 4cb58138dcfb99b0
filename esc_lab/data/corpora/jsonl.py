"""esc-lab's own format, schema `esc-lab/2`: one dialogue a line, without loss.

```
{"format": "esc-lab/2", "tree_id": "...", "inventory": "esconv", "situation": "", "emotion": "", "problem": "",
 "turns": [{"speaker": "seeker", "text": "..."},
           {"speaker": "supporter", "text": "...", "strategies": ["Question"], "value": 0.5, "visits": 3,
            "rejected": [{"text": "...", "strategies": ["Information"], "value": -0.5, "visits": 1}]}],
 "survey": {"initial_intensity": 4, "final_intensity": 2, "empathy": 5, "relevance": 5}, "meta": {}}
```

Only `format`, `inventory` and `turns` must be there, and of a turn `speaker` and `text`; the rest may be missing or
null. A dialogue without `tree_id` is a tree of its own. Strategies, value, visits and rejected replies are the
supporter's only. `esc-lab/1` is the same without `survey`; dialogues without one are written so, for older code.
Another version is refused, and so is an unknown key. docs/data-format.md explains every field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from esc_lab.data.corpora.reading import Reading, ReadReport, seed_id
from esc_lab.data.corpora.records import Record, as_line
from esc_lab.data.dialogue import Dialogue, Reply, Survey, Turn
from esc_lab.data.fields import check_keys, items, optional, require
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError

SCHEMA = "esc-lab/1"
SCHEMA_WITH_SURVEY = "esc-lab/2"

_DIALOGUE_KEYS = ("format", "tree_id", "inventory", "situation", "emotion", "problem", "turns", "meta")
_KEYS = {SCHEMA: _DIALOGUE_KEYS, SCHEMA_WITH_SURVEY: (*_DIALOGUE_KEYS, "survey")}
_SURVEY_KEYS = tuple(Survey.__dataclass_fields__)
_SEEKER_KEYS = ("speaker", "text")
_REPLY_KEYS = ("text", "strategies", "value", "visits")
_SUPPORTER_KEYS = ("speaker", *_REPLY_KEYS, "rejected")


def read_dialogue(record: Record, reading: Reading) -> Dialogue:
    """The dialogue of a record in esc-lab's own format.

    Raises:
        UserError: the record is of another version, has unknown or missing keys, or values of a wrong type.
    """
    data, where = record.data, record.where
    version = require(data, "format", str, where)
    if version not in _KEYS:
        fix = f"this version of esc-lab reads {', '.join(map(repr, _KEYS))}; update esc-lab or convert the file"
        raise UserError(f"unknown format version '{version}'", where=where, fix=fix)
    check_keys(data, _KEYS[version], where)
    inventory = reading.inventory(optional(data, "inventory", str, where), where)
    turns = [
        _turn(item, inventory, reading, place)
        for item, place in items(require(data, "turns", list, where), dict, "turn", where)
    ]
    situation = optional(data, "situation", str, where) or ""
    return reading.dialogue(
        turns,
        inventory,
        where,
        tree_id=optional(data, "tree_id", str, where) or seed_id(situation, *(turn.reply.text for turn in turns)),
        situation=situation,
        emotion=optional(data, "emotion", str, where) or "",
        problem=optional(data, "problem", str, where) or "",
        meta=optional(data, "meta", dict, where) or {},
        survey=_survey(optional(data, "survey", dict, where), where),
    )


def lines(dialogues: Iterable[Dialogue], inventory: Inventory | None = None) -> list[str]:
    """Lines of the file. Every dialogue is read back before it counts as written.

    Raises:
        UserError: a dialogue is not one that the format can hold (a label outside its inventory, a seeker with
            strategies, meta data that JSON cannot carry).
    """
    written = []
    for number, dialogue in enumerate(dialogues, start=1):
        where = f"dialogue {number} to write"
        line = as_line(_dialogue_as_json(dialogue), where)
        reading = Reading(ReadReport(), "jsonl", inventory=inventory)
        again = read_dialogue(Record(json.loads(line), where), reading)
        reading.finish()
        if again != dialogue:
            fix = "use canonical strategy names once each, tuples of turns, and JSON types with text keys in meta"
            raise UserError("the dialogue would not be read back as it is", where=where, fix=fix)
        written.append(line)
    return written


def _turn(data: dict[str, Any], inventory: Inventory, reading: Reading, where: str) -> Turn:
    speaker = require(data, "speaker", str, where)
    if speaker == "seeker":
        check_keys(data, _SEEKER_KEYS, where, "a seeker turn has no")
        return Turn("seeker", _reply(data, inventory, reading, where))
    if speaker != "supporter":
        raise UserError(f"unknown speaker '{speaker}'", where=where, fix="use 'seeker' or 'supporter'")
    check_keys(data, _SUPPORTER_KEYS, where)
    rejected = []
    for other, place in items(optional(data, "rejected", list, where), dict, "rejected reply", where):
        check_keys(other, _REPLY_KEYS, place)
        rejected.append(_reply(other, inventory, reading, place))
    return Turn("supporter", _reply(data, inventory, reading, where), tuple(rejected))


def _reply(data: Mapping[str, Any], inventory: Inventory, reading: Reading, where: str) -> Reply:
    text = reading.full_text(require(data, "text", str, where), where)
    names = [name for name, _ in items(optional(data, "strategies", list, where), str, "strategy", where)]
    value, visits = data.get("value"), data.get("visits")
    if value is not None and not (type(value) in (int, float) and math.isfinite(value)):
        raise UserError(f"'value' is {value!r}", where=where, fix="make it a finite number or null")
    if visits is not None and not (type(visits) is int and visits >= 0):
        raise UserError(f"'visits' is {visits!r}", where=where, fix="make it a whole number from 0, or null")
    return Reply(text, reading.labels(names, inventory, where), value, visits)


def _survey(data: Mapping[str, Any] | None, where: str) -> Survey | None:
    if data is None:
        return None
    check_keys(data, _SURVEY_KEYS, f"{where}, survey")
    for name, value in data.items():
        if value is not None and not (type(value) is int and 1 <= value <= 5):
            raise UserError(
                f"'{name}' is {value!r}", where=f"{where}, survey", fix="make it a whole number from 1 to 5"
            )
    return Survey(**data)


def _dialogue_as_json(dialogue: Dialogue) -> dict[str, Any]:
    turns = []
    for turn in dialogue.turns:
        turns.append({"speaker": turn.speaker, **_reply_as_json(turn.reply)})
        if turn.rejected:
            turns[-1]["rejected"] = [_reply_as_json(reply) for reply in turn.rejected]
    content = {key: getattr(dialogue, key) for key in _DIALOGUE_KEYS if key != "format"}
    record = {"format": SCHEMA, **content, "turns": turns, "meta": dict(dialogue.meta)}
    if dialogue.survey is not None:
        record |= {"format": SCHEMA_WITH_SURVEY, "survey": asdict(dialogue.survey)}
    return record


def _reply_as_json(reply: Reply) -> dict[str, Any]:
    """Its fields, without those that say nothing."""
    return {key: value for key in _REPLY_KEYS if (value := getattr(reply, key)) not in (None, ())}
