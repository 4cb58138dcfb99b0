"""Run directories in, a comparison out: tables, figures and numbers."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from esc_lab.artifacts import write_atomic
from esc_lab.comparison.drawings import draw
from esc_lab.comparison.groups import FEWEST
from esc_lab.comparison.latex import latex
from esc_lab.comparison.long_table import write_long_table, write_wide_table
from esc_lab.comparison.notes import notes_of
from esc_lab.comparison.pairs_table import pairs_markdown
from esc_lab.comparison.record import record
from esc_lab.comparison.result import Comparison, compared
from esc_lab.comparison.table import Column, markdown, markdown_table, print_table, table_of
from esc_lab.terminal import console

log = logging.getLogger(__name__)


def compare(
    directories: Sequence[Path],
    *,
    out: Path,
    baseline: str | None = None,
    primary: str = "strategy/Q",
    metrics: Sequence[str] | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare runs (see `compared`), write what was found into `out`, and print its table.

    comparison.md and comparison.tex hold the paper's table, comparison.json everything (see `record`), runs.csv every
    metric of every run in long form, comparison.csv in wide form, figures/ a PNG and an SVG of each figure.

    Raises:
        UserError: as `compared` does, or a file cannot be written.
    """
    found = compared(directories, baseline=baseline, primary=primary, metrics=metrics, draws=draws, seed=seed)
    notes = notes_of(found)
    table = table_of(found.cells, found.columns, found.estimates, notes)
    figures = draw(found, table, out / "figures")
    pages = [
        markdown(table, found.estimates),
        *pairs_markdown(found.cells, found.judgements),
        *_groups(found),
        *(f"![{path.stem.replace('_', ' ')}]({path.relative_to(out)})" for path in figures),
    ]
    write_atomic(out / "comparison.md", "\n\n".join(pages))
    write_atomic(out / "comparison.tex", latex(table, "Comparison of models and methods."))
    content = {**record(found, notes), "figures": [str(path.relative_to(out)) for path in figures]}
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
    print_table(table, console())
    return found


def _groups(comparison: Comparison) -> list[str]:
    """The primary metric, or else the first that is known by group, in each group; in Markdown."""
    grouped = {one.metric for one in comparison.groups}
    columns = [column for column in comparison.columns if column.metric in grouped]
    if not columns:
        return []
    column = next((column for column in columns if column.metric == comparison.primary), columns[0])
    parts = [_group_table(comparison, kind, column) for kind in ("problem", "emotion", "depth")]
    if comparison.left_out:
        parts.append(f"Not shown, with fewer than {FEWEST} decisions: {', '.join(comparison.left_out)}.")
    return [part for part in parts if part]


def _group_table(comparison: Comparison, kind: str, column: Column) -> str:
    found = [one for one in comparison.groups if one.group.kind == kind and one.metric == column.metric]
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
