"""Stage `compare`: runs side by side, with intervals, tests and figures."""

from __future__ import annotations

from pathlib import Path

from esc_lab.comparison import compare
from esc_lab.config import Config


def run(cfg: Config) -> dict[str, float]:
    """Compare the runs; tables, figures and all numbers go into the run directory, the table to the terminal."""
    asked = cfg.compare
    comparison = compare(
        [Path(path) for path in asked.runs],
        out=Path(cfg.run_dir),
        baseline=asked.baseline,
        primary=asked.primary,
        metrics=asked.metrics,
        draws=asked.draws,
        seed=cfg.seed,
    )
    return comparison.metrics
