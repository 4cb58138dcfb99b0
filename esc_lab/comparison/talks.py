"""Whole talks of several supporters with the same seekers: read, checked, and the intensity after each turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esc_lab.comparison.checks import (
    check_metrics,
    list_runs,
    require_all_seeds_measured,
    require_equal,
    require_same_seeds,
    require_same_test_set,
)
from esc_lab.comparison.estimates import tabulate_metric
from esc_lab.comparison.groups import limit_interval
from esc_lab.comparison.runs import Cell, Run
from esc_lab.data.strategies import build_inventory
from esc_lab.errors import UserError, list_names
from esc_lab.evaluation.arena.read_talks import INTENSITY, Talks, read_talk_settings, read_talks
from esc_lab.metrics.metric import mean_of
from esc_lab.statistics.crossed_effects import estimate_mean
from esc_lab.statistics.intervals import Interval

_MAX_TOLD = 3  # settings that an error names
Curve = Sequence[tuple[int, Interval, int]]  # turn, mean intensity, talks


def load_talks(runs: Sequence[Run]) -> dict[Path, Talks]:
    """The talks of runs, by directory.

    Raises:
        UserError: they cannot be read, or are of other inventories.
    """
    fix = "compare talks that differ in the supporter alone"
    require_equal({run: run.inventory for run in runs}, "label sets differ (inventory.name)", fix)
    return {
        run.directory: read_talks(run.directory, build_inventory(run.config["inventory"], where=str(run.directory)))
        for run in runs
    }


def check_talks(cells: Sequence[Cell], talks: Mapping[Path, Talks], metrics: Sequence[str]) -> list[str]:
    """Whether all supporters met the same seekers: cards, seeds, models, words, and what counts as success.

    Returns:
        Sentences on what is not known.

    Raises:
        UserError: they did not; it says which runs, and how they differ.
    """
    runs = [run for cell in cells for run in cell.runs]
    require_same_seeds(cells)
    require_all_seeds_measured(cells, metrics)
    require_same_test_set({run: talks[run.directory].table.test for run in runs})
    fix = "resume=RUN with one converse.success measures a run anew, without asking again"
    require_equal({run: f"{talks[run.directory].success:g}" for run in runs}, "converse.success differs", fix)
    for run in runs:
        check_metrics(run, talks[run.directory].table, metrics)
    settings = {run: read_talk_settings(run.directory) for run in runs}
    known = {run: of_run for run, of_run in settings.items() if of_run}
    for run, other in zip([*known][1:], [*known], strict=False):
        require_same_seekers((other.directory, known[other]), (run.directory, known[run]))
    unknown = [run for run in runs if run not in known]
    sure = f"no journals in {list_runs(unknown)}: that its seekers are those of the others is not sure"
    return [sure] if unknown else []


def require_same_seekers(
    first: tuple[Path, Mapping[str, Mapping[str, Any]]],
    second: tuple[Path, Mapping[str, Mapping[str, Any]]],
    where: str = "talks",
) -> None:
    """Of two run directories with what `read_talk_settings` reads of them: a UserError names what differs."""
    (run, ours), (other, theirs) = first, second
    for talk in sorted(ours.keys() & theirs.keys()):
        names = ours[talk].keys() | theirs[talk].keys()
        differing = sorted(name for name in names if ours[talk].get(name) != theirs[talk].get(name))
        if differing:
            told = [
                f"{name} is {_short(ours[talk].get(name))} and {_short(theirs[talk].get(name))}" for name in differing
            ]
            what = f"the seekers of {run} and {other} differ (talk {talk}): "
            fix = "compare supporters that met the same cards, seeds and seeker (converse.talks repeats a card)"
            raise UserError(what + list_names(told, _MAX_TOLD, "; "), where=where, fix=fix)


def trace_intensity(cells: Sequence[Cell], talks: Mapping[Path, Talks]) -> dict[str, Curve]:
    """By cell the mean intensity of the emotion after the opening (0) and after each turn, over the talks that have
    such a turn, with intervals over cards and seeds where there are cards enough; without cells that did not ask.
    """
    tables = {directory: of_run.table for directory, of_run in talks.items()}
    curves: dict[str, Curve] = {}
    for cell in cells:
        own = [tables[run.directory] for run in cell.runs]
        points = []
        for turn in range(1 + talks[cell.runs[0].directory].max_turns):
            name = f"{INTENSITY}{turn}"
            known = [~np.isnan(table.column(name)) for table in own]
            if all(of_run.any() for of_run in known):
                cards = np.unique(np.concatenate([t.test.cluster[k] for t, k in zip(own, known, strict=True)]))
                mean = estimate_mean(tabulate_metric(cell, mean_of(name), tables))
                count = round(float(np.mean([of_run.sum() for of_run in known])))
                points.append((turn, limit_interval(mean, len(cards)), count))
        if points:
            curves[cell.name] = points
    return curves


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
