"""Files in and out: records with their place in the file, checked values.

A file holds either one JSON list of objects or one JSON object a line; the content decides which, not the file name,
save for tables (.csv, .tsv, .parquet, see `tables`). An object may also take several lines. Records of the one key
`text` are read as the JSON object that it holds. A list of messages in place of an object is a record whose key `.` is
that list, and a text whose lines begin with speakers one whose key `transcript` is that text. Lines, records and turns
are counted from 1 in every message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from esc_lab.data.corpora.tables import TABLES, TEXT_TABLES, read_table
from esc_lab.data.fields import check_type
from esc_lab.errors import UserError

_MAX_DEPTH = 100
_SPEAKER = re.compile(r"[*\[<]*\w[\w -]{0,30}[*\]>]*[ \t]*[:\uff1a]\s*\S")  # a line that a name begins
_FIX = "the file must be one JSON list, or hold one JSON object a line; tables end in .csv, .tsv or .parquet"


@dataclass(frozen=True)
class Record:
    """One JSON object of a file and its place: `file:line`, or `file, record n` within a JSON list."""

    data: dict[str, Any]
    where: str
    from_table: bool = False  # of texts, such as CSV, in which no value is a list or an object


def read_records(path: Path) -> list[Record]:
    """All objects of a JSON list or of a file with one object a line (blank lines are skipped), or rows of a table.

    Raises:
        UserError: the file is missing, unreadable, empty, neither a table nor valid JSON in UTF-8 nor a transcript, or
            holds other things than objects.
    """
    if path.is_dir() or path.suffix.lower() in TABLES:
        rows = read_table(path)
        if not rows:
            raise UserError("the table has no rows", where=str(path), fix="give a table with at least one row")
        return [Record(row, where, path.suffix.lower() in TEXT_TABLES) for where, row in rows]
    text = _read_text(path)
    if text.lstrip().startswith("[") and not _holds_lists(text):
        items = _parse(text, path)
        if items and all(isinstance(item, list) and item and isinstance(item[0], str) for item in items):
            items = [items]  # one dialogue of [speaker, text]
        placed = [(f"{path}, record {number}", item) for number, item in enumerate(items, start=1)]
    elif not text.lstrip().startswith(("{", "[")) and _SPEAKER.match(text.lstrip()):
        placed = [(str(path), {"transcript": text})]
    else:
        placed = list(_parse_objects(text, path))
    placed = [(where, _to_object(item, where)) for where, item in placed]
    if not placed:
        raise UserError("the file holds no dialogues", where=str(path), fix="give a file with at least one record")
    if "\\ud" in text or "\\uD" in text:
        for where, item in placed:
            _check_encodable(item, where)
    return [Record(check_type(item, dict, "the record", where), where) for where, item in placed]


def _parse_objects(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Objects with their places: one a line, or over several lines where it is whole only there."""
    number, at = 1, 0
    while at < len(text):
        # Only "\n" ends a line: splitlines() would also cut at separators that JSON texts may hold unescaped.
        line, end = _line_at(text, at)
        if line.strip():
            try:
                item = json.loads(line, parse_constant=_refuse_constant)
            except json.JSONDecodeError as error:
                item, end = _parse_over_lines(text, at, error, path, number)
            except (ValueError, RecursionError) as error:
                raise _broken(error, path, number) from error
            yield f"{path}:{number}", item
        number += text.count("\n", at, end)
        at = end


def _line_at(text: str, at: int) -> tuple[str, int]:
    """The line that starts at a character, and where the next one does."""
    end = text.find("\n", at) + 1 or len(text)
    return text[at:end].removesuffix("\n"), end


def _parse_over_lines(text: str, at: int, cut: json.JSONDecodeError, path: Path, number: int) -> tuple[Any, int]:
    """The object that starts at a character, in line `number`, and goes on after that line; where the next line starts.

    Args:
        cut: what is wrong with its first line alone.
    """
    line, following = _line_at(text, at)
    if cut.pos < len(line.rstrip()):  # and not only its end is missing
        raise _broken(cut, path, number) from cut
    try:
        item, end = _DECODER.raw_decode(text, at + len(line) - len(line.lstrip()))
    except json.JSONDecodeError as error:
        # Where another object follows, the line was cut off; else the object over several lines is broken.
        another = not text[following:].strip() or text[following:].lstrip().startswith("{")
        raise (_broken(cut, path, number) if another else _broken(error, path, 1)) from error
    except (ValueError, RecursionError) as error:
        raise _broken(error, path, number) from error
    rest, end = _line_at(text, end)
    if rest.strip():
        where = f"{path}:{number + text.count(chr(10), at, end - 1)}"
        raise UserError("more than one object in a line", where=where, fix=_FIX)
    return item, end


def _holds_lists(text: str) -> bool:
    """Whether each line is a list of its own, as in AugESC."""
    line, end = _line_at(text.strip(), 0)
    try:
        return end < len(text.strip()) and isinstance(json.loads(line), list)
    except (ValueError, RecursionError):
        return False


def _to_object(item: object, where: str) -> object:
    """The object in a record whose only key is `text`, as data sets of the Hugging Face hub hold them; a list of
    messages as an object with the key `.`; else itself.
    """
    if isinstance(item, list) and item and all(isinstance(message, list | dict) for message in item):
        return {".": item}
    text = item["text"] if isinstance(item, dict) and list(item) == ["text"] else None
    if not (isinstance(text, str) and text.lstrip().startswith("{")):
        return item
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        fix = "put a JSON object there, or its keys into the record itself"
        raise UserError(
            f"the text in the one key 'text' is not JSON: {_reason(error)}", where=where, fix=fix
        ) from error


def check_nesting(meta: Mapping[str, Any], where: str) -> None:
    """Refuse what else a record brings where it is nested so deep that it can be neither hashed nor written."""
    level = [part for part in meta.values() if isinstance(part, dict | list)]
    for _ in range(_MAX_DEPTH):
        parts = (part for value in level for part in (value.values() if isinstance(value, dict) else value))
        level = [part for part in parts if isinstance(part, dict | list)]
    if level:
        raise UserError("nested too deep", where=where, fix=f"nest at most {_MAX_DEPTH} lists or objects")


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


def _parse(text: str, path: Path) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _broken(error, path, 1) from error


def _broken(error: ValueError | RecursionError, path: Path, line: int) -> UserError:
    """What is wrong with the JSON that starts at `line` of a file, and the words around it."""
    if not isinstance(error, json.JSONDecodeError):
        return UserError(f"broken JSON: {_reason(error)}", where=f"{path}:{line}", fix=_FIX)
    around = error.doc[max(error.pos - 30, 0) : error.pos + 30]
    where = f"{path}:{line + error.lineno - 1}, column {error.colno}"
    return UserError(f"broken JSON: {error.msg}, in {around!r}", where=where, fix=_FIX)


def _reason(error: ValueError | RecursionError) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else str(error)


def _check_encodable(item: object, where: str) -> None:
    """JSON escapes can spell half a surrogate pair, which no text file, hash or tokenizer can carry."""
    try:
        json.dumps(item, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        fix = "repair or remove the character"
        raise UserError(f"half a character, {error.object[error.start]!r}", where=where, fix=fix) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
