"""All metrics of all runs: the long table (a row for each run and metric), and the wide one (a row for each run)."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from esc_lab.artifacts import write_atomic
from esc_lab.comparison.runs import Cell, Run
from esc_lab.metrics.records import find_metric

_COLUMNS = (
    "run", "model", "method", "template", "seed", "stage", "inventory", "test_set", "directory", "metric", "value", "n",
)  # fmt: skip


def write_long_table(cells: Sequence[Cell], test_sets: Mapping[Path, str], path: Path) -> str | None:
    """`<path>.csv`, and `<path>.parquet` where pyarrow is installed.

    Args:
        cells: with their runs.
        test_sets: identity of the test set by run directory, where it is known.
        path: where to write, without suffix.

    Returns:
        A sentence on what was not written.
    """
    rows = [
        (
            cell.name, run.model, run.name, run.template, run.method.seed, str(run.config["stage"]), run.inventory,
            test_sets.get(run.directory, ""), str(run.directory), metric, value, _number(run, metric),
        )
        for cell in cells
        for run in cell.runs
        for metric, value in sorted(run.metrics.items())
    ]  # fmt: skip
    write_atomic(path.with_suffix(".csv"), _csv([_COLUMNS, *(["" if one is None else one for one in r] for r in rows)]))
    if importlib.util.find_spec("pyarrow") is None:
        return (
            f"{path.name}.parquet was not written: `pip install 'esc-lab[parquet]'` (pyarrow) writes it beside the CSV"
        )
    arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    buffer = io.BytesIO()
    parquet.write_table(arrow.table({name: [row[i] for row in rows] for i, name in enumerate(_COLUMNS)}), buffer)
    write_atomic(path.with_suffix(".parquet"), buffer.getvalue())
    return None


def write_wide_table(cells: Sequence[Cell], path: Path) -> None:
    """A CSV with a row for each run and a column for each metric; empty where a run has no such metric."""
    runs = [(cell.name, run) for cell in cells for run in cell.runs]
    names = sorted({metric for _, run in runs for metric in run.metrics})
    rows = [[name, run.method.seed, *(run.metrics.get(metric, "") for metric in names)] for name, run in runs]
    write_atomic(path, _csv([["run", "seed", *names], *rows]))


def _number(run: Run, metric: str) -> int | None:
    found = run.metrics.get(find_metric(metric).count)
    return None if found is None else int(found)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
