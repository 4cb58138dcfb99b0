"""The results of a comparison on its page: in a few sentences, and as a table that the page's script only sorts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from esc_lab.comparison.estimates import Difference, Estimate
from esc_lab.comparison.formats import format_p
from esc_lab.comparison.result import ComparisonResult
from esc_lab.comparison.runs import Cell
from esc_lab.comparison.table import Entry, Table
from esc_lab.metrics.metric import Metric
from esc_lab.statistics.intervals import Interval

_MANY = 4  # names that a sentence holds


def title_of(comparison: ComparisonResult) -> str:
    """`smollm2: base, SFT and CSO compared`, or with numbers where there are many."""
    evaluated = [cell for cell in comparison.cells if cell.evaluation] or list(comparison.cells)
    models = list(dict.fromkeys(cell.model for cell in evaluated))
    methods = list(dict.fromkeys(cell.method for cell in evaluated))
    named = [f"{len(methods)} methods" if len(methods) > _MANY else _listed(methods)]
    named.append(f"{len(models)} models" if len(models) > _MANY else _listed(models))
    return f"{named[1]}: {named[0]} compared"


def summary(comparison: ComparisonResult, table: Table) -> list[str]:
    """What was compared, over what, and for each model which run is best on the primary metric and how surely."""
    evaluated = [cell for cell in comparison.cells if cell.evaluation]
    test, sentences = comparison.test, []
    if test:
        seeds = max((len(cell.runs) for cell in evaluated), default=1)
        each = f", each with {seeds} seeds" if seeds > 1 else ""
        variants = f"{_count(len(evaluated), 'variant')} of {_count(len(table.by_model()), 'model')}{each}"
        told = (
            f"each in {len(test.keys):,} whole talks with the same {test.clusters:,} simulated seekers, who play a "
            "card each: what a model of seekers says, no person."
            if comparison.talks
            else f"judged at the same {len(test.keys):,} decisions of {test.dialogues:,} dialogues: points at which "
            f"a supporter answers and has to choose one of {len(test.strategies)} support strategies."
        )
        sentences.append(f"{variants}, {told}")
    column = next((column for column in comparison.columns if column.name == comparison.primary), None)
    if column is None or column.higher_is_better is None:
        return [*sentences, "The primary metric was not measured, so nothing is called best."]
    for model, rows in table.by_model().items():
        cells = [cell for cell, _ in rows if _known(comparison, cell, column)]
        if len(cells) > 1:
            alone = len(table.by_model()) == 1
            sentences.append(_best(comparison, cells, column, table, "" if alone else f"{model}: "))
    if len(table.by_model()) == len(evaluated) > 1:
        sentences.append(_best(comparison, evaluated, column, table, ""))
    return [*sentences, f"{column.heading} is the primary metric. {column.explanation}"]


def _best(comparison: ComparisonResult, cells: Sequence[Cell], column: Metric, table: Table, start: str) -> str:
    def value(cell: Cell) -> float:
        return comparison.estimates[cell.name, column.name].interval.value

    def name_of(cell: Cell) -> str:
        return table.label(cell) if len({cell.model for cell in known}) == 1 else f"{cell.model} {table.label(cell)}"

    known = [cell for cell in cells if _known(comparison, cell, column)]
    best = (max if column.higher_is_better else min)(known, key=value)
    estimate = comparison.estimates[best.name, column.name]
    ends = _ends_text(estimate.interval, column.decimals)
    shown = f"{value(best):.{column.decimals}f}"
    equal = [name_of(cell) for cell in known if f"{value(cell):.{column.decimals}f}" == shown]
    if len(equal) > 1:
        return f"{start}{_listed(equal)} have the same {column.heading}, {shown}, and none has a better one."
    text = f"{start}{name_of(best)} has the best {column.heading}, {shown}"
    text += f" (95 % interval {ends})" if ends else ""
    if estimate.difference:
        baseline = next(cell for cell in comparison.cells if cell.name == estimate.difference.baseline)
        other = table.label(baseline) if baseline.model == best.model else f"{baseline.model} {table.label(baseline)}"
        return f"{text}; {_against(estimate.difference, column, other)}."
    differences = [
        difference
        for cell in known
        if (difference := comparison.estimates[cell.name, column.name].difference) and difference.baseline == best.name
    ]
    sure = sum(difference.corrected < 0.05 for difference in differences)
    if not differences:
        return f"{text}."
    if all(math.isnan(difference.corrected) for difference in differences):
        return f"{text}. It is the baseline; no difference to it was tested."
    worse = f"{sure or 'none'} {'is' if sure == 1 else 'are'} significantly worse"
    return f"{text}. It is the baseline; of {_count(len(differences), 'other')}, {worse}."


def _against(difference: Difference, column: Metric, baseline: str) -> str:
    change = abs(difference.interval.value)
    more = "more" if difference.interval.value > 0 else "less"
    text = f"{change:.{column.decimals}f} {more} than its baseline ({baseline})"
    if math.isnan(difference.corrected):
        return f"{text}, which was not tested"
    sure = difference.corrected < 0.05
    verdict = "a significant difference" if sure else "which may well be chance"
    return f"{text}, {verdict} (p {format_p(difference.corrected)})"


def _known(comparison: ComparisonResult, cell: Cell, column: Metric) -> bool:
    estimate = comparison.estimates.get((cell.name, column.name))
    return estimate is not None and not math.isnan(estimate.interval.value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`"""
    return " and ".join([*([", ".join(names[:-1])] if names[1:] else []), *names[-1:]])


