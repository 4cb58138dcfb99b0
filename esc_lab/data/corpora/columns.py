"""Which key or column of a foreign record holds what, declared as data (`data.columns`), and who its speakers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from esc_lab.config.files import read_option
from esc_lab.data.dialogue import Speaker
from esc_lab.data.fields import check_keys
from esc_lab.errors import UserError

# Of a dialogue, preference pair or labelled reply; of one message; and options.
ABOUT = ("tree", "situation", "emotion", "problem")
RECORD_NAMES = (
    "dialogue", "order", "turns", "history", "prompt", "reply", "chosen", "rejected", "label", "reply_strategy",
    "chosen_strategy", "rejected_strategy", *ABOUT,
)  # fmt: skip
TURN_NAMES = ("speaker", "text", "strategy", "seeker", "supporter")
OPTIONS = ("separator", "label_in_text")

# How corpora call the two sides, in lower case; None: neither, such as system messages.
ROLES: Mapping[str, Speaker | None] = {
    **dict.fromkeys(
        ("user", "usr", "human", "seeker", "help seeker", "client", "patient", "speaker", "visitor", "来访者", "求助者",
         "用户", "患者", "咨询者"), "seeker"
    ),
    **dict.fromkeys(
        ("assistant", "sys", "gpt", "chatgpt", "bot", "model", "supporter", "helper", "listener", "counselor",
         "counsellor", "therapist", "心理咨询师", "咨询师", "支持者", "倾听者", "助手"), "supporter"
    ),
    **dict.fromkeys(
        ("system", "developer", "tool", "function", "function_call", "observation"), None
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Names of keys or columns by what they hold; several names of one thing are tried in turn.

    A dot leads into an object or a list (`original_data.dialog`, `messages.0.content`); a name that is itself a key
    counts first.

    Attributes:
        separator: between several strategies in one text.
        label_in_text: a supporter's text may begin with its strategy in brackets, where no other place has one.
        roles: who speaks, by the name that the file uses, in lower case.
    """

    names: Mapping[str, tuple[str, ...]]
    separator: str | None = None
    label_in_text: bool = False
    roles: Mapping[str, Speaker | None] = field(default_factory=lambda: ROLES)

    def __contains__(self, key: str) -> bool:
        return key in self.names

    def get(self, data: object, key: str) -> Any:
        """What a record or message has under the first name that is there; None if none is."""
        values = (look_up(data, name) for name in self.names.get(key, ()))
        return next((value for value in values if value is not None), None)

    def has(self, data: object, key: str) -> bool:
        """Whether a record or message has a place under a name, be it empty."""
        names = self.names.get(key, ())
        return any((isinstance(data, Mapping) and name in data) or look_up(data, name) is not None for name in names)

    def shown(self, key: str) -> str:
        """The names of a key, for messages."""
        return " or ".join(f"'{name}'" for name in self.names.get(key, ()))

    @cached_property
    def is_rows(self) -> bool:
        """Whether a record is one message, and not a whole dialogue, pair or labelled reply."""
        return not self.names.keys() & {"turns", "history", "prompt", "chosen"}

    def used(self, data: Mapping[str, Any]) -> set[str]:
        """Keys of a record that the names of records lead into, but for the name of the dialogue."""
        names = {name for key in RECORD_NAMES if key != "dialogue" for name in self.names.get(key, ())}
        return {name if name in data else name.partition(".")[0] for name in names}


def look_up(data: object, name: str) -> Any:
    """The value under a dotted name; None where there is none."""
    if isinstance(data, Mapping) and name in data:
        return data[name]
    head, dot, rest = name.partition(".")
    value: Any = None
    if isinstance(data, Mapping):
        value = data.get(head)
    elif isinstance(data, list | tuple) and head.isdecimal() and int(head) < len(data):
        value = data[int(head)]
    return look_up(value, rest) if dot and value is not None else value


def build_columns(declared: Mapping[str, Any], roles: Mapping[str, Any], where: str = "data.columns") -> Columns:
    """Columns as a configuration declares them.

    Raises:
        UserError: an unknown key, a value that is no name, names that make no dialogue, or an unknown side.
    """
    check_keys(declared, (*RECORD_NAMES, *TURN_NAMES, *OPTIONS), where)
    names: dict[str, tuple[str, ...]] = {}
    for key, value in declared.items():
        if key in OPTIONS or value is None:
            continue
        given = value if isinstance(value, list | tuple) else [value]
        if not given or any(isinstance(name, bool | Mapping) or not str(name).strip() for name in given):
            raise UserError(f"'{key}' is {value!r}", where=where, fix="name a column, or several in brackets")
        names[key] = tuple(str(name) for name in given)
    columns = Columns(
        names,
        None if declared.get("separator") is None else str(declared["separator"]),
        bool(declared.get("label_in_text", False)),
        {**ROLES, **_read_roles(roles)},
    )
    _check_complete(columns, where)
    return columns


def read_form(name: str, roles: Mapping[str, Any] = MappingProxyType({})) -> Columns:
    """The columns of a form that ships with esc-lab, those of `conf/data/<name>.yaml`, with roles beside the usual."""
    return build_columns(read_option("data", name)["columns"], roles, f"conf/data/{name}.yaml")


def _check_complete(columns: Columns, where: str) -> None:
    """Refuse names from which no dialogue can come."""
    sides = "speaker" in columns and "text" in columns, "seeker" in columns and "supporter" in columns
    if columns.is_rows and not any(sides):
        fix = "name the columns speaker and text (one row a message), turns (one row a dialogue), or prompt and reply"
        raise UserError("they name no messages", where=where, fix=fix)
    pair = () if columns.is_rows else (("chosen", "rejected"),)  # a row has a reply, and one rejected in its place
    for one, other in (*pair, ("seeker", "supporter"), ("speaker", "text")):
        if (one in columns) != (other in columns):
            given, missing = (one, other) if one in columns else (other, one)
            fix = f"name the column of {missing} too: {where}.{missing}=NAME"
            raise UserError(f"they name '{given}' without '{missing}'", where=where, fix=fix)


def _read_roles(roles: Mapping[str, Any]) -> dict[str, Speaker | None]:
    for name, side in roles.items():
        if side not in ("seeker", "supporter", None):
            raise UserError(f"'{name}' is {side!r}", where="data.roles", fix="use seeker, supporter or null (neither)")
    return {fold_role(name): side for name, side in roles.items()}


def fold_role(name: object) -> str:
    """The name of a speaker as names are compared: case, hyphens and blanks around it do not matter."""
    return " ".join(str(name).strip().lower().replace("-", " ").split())
