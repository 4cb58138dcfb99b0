"""Rows of one message each, put together into dialogues."""

from __future__ import annotations

from collections.abc import Sequence

from esc_lab.data.corpora.columns import ABOUT, Columns
from esc_lab.data.corpora.reading import ReadReport
from esc_lab.data.corpora.records import Record
from esc_lab.errors import UserError

_MESSAGE = ("order", "speaker", "text", "seeker", "supporter", "strategy", "rejected", "rejected_strategy")


def join_rows(records: Sequence[Record], columns: Columns, report: ReadReport) -> list[tuple[Record, list[Record]]]:
    """What the rows of each dialogue share, and these rows, in order.

    Rows of one dialogue need not stand together; without a column that names the dialogue, all rows are one. A row that
    repeats the message of the same place, as where several people labelled it, is dropped and counted. Other columns
    that differ within dialogues are counted as ignored.

    Raises:
        UserError: a row names no dialogue, or its place in it is no number.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        name = columns.get(record.data, "dialogue") if "dialogue" in columns else "all"
        if name is None or not str(name).strip():
            what = f"no {columns.shown('dialogue')} says which dialogue the row belongs to"
            fix = "fill it in, or data.columns.dialogue=NAME names another column"
            raise UserError(what, where=record.where, fix=fix)
        groups.setdefault(str(name), []).append(record)
    message = {name for key in _MESSAGE for name in columns.names.get(key, ())}
    joined = []
    for rows in groups.values():
        shared = {
            key: value
            for key, value in rows[0].data.items()
            if key not in message and all(row.data.get(key) == value for row in rows)
        }
        for name in (name for key in ABOUT for name in columns.names.get(key, ())):  # perhaps in one row only
            shared |= next(({name: row.data[name]} for row in rows if row.data.get(name)), {})
        joined.append((Record(shared, rows[0].where), _sort(rows, columns, report)))
    report.keys_ignored += len({key for row in records for key in row.data} - message
                               - {key for shared, _ in joined for key in shared.data})  # fmt: skip
    return joined


def _sort(rows: list[Record], columns: Columns, report: ReadReport) -> list[Record]:
    """The rows by their place, where a column says it, each message once."""
    if not any(columns.has(row.data, "order") for row in rows):
        return rows
    kept: dict[tuple[str, ...], Record] = {}
    for row in sorted(rows, key=lambda row: _place(row, columns)):
        said = (str(columns.get(row.data, key)) for key in ("order", "speaker", "text", "seeker", "supporter"))
        kept.setdefault(tuple(said), row)
    report.rows_repeated += len(rows) - len(kept)
    return list(kept.values())


def _place(row: Record, columns: Columns) -> float:
    value = columns.get(row.data, "order")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        what = f"{columns.shown('order')} is {value!r}"
        raise UserError(what, where=row.where, fix="number the messages, or leave data.columns.order out") from error
