"""The form of a file, told by its first record."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from esc_lab.config.data import FORMS
from esc_lab.config.files import read_option
from esc_lab.data.corpora.columns import ABOUT, RECORD_NAMES, Columns, build_columns, look_up, read_form
from esc_lab.data.corpora.esc_pro import ROLES
from esc_lab.data.corpora.mapped import parse_cell
from esc_lab.data.corpora.records import Record
from esc_lab.errors import UserError

log = logging.getLogger(__name__)


@dataclass
class Form:
    """The form of a corpus: its name, `auto` where the first record of each file tells it, and columns of its own."""

    name: str = "auto"
    columns: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[str, Any] = field(default_factory=dict)
    _last: str = ""  # what `auto` was for the file before

    def resolve(self, first: Record) -> tuple[str, Columns | None]:
        """The name of the form of a file, by its first record, and its columns, unless it has a reader of its own.

        Raises:
            UserError: the record is of no form, or columns or roles are wrong or given to a form without them.
        """
        if (self.columns or self.roles) and self.name not in ("auto", *FORMS):
            key = "data.columns" if self.columns else "data.roles"
            fix = f"leave out {key}, or data.format={self.name}"
            raise UserError(f"the form '{self.name}' has keys and speakers of its own", where=key, fix=fix)
        if self.columns:
            columns = build_columns(self.columns, self.roles)
            shipped = read_option("data", self.name)["columns"] if self.name not in ("auto", "columns") else {}
            checked = columns.names if columns.is_rows else RECORD_NAMES  # others stand in messages
            own = [key for key in columns.names if key in checked and self.columns[key] != shipped.get(key)]
            absent = [key for key in own if first.from_table and not columns.has(first.data, key)]
            problem = f"no {' and no '.join(map(columns.shown, absent))}" if absent else find_missing(first, columns)
            if problem:
                fix = "name the columns as the file does in data.columns"
                what = f"{problem} among {', '.join(first.data) or '(none)'}, which data.columns asks for"
                raise UserError(what, where=first.where, fix=fix)
            return ("columns" if self.name == "auto" else self.name), columns
        name = self.name
        if name == "auto":
            same = self._last and not _find_problem(self._last, first)
            name = self._last if same else detect_form(first, own_readers=not self.roles)
            self._last = name
        if name == "columns":
            fix = "data.columns={dialogue: ID, speaker: WHO, text: SAID} names them"
            raise UserError("no columns are given", where="data.format=columns", fix=fix)
        return name, read_form(name, self.roles) if name in FORMS else None


def detect_form(record: Record, *, own_readers: bool = True) -> str:
    """The first form that the record has the keys of; the log names it.

    Args:
        own_readers: try the forms with readers of their own, which take no roles, too.

    Raises:
        UserError: it is of no form; the message says of each what is missing.
    """
    tried = {}
    names: list[str] = [*(_NATIVE if own_readers else ()), *(form for form in FORMS if form != "columns")]
    for name in names:
        tried[name] = _find_problem(name, record)
        if not tried[name]:
            columns = read_form(name) if name in FORMS else Columns({})
            held = [f"{key} in {columns.shown(key)}" for key in columns.names if key not in ABOUT
                    and columns.get(record.data, key) is not None]  # fmt: skip
            log.info("%s: read as %s (data=%s)%s", record.where, name, name, ": " + ", ".join(held) if held else "")
            return name
    if {"base", "id"} <= {*record.data}:
        fix = "they are for stage=converse, cards=file cards.path=FILE; converse makes dialogues of them"
        raise UserError("a role card of ESC-Eval, and no dialogue", where=record.where, fix=fix)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in tried.items())
    raise UserError(
        f"of no known form, with the keys {', '.join(record.data) or '(none)'} ({reasons})",
        where=record.where,
        fix="name what holds what, e.g. data.columns={dialogue: ID, speaker: WHO, text: SAID} for one row a message "
        "(docs/data-format.md)",
    )


def _find_problem(name: str, record: Record) -> str:
    """Why a record is not of a form; an empty text where it is."""
    problem: str = _NATIVE[name](record) if name in _NATIVE else find_missing(record, read_form(name))
    return problem


def find_missing(record: Record, columns: Columns) -> str:
    """What of a form the record lacks; an empty text where it lacks nothing."""

    def lacks(*keys: str) -> str:
        missing = [columns.shown(key) for key in keys if key in columns and not columns.has(record.data, key)]
        return f"no {' and no '.join(missing)}" if missing else ""

    if columns.is_rows:
        return lacks("dialogue", "speaker", "text", "seeker", "supporter")
    if "turns" in columns:
        turns = parse_cell(columns.get(record.data, "turns"))
        if turns is None or not isinstance(turns, list):
            return lacks("turns") if turns is None or isinstance(turns, str) else f"{columns.shown('turns')} is no list"
        sides = [key for key in ("speaker", "text", "seeker", "supporter") if key in columns]
        if turns and sides and all(columns.get(turns[0], key) is None for key in sides):
            return f"no {' and no '.join(columns.shown(key) for key in sides)} in {columns.shown('turns')}"
        return lacks("reply")
    if not any(columns.has(record.data, key) for key in ("reply", "chosen")):
        return lacks("reply", "chosen")
    first = columns.names["prompt"][0]
    whole = columns.names["prompt"] == (first,) and "role" in columns.names.get("speaker", ())  # may be in chosen
    return "" if whole or Columns({"prompt": (first,)}).has(record.data, "prompt") else f"no '{first}'"


def _is_own(record: Record) -> str:
    format = record.data.get("format")
    own = (format is not None and not record.from_table) or isinstance(record.data.get("turns"), list)
    return "" if own or str(format).startswith("esc-lab/") else "no 'turns' and no 'format'"


def _is_esconv(record: Record) -> str:
    return "" if "dialog" in record.data and not record.from_table else "no 'dialog'"


def _is_extes(record: Record) -> str:
    return "" if isinstance(record.data.get("content"), list) else "no list 'content'"


def _is_esc_pro(record: Record) -> str:
    """ESC-Pro's reader takes lists of messages of its own roles."""
    data = record.data
    if "messages" in data and not record.from_table:
        messages = data["messages"] if isinstance(data["messages"], list) else []
        roles = [look_up(item, "role") for item in messages]
        foreign = [role for role in roles if isinstance(role, str) and role not in ROLES]
        parts = any(isinstance(look_up(item, "content"), list) for item in messages)
        both = [data.get(key) for key in ("chosen", "rejected", "reject") if key in data]
        if foreign:
            return f"'role' is '{foreign[0]}'"
        if parts or any(isinstance(reply, list) for reply in both) or isinstance(data.get("kto_tag"), bool):
            return "'content' or replies in parts"
        return ""
    if isinstance(data.get("prompt"), list) or ("prompt" not in data and isinstance(data.get("chosen"), list)):
        return ""
    return "no 'messages', and no list 'prompt' or 'chosen'"


_NATIVE: Mapping[str, Callable[[Record], str]] = {
    "jsonl": _is_own, "esconv": _is_esconv, "esc_pro": _is_esc_pro, "extes": _is_extes,
}  # fmt: skip
