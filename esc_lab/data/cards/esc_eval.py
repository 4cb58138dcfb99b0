"""Role cards of ESC-Eval (Zhao et al. 2024, arXiv 2406.14952): a JSON list of objects.

`base` holds a line each for age, gender, occupation and problem ("Age: young"), `res` the kind of problem, `id` a
number. They name neither emotion nor traits: nothing is made up for these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esc_lab.artifacts import READ_ERRORS
from esc_lab.data.cards import Card, check_id, check_ids
from esc_lab.data.fields import check_type, items, optional, require
from esc_lab.errors import UserError

_FIELDS: Mapping[str, str] = {
    "age": "age", "gender": "gender", "occupation": "occupation", "problem": "problem",
    "年龄": "age", "性别": "gender", "职业": "occupation", "问题": "problem",
}  # fmt: skip
_KINDS: Mapping[str, str] = {
    "家庭生活": "family life",
    "工作学习": "work and study",
    "社会与其他": "society and other",
}
_WIDE_COLON = "\uff1a"
_UNSAID = ("", "not mentioned", "unknown", "none", "未提及")


def read_esc_eval_cards(path: Path) -> list[Card]:
    """The cards of a file, in its order; ids are `esc-eval-<id>`.

    Raises:
        UserError: it cannot be read, a card has no problem or an id that no file can have, or two have the same id.
    """
    where = str(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except READ_ERRORS as error:
        raise UserError(f"not JSON: {error}", where=where, fix="name a file of ESC-Eval's cards") from error
    records = items(check_type(content, list, "the file", where), dict, "card", where)
    return check_ids([_card(record, place, n) for n, (record, place) in enumerate(records)], where)


def _card(data: Mapping[str, Any], where: str, number: int) -> Card:
    known: dict[str, str] = {}
    last = ""
    for line in require(data, "base", str, where).splitlines():
        name, colon, value = line.replace(_WIDE_COLON, ":").partition(":")
        key = _FIELDS.get(name.strip().lower(), "") if colon else ""
        if key:
            last, known[key] = key, value.strip()
        elif last:  # a value that goes on
            known[last] = f"{known[last]} {line.strip()}".strip()
    situation = known.pop("problem", "")
    if situation.strip(" .").lower() in _UNSAID:
        raise UserError("'base' has no line 'Problem: ...'", where=where, fix="add it, or leave the card out")
    said = {key: value for key, value in known.items() if value.strip(" .").lower() not in _UNSAID}
    kind = optional(data, "res", str, where) or ""
    person = ", ".join(f"{key}: {value}" for key, value in said.items())
    name = check_id(f"esc-eval-{data.get('id', number)}", where)
    return Card(name, situation, problem=_KINDS.get(kind, kind), person=person)
