"""The paper's table: cells as rows, metrics as columns."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from esc_lab.comparison.estimates import GUARDED, Difference, Estimate, Estimates
from esc_lab.comparison.gains import describe_gains
from esc_lab.comparison.notes import build_details, build_notes
from esc_lab.comparison.result import ComparisonResult
from esc_lab.comparison.runs import Cell
from esc_lab.comparison.search_judges import MARK
from esc_lab.metrics.metric import Metric


@dataclass(frozen=True)
class Entry:
    """A metric of a cell as texts; those that do not exist are empty, a value that is not known is `-`.

    Attributes:
        estimate: what they are of.
        best: whether it is the best of its model and column.
    """

    estimate: Estimate
    metric: Metric
    best: bool

    @property
    def value(self) -> str:
        """The value, with a dagger where a guard acted."""
        value = self.estimate.interval.value
        sign = GUARDED if self.estimate.guarded else ""
        return "-" if math.isnan(value) else f"{value:.{self.metric.decimals}f}{sign}"

    @property
    def margin(self) -> str:
        """Half the width of its interval, `\u00b1 0.021`, or its ends where the value is not in its middle."""
        interval, decimals = self.estimate.interval, self.metric.decimals
        if math.isnan(interval.half_width) or self.metric.is_count:
            return ""
        if interval.symmetric:
            return f"\u00b1 {interval.half_width:.{decimals}f}"
        return f"[{interval.low:.{decimals}f}, {interval.high:.{decimals}f}]"

    @property
    def difference(self) -> str:
        """To the baseline, signed, without its marks."""
        difference = self.estimate.difference
        return f"{difference.interval.value:+.{self.metric.decimals}f}" if difference else ""

    @property
    def marks(self) -> str:
        return self.estimate.difference.marks if self.estimate.difference else ""


@dataclass(frozen=True)
class Table:
    """A table that can be printed.

    Attributes:
        columns: the metrics.
        rows: a cell with an entry for each column, None where it has no such metric; those of a model stand together.
        notes: lines below.
        details: sentences for those who want to know more.
        gains: sentences on what trainings gained.
        doubtful: cells that were trained on data whose judge is not believed, by name. They are marked.
    """

    columns: Sequence[Metric]
    rows: Sequence[tuple[Cell, Sequence[Entry | None]]]
    notes: Sequence[str]
    doubtful: Collection[str] = ()
    details: Sequence[str] = ()
    gains: Sequence[str] = ()

    @property
    def headings(self) -> list[str]:
        return [f"{column.heading} {column.arrow}".strip() for column in self.columns]

    def label(self, cell: Cell) -> str:
        """A cell's name below its model's: the template is left out if all have the same."""
        templates = {other.template for other, _ in self.rows}
        name = cell.method if len(templates) == 1 else f"{cell.method} ({cell.template})"
        return f"{name}{self.mark(cell)}"

    def mark(self, cell: Cell) -> str:
        return MARK if cell.name in self.doubtful else ""

    def by_model(self) -> dict[str, list[tuple[Cell, Sequence[Entry | None]]]]:
        rows: dict[str, list[tuple[Cell, Sequence[Entry | None]]]] = {}
        for cell, entries in self.rows:
            rows.setdefault(cell.model, []).append((cell, entries))
        return rows

    def differences(self) -> list[tuple[Cell, list[Difference | None]]]:
        """The cells that are compared with a baseline, with the difference in each column."""
        rows = [(cell, [entry.estimate.difference if entry else None for entry in row]) for cell, row in self.rows]
        return [(cell, differences) for cell, differences in rows if any(differences)]


def build_table(comparison: ComparisonResult) -> Table:
    """The table of a comparison, with what stands below it."""
    judges = comparison.search_judges.items()
    doubtful = {name for name, of_cell in judges if not all(judge.believed for judge in of_cell)}
    table = tabulate(comparison.cells, comparison.columns, comparison.estimates, build_notes(comparison), doubtful)
    gains = describe_gains(comparison.gains, comparison.test)
    return replace(table, details=build_details(comparison), gains=gains)


def tabulate(
    cells: Sequence[Cell],
    columns: Sequence[Metric],
    estimates: Estimates,
    notes: Sequence[str],
    doubtful: Collection[str] = (),
) -> Table:
    """The table; in each column the best value of a model is marked, unless all look the same."""
    best = {(name, column.name) for column in columns for name in _find_best(cells, column, estimates)}

    def entry(cell: Cell, column: Metric) -> Entry | None:
        key = cell.name, column.name
        return Entry(estimates[key], column, key in best) if key in estimates else None

    return Table(columns, [(cell, [entry(cell, column) for column in columns]) for cell in cells], notes, doubtful)


def _find_best(cells: Sequence[Cell], column: Metric, estimates: Estimates) -> Iterator[str]:
    for model in dict.fromkeys(cell.model for cell in cells):
        values = {
            cell.name: round(estimate.interval.value, column.decimals)
            for cell in cells
            if cell.model == model and (estimate := estimates.get((cell.name, column.name)))
        }
        known = {name: value for name, value in values.items() if not math.isnan(value)}
        if column.higher_is_better is not None and len(set(known.values())) > 1:
            top = max(known.values()) if column.higher_is_better else min(known.values())
            yield from (name for name, value in known.items() if value == top)
