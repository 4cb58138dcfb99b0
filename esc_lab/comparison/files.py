"""The files of a comparison: the paper's table as Markdown and LaTeX, everything as JSON, all metrics as CSV."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esc_lab.artifacts import write_atomic
from esc_lab.comparison.boosts import MEASURES, BoostResults, DoseCurve, SlopeContrast
from esc_lab.comparison.formats import format_difference, format_latex, format_markdown, markdown_table
from esc_lab.comparison.groups import MIN_DECISIONS
from esc_lab.comparison.judgements import read_interval
from esc_lab.comparison.record import build_record
from esc_lab.comparison.result import ComparisonResult
from esc_lab.comparison.table import Table, build_table
from esc_lab.metrics.metric import Metric
from esc_lab.metrics.records import find_metric
from esc_lab.runs.layout import COMPARISON_CSV
from esc_lab.statistics.intervals import Interval
from esc_lab.terminal import escape_markdown, to_cell

log = logging.getLogger(__name__)
_CAPTIONS = {
    "comparison": "Comparison of models and methods.", "talks": "Talks of models and methods with simulated seekers.",
}  # fmt: skip
_LONG_COLUMNS = (
    "run", "model", "method", "template", "seed", "stage", "inventory", "test_set", "directory", "metric", "value", "n",
)  # fmt: skip


def write_comparison(comparison: ComparisonResult, table: Table, figures: Sequence[Path], out: Path) -> None:
    """Write a comparison.

    comparison.md and comparison.tex hold the paper's table, comparison.json everything (see `build_record`; of whole
    talks beside evaluations under `talks`), runs.csv every metric of every run in long form, comparison.csv in wide
    form.

    Args:
        table: of the comparison.
        figures: PNG files below `out`.
        out: the run directory.

    Raises:
        UserError: a file cannot be written.
    """
    parts = [(comparison, table), *((part, build_table(part)) for part in comparison.parts[1:])]
    record, *beside = (build_record(part, list(table.notes), list(table.details)) for part, table in parts)
    names = [str(path.relative_to(out)) for path in figures]
    sections = [
        format_markdown(table),
        *_pairs(record["judge"]),
        *_survey(record["survey"]),
        *_groups(comparison),
        *_boosts(comparison.boosts),
        *(f"# Talks\n\n{format_markdown(table)}" for _, table in parts[1:]),
        *(f"![{path.stem.replace('_', ' ')}]({name})" for path, name in zip(figures, names, strict=True)),
    ]
    write_atomic(out / "comparison.md", "\n\n".join(sections))
    latex = (format_latex(table, _CAPTIONS[part.title], f"tab:{part.title}") for part, table in parts)
    write_atomic(out / "comparison.tex", "\n\n".join(latex))
    record |= {"talks": beside[0] if beside else None, "figures": names}
    write_atomic(out / "comparison.json", json.dumps(record, indent=1, allow_nan=False))
    write_long_table(comparison, out / "runs")
    write_wide_table(comparison, out / COMPARISON_CSV)


def write_long_table(comparison: ComparisonResult, path: Path) -> None:
    """A row for each run and metric: `<path>.csv`, and where pyarrow is installed `<path>.parquet`."""
    rows = [
        (
            cell.name, run.model, run.name, run.template, run.method.seed, str(run.config["stage"]), run.inventory,
            part.test.identity if part.test and run.result else "", str(run.directory), metric, value,
            None if (count := run.metrics.get(find_metric(metric).count)) is None else int(count),
        )
        for part in comparison.parts
        for cell in part.cells
        for run in cell.runs
        for metric, value in sorted(run.metrics.items())
    ]  # fmt: skip
    texts = [["" if field is None else field for field in row] for row in rows]
    write_atomic(path.with_suffix(".csv"), _csv([_LONG_COLUMNS, *texts]))
    if importlib.util.find_spec("pyarrow") is None:
        file = f"{path.name}.parquet"
        log.info(f"{file} was not written: `pip install 'esc-lab[parquet]'` (pyarrow) writes it beside the CSV")
        return
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    buffer = io.BytesIO()
    columns = {name: [row[number] for row in rows] for number, name in enumerate(_LONG_COLUMNS)}
    parquet.write_table(arrow.table(columns), buffer)
    write_atomic(path.with_suffix(".parquet"), buffer.getvalue())


def write_wide_table(comparison: ComparisonResult, path: Path) -> None:
    """A CSV with a row for each run and a column for each metric; empty where a run has no such metric."""
    cells = [cell for part in comparison.parts for cell in part.cells]
    names = sorted({metric for cell in cells for run in cell.runs for metric in run.metrics})
    rows = [
        [cell.name, run.method.seed, *(run.metrics.get(metric, "") for metric in names)]
        for cell in cells
        for run in cell.runs
    ]
    write_atomic(path, _csv([["run", "seed", *names], *rows]))


def _csv(rows: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([to_cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def _survey(survey: dict[str, Any] | None) -> list[str]:
    """The tables of a survey, in Markdown."""
    if not survey:
        return []
    tables = [f"### {table['title']}\n\n{markdown_table(table['heads'], table['rows'])}" for table in survey["tables"]]
    return ["## People asked", *tables, "\n".join(f"- {note}" for note in survey["notes"])]


def _pairs(judge: dict[str, Any] | None) -> list[str]:
    """Win rates that a judge gave, in Markdown; nothing without pairs."""
    if not judge or not judge["pairs"]:
        return []
    heads = ["run", "pairs", "win rate", "at equal length", "consistency"]
    rows = [
        [row["run"], str(row["pairs"]), read_interval(row["win_rate"]).text(3),
         read_interval(row["length_controlled"]).text(3), f"{row['consistency']['value']:.3f}"]
        for row in judge["pairs"]
    ]  # fmt: skip
    models = escape_markdown(", ".join(judge["models"]))
    note = (
        f"Judge: {models}, asked {judge['question']}. Both orders are asked, a mismatch is a tie and counts half; at "
        "equal length after Dubois et al. 2024; consistency: share of pairs on which both orders agree. 95 % intervals "
        "over dialogues."
    )
    return [f"## Judged in pairs against {judge['baseline']}\n\n{markdown_table(heads, rows)}\n\n{note}"]


def _boosts(boosts: BoostResults) -> list[str]:
    """Slopes over the dose of boosts of attention and their contrasts, in Markdown; nothing without any."""
    if not boosts.curves:
        return []
    heads, rows = tabulate_slopes(boosts)
    return [
        f"## Attention boosted: change with each unit of the dose, with 95 % intervals\n\n{markdown_table(heads, rows)}"
    ]


def tabulate_slopes(boosts: BoostResults) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table: the slopes of each boost, then the contrasts of slopes."""
    lines: dict[str, dict[Metric, str]] = {}

    def enter(line: DoseCurve | SlopeContrast, name: str, interval: Interval, p: float) -> None:
        text = format_difference(interval, line.metric.decimals, p)
        lines.setdefault(boosts.name(line.place, name), {})[line.metric] = text

    for curve in boosts.curves:
        enter(curve, curve.label, curve.slope, curve.p)
    for one in boosts.contrasts:
        enter(one, f"{one.label} minus {one.other}", one.difference, one.corrected)
    columns = [metric for metric in MEASURES if any(metric in values for values in lines.values())]
    rows = [[label, *(values.get(metric, "-") for metric in columns)] for label, values in lines.items()]
    return ["boost of attention", *(metric.heading for metric in columns)], rows


