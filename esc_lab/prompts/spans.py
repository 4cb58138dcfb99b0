"""Texts that remember where their strategy-relevant pieces are, and how they are filled into one another."""

from __future__ import annotations

import string
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

SpanKind = Literal["name", "quoted", "instruction", "neutral_name", "neutral_quoted", "neutral"]


@dataclass(frozen=True)
class Span:
    """Characters `start:end` of the content of message number `message`.

    Kinds: `name` (strategy name), `quoted` (name with its quotation marks), `instruction` (name with its definition),
    `neutral` (instruction text that has nothing to do with a strategy: the control), and in it `neutral_name` and
    `neutral_quoted`, worded and quoted like a strategy's name.
    """

    kind: SpanKind
    message: int
    start: int
    end: int
    strategy: str | None = None

    def moved(self, characters: int) -> Span:
        return replace(self, start=self.start + characters, end=self.end + characters)


@dataclass(frozen=True)
class MarkedText:
    """A text with spans of its own."""

    text: str
    spans: tuple[Span, ...] = ()


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
    """The pieces one after the other."""
    text, spans = "", []
    for number, piece in enumerate(pieces):
        text += separator if number else ""
        spans += [span.moved(len(text)) for span in piece.spans]
        text += piece.text
    return MarkedText(text, tuple(spans))


def mark_strategy(template: str, name: str, definition: str) -> MarkedText:
    """A strategy in the words of a template with `{name}` and `{definition}`, its name and the whole of it marked."""
    filled = fill(template, name=_whole(name, "name"), definition=_whole(definition, "instruction"))
    spans = {span.kind: span for span in filled.spans}
    quoted = _quoted(filled.text, spans["name"], "quoted")
    parts = (quoted or spans["name"], spans["instruction"])
    whole = Span("instruction", 0, min(part.start for part in parts), max(part.end for part in parts))
    marks = (spans["name"], *([quoted] if quoted else []), whole)
    return MarkedText(filled.text, tuple(replace(span, strategy=name) for span in marks))


def mark_neutral(template: str, phrase: str) -> MarkedText:
    """The neutral instruction with its `{phrase}`: the control of a strategy's instruction and name."""
    filled = fill(template, phrase=_whole(phrase, "neutral_name"))
    quoted = _quoted(filled.text, filled.spans[0], "neutral_quoted")
    whole = Span("neutral", 0, 0, len(filled.text))
    return MarkedText(filled.text, (whole, filled.spans[0], *([quoted] if quoted else [])))


def _whole(text: str, kind: SpanKind) -> MarkedText:
    return MarkedText(text, (Span(kind, 0, 0, len(text)),))


def _quoted(text: str, span: Span, kind: SpanKind) -> Span | None:
    """The span with the quotation marks around it; None if there are none."""
    around = text[max(span.start - 1, 0) : span.start] + text[span.end : span.end + 1]
    marks = ('""', "''", "“”", "«»", "「」")
    return replace(span, kind=kind, start=span.start - 1, end=span.end + 1) if around in marks else None
