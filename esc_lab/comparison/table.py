"""The paper's table: cells as rows, metrics as columns; as Markdown and on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from esc_lab.comparison.estimates import Difference, Estimate, Estimates
from esc_lab.comparison.runs import Cell
from esc_lab.metrics.metric import Metric


@dataclass(frozen=True)
class Entry:
    """A metric of a cell as texts; those that do not exist are empty."""

    value: str
    margin: str  # half the width of its interval
    difference: str  # to the baseline, signed
    marks: str
    best: bool


@dataclass(frozen=True)
class Table:
    """A table that can be printed.

    Attributes:
        columns: the metrics.
        rows: a cell with an entry for each column, None where it has no such metric; those of a model stand together.
        notes: sentences below.
    """

    columns: Sequence[Metric]
    rows: Sequence[tuple[Cell, Sequence[Entry | None]]]
    notes: Sequence[str]

    def label(self, cell: Cell) -> str:
        """A cell's name below its model's: the template is left out if all have the same."""
        return cell.method if len({one.template for one, _ in self.rows}) == 1 else f"{cell.method} ({cell.template})"

    def by_model(self) -> dict[str, list[tuple[Cell, Sequence[Entry | None]]]]:
        found: dict[str, list[tuple[Cell, Sequence[Entry | None]]]] = {}
        for cell, entries in self.rows:
            found.setdefault(cell.model, []).append((cell, entries))
        return found


def table_of(cells: Sequence[Cell], columns: Sequence[Metric], found: Estimates, notes: Sequence[str]) -> Table:
    """The table; in each column the best value of a model is marked, unless all look the same."""
    best = {(name, column.name) for column in columns for name in _best(cells, column, found)}
    rows = [
        (
            cell,
            [
                _entry(found.get((cell.name, column.name)), column, best=(cell.name, column.name) in best)
                for column in columns
            ],
        )
        for cell in cells
    ]
    return Table(columns, rows, notes)


def _best(cells: Sequence[Cell], column: Metric, found: Estimates) -> Iterator[str]:
    for model in dict.fromkeys(cell.model for cell in cells):
        values = {
            cell.name: round(estimate.interval.value, column.decimals)
            for cell in cells
            if cell.model == model and (estimate := found.get((cell.name, column.name)))
        }
        known = {name: value for name, value in values.items() if not math.isnan(value)}
        if column.higher_is_better is not None and len(set(known.values())) > 1:
            top = max(known.values()) if column.higher_is_better else min(known.values())
            yield from (name for name, value in known.items() if value == top)


def _entry(estimate: Estimate | None, column: Metric, *, best: bool) -> Entry | None:
    if estimate is None:
        return None
    difference, margin = estimate.difference, estimate.interval.half_width
    return Entry(
        f"{estimate.interval.value:.{column.decimals}f}",
        "" if math.isnan(margin) or column.is_count else f"{margin:.{column.decimals}f}",
        f"{difference.interval.value:+.{column.decimals}f}" if difference else "",
        difference.marks if difference else "",
        best,
    )


# --- Markdown


def markdown(table: Table, found: Estimates) -> str:
    """The table, a second one with the differences to the baseline, and the notes."""
    heads = ["run", "seeds", *(f"{column.heading} {column.arrow}".strip() for column in table.columns)]
    rows = [
        [cell.name, str(len(cell.runs)), *(_in_markdown(entry) for entry in entries)] for cell, entries in table.rows
    ]
    parts = [markdown_table(heads, rows)]
    compared = [column for column in table.columns if any(_difference(found, c, column) for c, _ in table.rows)]
    if compared:
        rows = [
            [cell.name, baseline, *(_difference_in_markdown(_difference(found, cell, c), c) for c in compared)]
            for cell, _ in table.rows
            if (baseline := _baseline(found, cell, compared))
        ]
        heads = ["run", "minus", *(f"{column.heading} {column.arrow}".strip() for column in compared)]
        parts.append(f"## Differences\n\n{markdown_table(heads, rows)}")
    parts.append("\n".join(f"- {_escaped(note)}" for note in table.notes))
    return "\n\n".join(parts)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers."""
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _in_markdown(entry: Entry | None) -> str:
    if entry is None:
        return "-"
    value = f"**{entry.value}**" if entry.best else entry.value
    return f"{value} \u00b1 {entry.margin}" if entry.margin else value


