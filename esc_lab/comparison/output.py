"""The files of a comparison: tables and numbers."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from esc_lab.artifacts import write_atomic
from esc_lab.comparison.groups import FEWEST
from esc_lab.comparison.latex import latex
from esc_lab.comparison.long_table import write_long_table, write_wide_table
from esc_lab.comparison.pairs_table import pairs_markdown
from esc_lab.comparison.record import record
from esc_lab.comparison.result import Comparison
from esc_lab.comparison.table import Table, markdown, markdown_table
from esc_lab.metrics.metric import Metric

log = logging.getLogger(__name__)


def write_comparison(found: Comparison, table: Table, figures: Sequence[Path], out: Path) -> None:
    """Write a comparison.

    comparison.md and comparison.tex hold the paper's table, comparison.json everything (see `record`), runs.csv every
    metric of every run in long form, comparison.csv in wide form.

    Args:
        table: of the comparison.
        figures: PNG files below `out`.
        out: the run directory.

    Raises:
        UserError: a file cannot be written.
    """
    pages = [
        markdown(table, found.estimates),
        *pairs_markdown(found.cells, found.judgements),
        *_groups(found),
        *(f"![{path.stem.replace('_', ' ')}]({path.relative_to(out)})" for path in figures),
    ]
    write_atomic(out / "comparison.md", "\n\n".join(pages))
    write_atomic(out / "comparison.tex", latex(table, "Comparison of models and methods."))
    content = {**record(found, list(table.notes)), "figures": [str(path.relative_to(out)) for path in figures]}
    write_atomic(out / "comparison.json", json.dumps(content, indent=1, allow_nan=False))
    test_sets = {
        run.directory: found.test.identity
        for cell in found.cells
        for run in cell.runs
        if run.predictions and found.test
    }
    missing = write_long_table(found.cells, test_sets, out / "runs")
    if missing:
        log.info(missing)
    write_wide_table(found.cells, out / "comparison.csv")


def _groups(comparison: Comparison) -> list[str]:
    """The primary metric, or else the first that is known by group, in each group; in Markdown."""
    grouped = {one.metric for one in comparison.groups}
    columns = [column for column in comparison.columns if column.name in grouped]
    if not columns:
        return []
    column = next((column for column in columns if column.name == comparison.primary), columns[0])
    parts = [_group_table(comparison, kind, column) for kind in ("problem", "emotion", "depth")]
    if comparison.left_out:
        parts.append(f"Not shown, with fewer than {FEWEST} decisions: {', '.join(comparison.left_out)}.")
    return [part for part in parts if part]


def _group_table(comparison: Comparison, kind: str, column: Metric) -> str:
    found = [one for one in comparison.groups if one.group.kind == kind and one.metric == column.name]
    if not found:
        return ""
    values = {(one.cell, one.group.name): one.interval for one in found}
    groups = {one.group.name: one.group.decisions for one in found}
    heads = ["run", *(f"{name} ({n:,})" for name, n in groups.items())]
    rows = [
        [cell, *(values[cell, group].text(column.decimals) if (cell, group) in values else "-" for group in groups)]
        for cell in dict.fromkeys(one.cell for one in found)
    ]
    by = "depth (turns before the reply)" if kind == "depth" else kind
    return f"## {column.heading} by {by}, with 95 % intervals (decisions)\n\n{markdown_table(heads, rows)}"
