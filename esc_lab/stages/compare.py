"""Stage `compare`: the metrics of several runs in one table."""

from __future__ import annotations

from pathlib import Path

from esc_lab.config import Config
from esc_lab.report.tables import compare_runs, read_run, write_comparison


def run(cfg: Config) -> dict[str, float]:
    """Read the runs' metrics; comparison.md and comparison.csv go into the run directory, the table to the terminal."""
    runs = [read_run(Path(path)) for path in cfg.compare.runs]
    table = compare_runs(runs)
    write_comparison(table, Path(cfg.run_dir))
    return {f"{name}/{metric}": value for name, row in table.items() for metric, value in row.items()}