def table_context(comparison: ComparisonResult, table: Table) -> dict[str, Any]:
    """What the template draws: columns, rows with a field for each of them, gains, notes and details."""
    several = len(table.by_model()) > 1
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
    parts = {"columns": table.columns, "notes": table.notes, "details": table.details, "gains": table.gains}
    return {"rows": rows, **parts}


def _field(estimate: Estimate | None, entry: Entry | None, column: Metric) -> dict[str, Any] | None:
    """A value with its margin and its difference to the baseline; None where it was not measured."""
    if estimate is None or entry is None or math.isnan(estimate.interval.value):
        return None
    return {
        "sort": f"{estimate.interval.value:.10g}",
        "details": _describe_estimate(estimate, column),
        "value": _minus(entry.value),
        "best": entry.best,
        "margin": _minus(entry.margin),
        "difference": f"{_minus(entry.difference)}{entry.marks}" if entry.difference else "",
        "look": _better(estimate, column) if entry.marks else "soft",
    }


def _better(estimate: Estimate, column: Metric) -> str:
    if column.higher_is_better is None or estimate.difference is None:
        return "plain"
    return "good" if (estimate.difference.interval.value > 0) == column.higher_is_better else "bad"


def _describe_estimate(estimate: Estimate, column: Metric) -> str:
    """Everything about a value, in words."""
    parts = []
    if ends := _ends_text(estimate.interval, column.decimals):
        parts.append(f"95 % interval {ends}, over {' and '.join(estimate.over)}")
    if estimate.guarded:
        parts.append("its guard acted")
    if not math.isnan(estimate.n):
        parts.append(f"from {estimate.n:,.0f} observations")
    difference = estimate.difference
    if difference:
        text = f"{difference.interval.value:+.{column.decimals}f} to {difference.baseline}"
        if ends := _ends_text(difference.interval, column.decimals):
            text += f" (95 % interval {ends})"
        if not math.isnan(difference.corrected):
            kind = "not corrected" if difference.primary else "Holm-corrected"
            text += f", p {format_p(difference.corrected)} ({kind})"
        parts.append(text)
    return _minus("; ".join(parts))


def _ends_text(interval: Interval, decimals: int) -> str:
    """`0.12 to 0.34`; empty where there is no interval."""
    return "" if math.isnan(interval.low) else _minus(f"{interval.low:.{decimals}f} to {interval.high:.{decimals}f}")


def _minus(text: str) -> str:
    """A minus sign in place of each hyphen that stands before a number."""
    return re.sub(r"(?<!\w)-(?=\d)", "\u2212", text)