def _difference(found: Estimates, cell: Cell, column: Metric) -> Difference | None:
    estimate = found.get((cell.name, column.name))
    return estimate.difference if estimate else None


def _baseline(found: Estimates, cell: Cell, columns: Sequence[Metric]) -> str:
    differences = (_difference(found, cell, column) for column in columns)
    return next((one.baseline for one in differences if one), "")


def _difference_in_markdown(difference: Difference | None, column: Metric) -> str:
    if difference is None:
        return "-"
    value, *ends = difference.interval.text(column.decimals, "+").split(" ", 1)
    text = " ".join([f"{value}{_escaped(difference.marks)}", *ends])
    if not math.isnan(difference.corrected):
        text += f" p {p_text(difference.corrected)}"
    return text


def p_text(p: float) -> str:
    """`= 0.012`, or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _escaped(text: str) -> str:
    return text.replace("*", "\\*")


# --- terminal


def print_table(table: Table, console: Console) -> None:
    """The table on a terminal. Metrics that do not fit side by side go into further tables below."""
    names = [*(f"  {table.label(cell)}" for cell, _ in table.rows), *table.by_model()]
    first = min(max(map(len, names)), max(24, console.width // 3))
    widths = [
        max(len(text) for entries in [e[number] for _, e in table.rows] for text in _lines(entries, column))
        for number, column in enumerate(table.columns)
    ]
    parts = list(_blocks(widths, console.width - (first + 3) - (5 + 3) - 1))
    for number, part in enumerate(parts, 1):
        title = "comparison" if len(parts) == 1 else f"comparison, part {number} of {len(parts)}"
        console.print(_terminal_table(table, part, title, first))
    for note in table.notes:
        console.print(f"- {note}", highlight=False, markup=False, style="dim")


def _blocks(widths: Sequence[int], room: int) -> Iterator[slice]:
    """Runs of columns that fit into the room, each with its 3 characters of border."""
    start, used = 0, 0
    for number, width in enumerate(widths):
        if number > start and used + width + 3 > room:
            yield slice(start, number)
            start, used = number, 0
        used += width + 3
    yield slice(start, len(widths))


def _lines(entry: Entry | None, column: Metric) -> tuple[str, ...]:
    """The lines of a column's heading and of an entry, without markup."""
    head = f"{column.heading} {column.arrow}".strip()
    if entry is None:
        return (head,)
    return head, f"{entry.value} \u00b1{entry.margin}" if entry.margin else entry.value, entry.difference + entry.marks


def _terminal_table(table: Table, part: slice, title: str, first: int) -> RichTable:
    drawn = RichTable(title=title)
    drawn.add_column("run", overflow="fold", width=first)
    drawn.add_column("seeds", justify="right", no_wrap=True)
    for column in table.columns[part]:
        drawn.add_column(f"{column.heading} {column.arrow}".strip(), justify="right", no_wrap=True)
    for model, rows in table.by_model().items():
        drawn.add_section()
        drawn.add_row(f"[italic]{escape(model)}[/]")
        for cell, entries in rows:
            texts = [_in_terminal(entry) for entry in entries[part]]
            drawn.add_row(f"  {escape(table.label(cell))}", str(len(cell.runs)), *texts)
    return drawn


def _in_terminal(entry: Entry | None) -> str:
    if entry is None:
        return "-"
    value = f"[bold]{entry.value}[/]" if entry.best else entry.value
    margin = f" [dim]\u00b1{entry.margin}[/]" if entry.margin else ""
    return f"{value}{margin}" + (f"\n{entry.difference}{entry.marks}" if entry.difference else "")