def _groups(comparison: ComparisonResult) -> list[str]:
    """The primary metric, or else the first that is known by group, in each group; in Markdown."""
    grouped = {estimate.metric for estimate in comparison.groups}
    columns = [column for column in comparison.columns if column.name in grouped]
    if not columns:
        return []
    column = next((column for column in columns if column.name == comparison.primary), columns[0])
    parts = [_group_table(comparison, kind, column) for kind in ("problem", "emotion", "depth")]
    if comparison.left_out:
        parts.append(f"Not shown, with fewer than {MIN_DECISIONS} decisions: {', '.join(comparison.left_out)}.")
    return [part for part in parts if part]


def _group_table(comparison: ComparisonResult, kind: str, column: Metric) -> str:
    estimates = [e for e in comparison.groups if e.group.kind == kind and e.metric == column.name]
    if not estimates:
        return ""
    values = {(estimate.cell, estimate.group.name): estimate.interval for estimate in estimates}
    groups = {estimate.group.name: estimate.group.decisions for estimate in estimates}
    heads = ["run", *(f"{name} ({n:,})" for name, n in groups.items())]
    rows = [
        [cell, *(values[cell, group].text(column.decimals) if (cell, group) in values else "-" for group in groups)]
        for cell in dict.fromkeys(estimate.cell for estimate in estimates)
    ]
    by = "depth (turns before the reply)" if kind == "depth" else kind
    return f"## {column.heading} by {by}, with 95 % intervals (decisions)\n\n{markdown_table(heads, rows)}"
