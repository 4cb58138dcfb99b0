"""What a role's completion says, or why it cannot be used."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from esc_lab.search.role_prompts import END
from esc_lab.strategies import Inventory, UnknownStrategyError, normalize_label

_ROLE = re.compile(
    r"\A[\s\"'*]*(?:the )?(?:supporter|seeker|assistant|user)\s*(?:\([^()\n]*\))?\s*[:\-]\s*", re.IGNORECASE
)
_NEXT_ROLE = re.compile(r"\n\s*\**(?:supporter|seeker|assistant|user)\b[^\n:]{0,60}:", re.IGNORECASE)
_LINE = re.compile(r"^[\s\-*\"'(\d.)]*([A-Za-z][A-Za-z \-&/]*?)[\"'*)]*\s*[:=]\s*\"?(\d+(?:\.\d+)?)", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?…][\"')\]]*(?=\s|\Z)")


class UnusableError(ValueError):
    """A completion cannot be used; the message says why, for the model to do better.

    Attributes:
        partly: what could be used of it, if that is anything.
    """

    def __init__(self, message: str, partly: Any = None) -> None:
        super().__init__(message)
        self.partly = partly


def numbers(text: str, most: int) -> dict[str, float]:
    """Name -> number of a JSON object in the text, or of lines `name: number`.

    Raises:
        UnusableError: there is no such thing in it, or a number is not in [0, most].
    """
    found = _object(text)
    if found is None:
        found = {name.strip(): value for name, value in _LINE.findall(text)}
    if not found:
        raise UnusableError("there is no JSON object with a number for each name in it")
    values: dict[str, float] = {}
    for name, value in found.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise UnusableError(f"'{name}' has no number but {json.dumps(value)[:60]}") from None
        if isinstance(value, bool) or not 0 <= number <= most:
            raise UnusableError(f"'{name}' is {json.dumps(value)}, which is not from 0 to {most}")
        values[name] = number
    return values


def ratings(text: str, inventory: Inventory) -> dict[str, float]:
    """Rating of each strategy that was rated, from 0 to 10, in the order of the completion.

    Raises:
        UnusableError: nothing can be read, or there are names that the inventory does not have; `partly` holds the
            rest.
    """
    known: dict[str, float] = {}
    unknown = []
    for name, value in numbers(text, 10).items():
        try:
            known[normalize_label(name, inventory)] = value
        except UnknownStrategyError:
            unknown.append(name)
    if unknown or not known:
        names = ", ".join(repr(name[:40]) for name in unknown[:3])
        raise UnusableError(f"{names}: no such strategy; use {', '.join(inventory.names)}", partly=known or None)
    return known


def scores(text: str, axes: Sequence[str]) -> dict[str, float]:
    """Score of each axis, from 0 to 4.

    Raises:
        UnusableError: an axis has no score, or one out of range.
    """
    folded = {name.lower(): value for name, value in numbers(text, 4).items()}
    missing = [name for name in axes if name.lower() not in folded]
    if missing:
        raise UnusableError(f"no score for {', '.join(missing)}")
    return {name: folded[name.lower()] for name in axes}


def message(text: str, inventory: Inventory | None = None, *, cut_off: bool = False) -> str:
    """What one side says: without a role or strategy label before it, quotation marks around it, or turns after it.

    Args:
        cut_off: the completion reached its token limit; a last sentence that is not whole is left out if others are.

    Raises:
        UnusableError: nothing is left.
    """
    said = _ROLE.sub("", text.strip())
    following = _NEXT_ROLE.search(said)
    said = said[: following.start()] if following else said
    label = re.match(r"\A[\s*\"]*[(\[]([^()\[\]\n]{1,60})[)\]][\s*:]*", said)
    if label and inventory is not None and _is_strategy(label[1], inventory):
        said = said[label.end() :]
    said = said.strip().strip('"“”*').strip()
    ends = [match.end() for match in _SENTENCE_END.finditer(said)]
    if cut_off and ends and not following:
        said = said[: ends[-1]].rstrip()
    if not re.search(r"\w", said):
        raise UnusableError("there is no message in it")
    return said


def ends(text: str) -> bool:
    """Whether the seeker's completion ends the talk."""
    return END.lower() in text.lower()


def expected(log_probs: Sequence[float], values: Sequence[float]) -> float:
    """Expected value over options with these log-probabilities (normalised)."""
    return sum(math.exp(log_prob) * value for log_prob, value in zip(log_probs, values, strict=True))


def _is_strategy(label: str, inventory: Inventory) -> bool:
    try:
        normalize_label(label, inventory)
    except UnknownStrategyError:
        return False
    return True


def _object(text: str) -> Mapping[str, Any] | None:
    """The first JSON object in a text, be it in a code block or among words."""
    decoder = json.JSONDecoder()
    for start in (match.start() for match in re.finditer(r"\{", text)):
        try:
            value, _ = decoder.raw_decode(text, start)
        except ValueError:
            continue
        if isinstance(value, dict) and value:
            return value
    return None
