"""Texts of models, endpoints and files, made safe to show: on a terminal, in a spreadsheet, in Markdown."""

from __future__ import annotations

import re

# C0 but tab and newline, DEL, C1, and the marks that turn the direction of writing. A terminal obeys the first three.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_MARKDOWN = re.compile(r"[\\`*~\[\]<>|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=:)//|(?<=\bwww)\.", re.IGNORECASE)


def show_controls(text: str) -> str:
    r"""The text with control characters as escapes, so that no terminal obeys them.

    >>> show_controls("\x1b[2Jgone\n")
    '\\x1b[2Jgone\n'
    """
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def escape_markdown(text: str) -> str:
    """The text as Markdown that shows it in one line: no markup, table cell, HTML or link comes of it.

    >>> escape_markdown("<b>*max_tokens*</b> | http://a.b")
    '\\\\<b\\\\>\\\\*max_tokens\\\\*\\\\</b\\\\> \\\\| http:\\\\//a.b'
    """
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(show_controls(text).split()))


def to_cell(value: object) -> object:
    """A value for a CSV cell: no spreadsheet takes a text for a formula.

    >>> to_cell("=1+1"), to_cell("-"), to_cell(-1.5), to_cell("-1.5")
    ("'=1+1", "'-", -1.5, '-1.5')
    """
    if not isinstance(value, str):
        return value
    text = show_controls(value)
    return f"'{text}" if text.lstrip(" \t\n\"'")[:1] in tuple("=+-@") and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
