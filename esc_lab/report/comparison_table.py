"""The table of results as HTML: what it shows stands in it, and the page's script only sorts it."""

from __future__ import annotations

import math
import re
from html import escape

from esc_lab.comparison.estimates import Estimate
from esc_lab.comparison.result import Comparison
from esc_lab.comparison.runs import Cell
from esc_lab.comparison.table import Column, Entry, Table, p_text
from esc_lab.report.metric_meanings import meaning
from esc_lab.sra.replies import Interval


def results_table(comparison: Comparison, table: Table) -> str:
    """The table, sortable, with its notes and the meanings of its columns."""
    models = len(table.by_model()) > 1
    heads = [_head("Run", "", "text"), _head("Seeds", "", "number")]
    heads += [
        _head(column.heading, column.arrow, "less" if column.more is False else "number", meaning(column))
        for column in table.columns
    ]
    rows = []
    for cell, entries in table.rows:
        label, model = table.label(cell), f"{cell.model} " if models else ""
        name = f"{f'<span>{escape(model)}</span>' if models else ''}{escape(label)}{_baseline(comparison, cell)}"
        found = [
            _value(comparison.estimates.get((cell.name, column.metric)), entry, column)
            for column, entry in zip(table.columns, entries, strict=True)
        ]
        rows.append(
            f'<tr><th scope="row" data-sort="{escape(model + label)}">{name}</th>'
            f'<td data-sort="{len(cell.runs)}">{len(cell.runs)}</td>{"".join(found)}</tr>'
        )
    columns = "".join(
        f"<div><dt>{escape(column.heading)} {column.arrow}</dt><dd>{escape(meaning(column))}</dd></div>"
        for column in table.columns
    )
    return (
        '<p class="soft" id="sort-help">Choose a column head to sort by it. In each field: the value, \u00b1 half of '
        "its 95 % interval, and the difference to the baseline with stars where chance is an unlikely cause.</p>"
        '<div class="scroll" role="region" aria-label="Results" tabindex="0"><table id="results-table" class="results" '
        f'aria-describedby="sort-help"><thead><tr>{"".join(heads)}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'<ul class="notes soft">{"".join(f"<li>{escape(note)}</li>" for note in table.notes)}</ul>'
        f'<details><summary>What the columns mean</summary><dl class="meanings">{columns}</dl></details>'
    )


def _head(text: str, arrow: str, kind: str, told: str = "") -> str:
    title = f' title="{escape(told)}"' if told else ""
    sign = f' <span aria-hidden="true">{arrow}</span>' if arrow else ""
    button = f'<button type="button"{title}>{escape(text)}{sign}</button>'
    return f'<th scope="col" aria-sort="none" data-kind="{kind}">{button}</th>'


def _baseline(comparison: Comparison, cell: Cell) -> str:
    own = comparison.baselines.get(cell.name)
    return ' <small class="soft">baseline</small>' if own and own.name == cell.name else ""


def _value(estimate: Estimate | None, entry: Entry | None, column: Column) -> str:
    if estimate is None or entry is None or math.isnan(estimate.interval.value):
        return '<td class="none"><span aria-label="not measured">\u2013</span></td>'
    value = f"<b>{entry.value}</b>" if entry.best else entry.value
    margin = f" <small>\u00b1\u2009{entry.margin}</small>" if entry.margin else ""
    difference = ""
    if entry.difference:
        better = _better(estimate, column)
        look = better if entry.marks else "soft"
        difference = f'<small class="difference {look}">{_minus(entry.difference)}{entry.marks}</small>'
    return (
        f'<td data-sort="{estimate.interval.value:.10g}" title="{escape(told(estimate, column))}">'
        f"{_minus(value)}{margin}{difference}</td>"
    )


def _better(estimate: Estimate, column: Column) -> str:
    if column.more is None or estimate.difference is None:
        return "plain"
    return "good" if (estimate.difference.interval.value > 0) == column.more else "bad"


def told(estimate: Estimate, column: Column) -> str:
    """Everything about a value, in words."""
    parts = []
    if ends := ends_text(estimate.interval, column.decimals):
        parts.append(f"95 % interval {ends}, over {' and '.join(estimate.over)}")
    if not math.isnan(estimate.n):
        parts.append(f"from {estimate.n:,.0f} observations")
    difference = estimate.difference
    if difference:
        text = f"{difference.interval.value:+.{column.decimals}f} to {difference.baseline}"
        if ends := ends_text(difference.interval, column.decimals):
            text += f" (95 % interval {ends})"
        if not math.isnan(difference.corrected):
            kind = "not corrected" if difference.primary else "Holm-corrected"
            text += f", p {p_text(difference.corrected)} ({kind})"
        parts.append(text)
    return _minus("; ".join(parts))


def ends_text(found: Interval, decimals: int) -> str:
    """`0.12 to 0.34`; empty where there is no interval."""
    return "" if math.isnan(found.low) else _minus(f"{found.low:.{decimals}f} to {found.high:.{decimals}f}")


def _minus(text: str) -> str:
    """A minus sign in place of each hyphen that stands before a number."""
    return re.sub(r"(?<!\w)-(?=\d)", "\u2212", text)
