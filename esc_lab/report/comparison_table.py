"""The table of results of a comparison's page: what it shows stands in it, and the page's script only sorts it."""

from __future__ import annotations

import math
import re
from typing import Any

from esc_lab.comparison.estimates import Estimate
from esc_lab.comparison.formats import format_p
from esc_lab.comparison.result import ComparisonResult
from esc_lab.comparison.table import Entry, Table
from esc_lab.metrics.metric import Metric
from esc_lab.statistics.intervals import Interval


def table_context(comparison: ComparisonResult, table: Table) -> dict[str, Any]:
    """What the template draws: columns with their meanings, rows with a field for each column, notes."""
    several = len(table.by_model()) > 1
    columns = [
        {
            "heading": column.heading,
            "arrow": column.arrow,
            "more": column.higher_is_better,
            "meaning": column.explanation,
        }
        for column in table.columns
    ]
    rows = []
    for cell, entries in table.rows:
        baseline = comparison.baselines.get(cell.name)
        fields = [
            _field(comparison.estimates.get((cell.name, column.name)), entry, column)
            for column, entry in zip(table.columns, entries, strict=True)
        ]
        rows.append(
            {
                "model": f"{cell.model} " if several else "",
                "label": table.label(cell),
                "baseline": baseline is not None and baseline.name == cell.name,
                "seeds": len(cell.runs),
                "fields": fields,
            }
        )
    return {"columns": columns, "rows": rows, "notes": table.notes}


def _field(estimate: Estimate | None, entry: Entry | None, column: Metric) -> dict[str, Any] | None:
    """A value with its margin and its difference to the baseline; None where it was not measured."""
    if estimate is None or entry is None or math.isnan(estimate.interval.value):
        return None
    return {
        "sort": f"{estimate.interval.value:.10g}",
        "details": describe_estimate(estimate, column),
        "value": _minus(entry.value),
        "best": entry.best,
        "margin": entry.margin,
        "difference": f"{_minus(entry.difference)}{entry.marks}" if entry.difference else "",
        "look": _better(estimate, column) if entry.marks else "soft",
    }


def _better(estimate: Estimate, column: Metric) -> str:
    if column.higher_is_better is None or estimate.difference is None:
        return "plain"
    return "good" if (estimate.difference.interval.value > 0) == column.higher_is_better else "bad"


def describe_estimate(estimate: Estimate, column: Metric) -> str:
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
            text += f", p {format_p(difference.corrected)} ({kind})"
        parts.append(text)
    return _minus("; ".join(parts))


def ends_text(interval: Interval, decimals: int) -> str:
    """`0.12 to 0.34`; empty where there is no interval."""
    return "" if math.isnan(interval.low) else _minus(f"{interval.low:.{decimals}f} to {interval.high:.{decimals}f}")


def _minus(text: str) -> str:
    """A minus sign in place of each hyphen that stands before a number."""
    return re.sub(r"(?<!\w)-(?=\d)", "\u2212", text)
