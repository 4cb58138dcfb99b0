"""Stage `compare`: runs side by side, with intervals, tests and figures, and as a page to browse."""

from __future__ import annotations

import logging
from pathlib import Path

from esc_lab.comparison.files import write_comparison
from esc_lab.comparison.formats import print_gains, print_table
from esc_lab.comparison.result import compute_comparison
from esc_lab.comparison.share import share_runs
from esc_lab.comparison.table import build_table
from esc_lab.config import Config
from esc_lab.report.comparison_figures import draw_comparison
from esc_lab.report.comparison_page import write_comparison_page
from esc_lab.runs.layout import FIGURES, REPORT, REPORT_BUNDLE, SHARED_RUNS
from esc_lab.terminal import console
from esc_lab.tracking.project import download_evaluations

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Compare the runs; tables, figures, numbers and report.html go into the run directory, the table to the terminal.

    Raises:
        UserError: runs cannot be read or compared, or a file cannot be written.
    """
    asked, directory = cfg.compare, Path(cfg.run_dir)
    runs = [Path(path) for path in asked.runs]
    if asked.wandb:
        runs += download_evaluations(asked.wandb, Path(cfg.cache_dir), asked.wandb_groups)
    comparison = compute_comparison(runs, baseline=asked.baseline, primary=asked.primary, metrics=asked.metrics)
    table = build_table(comparison)
    figures = draw_comparison(comparison, table, directory / FIGURES)
    write_comparison(comparison, table, figures, directory)
    print_table(table, console(), comparison.title)
    for part in comparison.parts[1:]:
        print_table(build_table(part), console(), part.title)
    if asked.share:
        share_runs(comparison.runs, directory / SHARED_RUNS)
    bundle = directory / REPORT_BUNDLE if asked.bundle else None
    report = write_comparison_page(comparison, figures, directory / REPORT, bundle)
    log.info("report: %s%s", report, f"; with all that it links: {bundle}" if bundle else "")
    print_gains(table, console())
    return comparison.metrics
