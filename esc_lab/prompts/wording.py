"""Wordings: texts with named slots, and the check that each has the slots that it needs."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any, NamedTuple

from esc_lab.data.fields import check_keys, require
from esc_lab.errors import UserError


class Slots(NamedTuple):
    """The slots that a text must have, and those that it may have."""

    required: frozenset[str]
    optional: frozenset[str]


def slots(*required: str, optional: tuple[str, ...] = ()) -> Slots:
    return Slots(frozenset(required), frozenset(optional))


def check_wording(wording: Mapping[str, Any], texts: Mapping[str, Slots], where: str) -> Mapping[str, str]:
    """The wording, once it holds exactly the texts and each of these its slots.

    Raises:
        UserError: it does not.
    """
    check_keys(wording, texts, where)
    for name, known in texts.items():
        text = require(wording, name, str, where)
        try:
            found = {slot for _, slot, _, _ in string.Formatter().parse(text) if slot is not None}
        except ValueError as error:
            raise UserError(f"'{name}': {error}", where=where, fix="write {{ and }} for braces") from error
        for slot in found - known.required - known.optional:
            has = ", ".join(sorted(known.required | known.optional)) or "no slots"
            fix = f"it has {has}; write {{{{ and }}}} for braces"
            raise UserError(f"'{name}' has the unknown slot {{{slot}}}", where=where, fix=fix)
        for slot in known.required - found:
            raise UserError(f"'{name}' lacks the slot {{{slot}}}", where=where, fix="write where it belongs")
    return wording
