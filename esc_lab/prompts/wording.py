"""Texts with named slots: their check, and how they are filled so that strategy-relevant pieces are found again."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from esc_lab.data.fields import check_keys, require
from esc_lab.errors import UserError

SpanKind = Literal[
    "name", "quoted", "quoted_strategy", "instruction", "neutral_name", "neutral_quoted", "neutral", "history"
]


@dataclass(frozen=True)
class Span:
    """Characters `start:end` of the content of message number `message`.

    Kinds: `name` (strategy name), `quoted` (name with its quotation marks), `quoted_strategy` (`"<name>" strategy`),
    `instruction` (name with its definition), `neutral` (instruction text that has nothing to do with a strategy: the
    control), and in it `neutral_name` and `neutral_quoted`, worded and quoted like a strategy's name; `history` (what
    was said before: older messages together, and each message that is a turn of the chat).
    """

    kind: SpanKind
    message: int
    start: int
    end: int
    strategy: str | None = None

    def moved(self, characters: int) -> Span:
        return Span(self.kind, self.message, self.start + characters, self.end + characters, self.strategy)


@dataclass(frozen=True)
class MarkedText:
    """A text with spans of its own."""

    text: str
    spans: tuple[Span, ...] = ()


def check_wording(wording: Mapping[str, Any], texts: Mapping[str, str], where: str) -> Mapping[str, str]:
    """The wording, once it holds exactly the texts and each of these its slots.

    Args:
        texts: the slots of each, with blanks between them; one with a question mark may be left out.

    Raises:
        UserError: it does not.
    """
    check_keys(wording, texts, where)
    for name, slots in texts.items():
        text = require(wording, name, str, where)
        try:
            found = {slot for _, slot, _, _ in string.Formatter().parse(text) if slot is not None}
        except ValueError as error:
            raise UserError(f"'{name}': {error}", where=where, fix="write {{ and }} for braces") from error
        known = {slot.rstrip("?"): not slot.endswith("?") for slot in slots.split()}
        for slot in found - known.keys():
            fix = f"it has {', '.join(sorted(known)) or 'no slots'}; write {{{{ and }}}} for braces"
            raise UserError(f"'{name}' has the unknown slot {{{slot}}}", where=where, fix=fix)
        for slot, needed in known.items():
            if needed and slot not in found:
                raise UserError(f"'{name}' lacks the slot {{{slot}}}", where=where, fix="write where it belongs")
    return wording


def fill(template: str, **slots: str | MarkedText) -> MarkedText:
    """The text of a template with its `{slots}` filled in; spans of what is filled in come along."""
    pieces: list[MarkedText] = []
    for literal, slot, _, _ in string.Formatter().parse(template):
        pieces.append(MarkedText(literal))
        if slot is not None:
            value = slots[slot]
            pieces.append(MarkedText(value) if isinstance(value, str) else value)
    return join("", pieces)


def join(separator: str, pieces: Iterable[MarkedText]) -> MarkedText:
    text, spans = "", []
    for number, piece in enumerate(pieces):
        text += separator if number else ""
        spans += [span.moved(len(text)) for span in piece.spans]
        text += piece.text
    return MarkedText(text, tuple(spans))


@lru_cache(maxsize=1024)  # a few for each strategy, in thousands of prompts
def mark_strategy(template: str, name: str, definition: str) -> MarkedText:
    """A strategy in the words of a template with `{name}` and `{definition}`, its name and the whole of it marked."""
    filled = fill(template, name=_whole(name, "name"), definition=_whole(definition, "instruction"))
    spans = {span.kind: span for span in filled.spans}
    quoted = _quoted(filled.text, spans["name"], "quoted")
    parts = (*(quoted or (spans["name"],)), spans["instruction"])
    whole = Span("instruction", 0, min(part.start for part in parts), max(part.end for part in parts))
    followed = (re.match(r"\s+strategy\b", filled.text[span.end :]) for span in quoted)
    published = [
        replace(span, kind="quoted_strategy", end=span.end + word.end())
        for span, word in zip(quoted, followed, strict=True)
        if word
    ]
    marks = (spans["name"], *quoted, *published, whole)
    return MarkedText(filled.text, tuple(replace(span, strategy=name) for span in marks))


@lru_cache(maxsize=1024)
def mark_neutral(template: str, phrase: str) -> MarkedText:
    """The neutral instruction with its `{phrase}`: the control of a strategy's instruction and name."""
    filled = fill(template, phrase=_whole(phrase, "neutral_name"))
    whole = Span("neutral", 0, 0, len(filled.text))
    return MarkedText(filled.text, (whole, filled.spans[0], *_quoted(filled.text, filled.spans[0], "neutral_quoted")))


def _whole(text: str, kind: SpanKind) -> MarkedText:
    return MarkedText(text, (Span(kind, 0, 0, len(text)),))


def _quoted(text: str, span: Span, kind: SpanKind) -> tuple[Span, ...]:
    """The span with the quotation marks around it, if there are any."""
    around = text[max(span.start - 1, 0) : span.start] + text[span.end : span.end + 1]
    marks = ('""', "''", "“”", "«»", "「」")
    return (replace(span, kind=kind, start=span.start - 1, end=span.end + 1),) if around in marks else ()
