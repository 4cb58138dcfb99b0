"""Checked fields of JSON and YAML objects: what is not as it should be is a UserError that says where."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from esc_lab.errors import UserError, nearest

T = TypeVar("T")

_KINDS: Mapping[type, str] = {
    str: "a text",
    list: "a list",
    dict: "an object",
    bool: "true or false",
    int: "a whole number",
}


def check_type(value: object, kind: type[T], name: str, where: str) -> T:
    """`value` if it is of the JSON type `kind`; otherwise a UserError that calls it `name`."""
    if not isinstance(value, kind):
        shown = json.dumps(value, ensure_ascii=False, default=str)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise UserError(f"{name} is {shown}", where=where, fix=f"make it {_KINDS[kind]}")
    return value


def require(data: Mapping[str, Any], key: str, kind: type[T], where: str) -> T:
    """The value of a key that must be there, of the JSON type `kind`."""
    if key not in data:
        raise UserError(f"no '{key}' among the keys {', '.join(data) or '(none)'}", where=where, fix=f"add '{key}'")
    return check_type(data[key], kind, f"'{key}'", where)


def optional(data: Mapping[str, Any], key: str, kind: type[T], where: str) -> T | None:
    """The value of a key that may be missing or null, of the JSON type `kind`."""
    value = data.get(key)
    return None if value is None else check_type(value, kind, f"'{key}'", where)


def items(values: Sequence[Any] | None, kind: type[T], name: str, where: str) -> Iterator[tuple[T, str]]:
    """The items of a list, of the JSON type `kind`, each with its place (`where, name 3`); none of a missing list."""
    for number, item in enumerate(values or (), start=1):
        place = f"{where}, {name} {number}"
        yield check_type(item, kind, f"the {name}", place), place


def check_keys(data: Mapping[str, Any], known: Collection[str], where: str, what: str = "unknown key") -> None:
    """Refuse keys that are not among the known ones."""
    for key in data:
        if key not in known:
            raise UserError(f"{what} '{key}'{nearest(str(key), known)}", where=where, fix=f"use {', '.join(known)}")
