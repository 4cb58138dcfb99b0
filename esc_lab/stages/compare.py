"""Stage `compare`: runs side by side, with intervals, tests and figures, and as a page to browse."""

from __future__ import annotations

import logging
from pathlib import Path

from esc_lab.comparison.output import compare
from esc_lab.config import Config
from esc_lab.report.comparison_page import write_comparison_page
from esc_lab.tracking.project import runs_of_project

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Compare the runs; tables, figures, numbers and report.html go into the run directory, the table to the terminal.

    Raises:
        UserError: runs cannot be read or compared.
    """
    asked, directory = cfg.compare, Path(cfg.run_dir)
    runs = [Path(path) for path in asked.runs]
    if asked.wandb:
        runs += runs_of_project(asked.wandb, Path(cfg.cache_dir), asked.wandb_groups)
    comparison = compare(
        runs,
        out=directory,
        baseline=asked.baseline,
        primary=asked.primary,
        metrics=asked.metrics,
        draws=asked.draws,
        seed=cfg.seed,
    )
    figures = sorted((directory / "figures").glob("*.png"))
    log.info("report: %s", write_comparison_page(comparison, figures, directory / "report.html"))
    return comparison.metrics
