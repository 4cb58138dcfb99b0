"""Tables that tests have printed, and what of them is told nowhere below them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import wraps
from typing import Any, NamedTuple

from esc_lab import terminal

# What anybody knows who started a run: names of data, and of what is compared.
PLAIN = {
    "", "run", "strategy", "split", "problem", "question", "train", "val", "test", "what", "how many", "how often",
    "why", "count", "longest",
}  # fmt: skip
_SENTENCE = 4  # words of a name that tells by itself


class PrintedTable(NamedTuple):
    """Title, names of columns, or of rows where columns have none, and all that stands below."""

    title: str
    names: Sequence[str]
    notes: str


printed: list[PrintedTable] = []


def note_tables() -> None:
    """From now on keep what `terminal.print_table` prints in `printed`; for modules that are imported later."""
    print_table = terminal.print_table

    @wraps(print_table)
    def note(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], **told: Any) -> None:
        rows = list(rows)
        names = heads if any(heads) else [row[0] for row in rows]
        short = [name for name in names if len(name.split()) < _SENTENCE]
        below = [told.get("caption", ""), *told.get("notes", ()), *told.get("meanings", ())]
        printed.append(PrintedTable(title, short, " ".join(below)))
        print_table(title, heads, rows, **told)

    terminal.print_table = note


def find_unexplained(tables: Sequence[PrintedTable]) -> list[str]:
    """`TITLE: NAME` of each column or row that no note of any of the tables names; without what stands in
    brackets or behind a colon; a plural counts as its singular."""
    notes = " ".join(table.notes for table in tables).lower()

    def is_told(name: str) -> bool:
        name = re.sub(r"( \(.*\)|:.*)$", "", name.lower()).rstrip("s")
        end = r"(?!\w)" if len(name) < 3 else ""  # a letter begins many a word
        return bool(re.search(rf"(?<!\w){re.escape(name)}{end}", notes)) or re.fullmatch(r"seed \d+", name) is not None

    return [
        f"{table.title}: {name}" for table in tables for name in table.names if name not in PLAIN and not is_told(name)
    ]
