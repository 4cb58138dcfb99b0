"""JSON files in and out: records with their place in the file, checked values.

A file holds either one JSON list of objects or one JSON object a line; the content decides which, not the file name.
Lines, records and turns are counted from 1 in every message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from esc_lab.data.fields import check_type
from esc_lab.errors import UserError


@dataclass(frozen=True)
class Record:
    """One JSON object of a file and its place: `file:line`, or `file, record n` within a JSON list."""

    data: dict[str, Any]
    where: str


def read_records(path: Path) -> list[Record]:
    """All objects of a JSON list or of a file with one object a line (blank lines are skipped).

    Raises:
        UserError: the file is missing, unreadable, empty, not valid JSON in UTF-8, or holds other things than objects.
    """
    text = _read_text(path)
    if text.lstrip().startswith("["):
        items = _parse(text, path, line=1)
        placed = [(f"{path}, record {number}", item) for number, item in enumerate(items, start=1)]
    else:
        # Only "\n" ends a line: splitlines() would also cut at separators that JSON texts may hold unescaped.
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        placed = [(f"{path}:{number}", _parse(line, path, line=number)) for number, line in lines]
    if not placed:
        raise UserError("the file holds no dialogues", where=str(path), fix="give a file with at least one record")
    if "\\ud" in text or "\\uD" in text:
        for where, item in placed:
            _check_encodable(item, where)
    return [Record(check_type(item, dict, "the record", where), where) for where, item in placed]


def as_line(record: Mapping[str, Any], where: str) -> str:
    """The record as one line of JSON.

    Raises:
        UserError: it holds something that JSON or UTF-8 cannot carry.
    """
    try:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False)
        line.encode()
    except (TypeError, ValueError) as error:
        raise UserError(f"not JSON: {error}", where=where, fix="use JSON values only") from error
    return line


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        fix = f"check the path; the working directory is {Path.cwd()}"
        raise UserError("there is no such file", where=str(path), fix=fix) from error
    except OSError as error:
        fix = "give a file that you may read"
        raise UserError(f"cannot be read ({error.strerror})", where=str(path), fix=fix) from error
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 (byte {error.start})", where=str(path), fix="save the file as UTF-8") from error
    if not text.strip():
        raise UserError("the file is empty", where=str(path), fix="give a file with at least one record")
    return text


def _parse(text: str, path: Path, line: int) -> Any:
    """JSON value of `text`, which starts at `line` of the file."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        offset = error.lineno - 1 if isinstance(error, json.JSONDecodeError) else 0
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise UserError(
            f"broken JSON: {reason}",
            where=f"{path}:{line + offset}",
            fix="the file must be one JSON list, or hold one JSON object a line",
        ) from error


def _check_encodable(item: object, where: str) -> None:
    """JSON escapes can spell half a surrogate pair, which no text file, hash or tokenizer can carry."""
    try:
        json.dumps(item, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        fix = "repair or remove the character"
        raise UserError(f"half a character, {error.object[error.start]!r}", where=where, fix=fix) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
