"""Stage `compare`: runs side by side, with intervals, tests and figures."""

from __future__ import annotations

from pathlib import Path

from esc_lab.comparison import compare
from esc_lab.config import Config


def run(cfg: Config) -> dict[str, float]:
    """Compare the runs; tables, figures and all numbers go into the run directory, the table to the terminal."""
    asked = cfg.compare
    runs = [Path(path) for path in asked.runs]
    if asked.wandb:
        from esc_lab.comparison.wandb_project import runs_of_project

        runs += runs_of_project(asked.wandb, Path(cfg.cache_dir), asked.wandb_groups)
    comparison = compare(
        runs,
        out=Path(cfg.run_dir),
        baseline=asked.baseline,
        primary=asked.primary,
        metrics=asked.metrics,
        draws=asked.draws,
        seed=cfg.seed,
    )
    return comparison.metrics
