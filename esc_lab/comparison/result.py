"""A comparison of runs: what it found, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from esc_lab.comparison.checks import check_cells, chosen_metrics, load_predictions
from esc_lab.comparison.choices import StrategyTable, strategy_table
from esc_lab.comparison.estimates import Estimates, Resampling, estimate
from esc_lab.comparison.groups import GroupEstimate, group_estimates, groups_of
from esc_lab.comparison.judgements import (
    OVERALL,
    Judgements,
    judge_among,
    judged_predictions,
    read_judgements,
    with_judgements,
)
from esc_lab.comparison.runs import Cell, cells_of, read_runs
from esc_lab.errors import UserError, nearest
from esc_lab.metrics.metric import Metric
from esc_lab.metrics.prediction_table import PredictionTable, TestSet
from esc_lab.metrics.records import find_metric

# Draws for groups and single strategies, of which there are many; interval ends then vary by some 3 % of the width.
DETAIL_DRAWS = 1000


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        cells: model x method, those of a model together.
        columns: the compared metrics.
        estimates: of each metric of each cell that has it.
        baselines: the cell that each cell is compared with, by name.
        primary: the metric whose p-values are left uncorrected; None if it was not measured.
        test: the decisions of all evaluations; None without predictions.
        groups: metrics in subgroups of the decisions.
        left_out: groups that are too small, with their number of decisions.
        strategies: strategy by strategy, by cell.
        remarks: what was left out or stands out among the runs.
        draws, seed: of the bootstrap and the permutation test.
        judgements: of a judge, if one is named.
    """

    cells: Sequence[Cell]
    columns: Sequence[Metric]
    estimates: Estimates
    baselines: Mapping[str, Cell]
    primary: str | None
    test: TestSet | None
    groups: Sequence[GroupEstimate]
    left_out: Sequence[str]
    strategies: Mapping[str, StrategyTable]
    remarks: Sequence[str]
    draws: int
    seed: int
    judgements: Judgements | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Flat: `<cell>/<metric>` for every metric of its runs (a mean over the seeds).

        Of those that are compared also `<cell>/difference/<metric>` and `<cell>/p/<metric>` (corrected). What does not
        exist is left out.
        """
        found: dict[str, float] = {}
        for cell in self.cells:
            for metric in {name: None for run in cell.runs for name in run.metrics}:
                values = [run.metrics[metric] for run in cell.runs if metric in run.metrics]
                found[f"{cell.name}/{metric}"] = sum(values) / len(values)
        for (name, metric), one in self.estimates.items():
            if one.difference:
                found[f"{name}/difference/{metric}"] = one.difference.interval.value
                found[f"{name}/p/{metric}"] = one.difference.corrected
        return {name: value for name, value in found.items() if not math.isnan(value)}


def compared(
    directories: Sequence[Path],
    *,
    baseline: str | None = None,
    primary: str = "strategy/Q",
    metrics: Sequence[str] | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Read and compare runs; nothing is written.

    Args:
        directories: of evaluations, trainings, pipelines or multiruns, and of one judge of them.
        baseline: what differences are to: a cell (`tiny CSO (cso)`), or a method (`SFT`), then for each model its own.
            None: the base model for each, or its first cell; the first of all cells if each model has only one.
        primary: the metric whose p-values are not corrected.
        metrics: the compared ones; None = all columns that tables know and some run has.
        draws, seed: of the bootstrap and the permutation test.

    Raises:
        UserError: runs are not finished or cannot be compared (see `read_runs`, `check_cells`, `load_predictions`), or
            there is no such baseline or metric.
    """
    others, judge = judge_among(directories)
    runs, remarks = read_runs(others)
    judgements = read_judgements(judge) if judge else None
    if judgements:
        runs, more = with_judgements(runs, judgements)
        remarks = [*remarks, *more]
    names = chosen_metrics(runs, metrics)
    measured = {name for run in runs for name in run.metrics}
    if primary not in ("strategy/Q", *measured):
        hint = nearest(primary, measured)
        raise UserError(f"no run has the metric{hint}", where=f"compare.primary={primary}", fix="see metrics.json")
    cells = cells_of(runs)
    if metrics is None and OVERALL in names and _judged_in_part(cells):
        names.remove(OVERALL)
        remarks.append(f"{OVERALL} is left out: some seeds of a cell were not judged")
    remarks += check_cells(cells, names)
    baselines = baselines_of(cells, baseline)
    predictions = load_predictions(runs, [name for name in names if name != OVERALL])
    if judgements:
        predictions = judged_predictions(runs, predictions, judgements)
    test = next((one.test for one in predictions.values()), None)
    found = estimate(Resampling(cells, predictions, draws, seed), names, baselines, primary)
    details = Resampling(cells, predictions, min(draws, DETAIL_DRAWS), seed)
    groups, left_out = groups_of(test) if test else ([], [])
    tables = {cell.name: strategy_table(details, cell) for cell in cells}
    return Comparison(
        cells,
        [find_metric(name) for name in names],
        found,
        baselines,
        primary if primary in names else None,
        test,
        group_estimates(details, groups, names, baselines),
        left_out,
        {name: table for name, table in tables.items() if table},
        [*remarks, *_remarks(cells, predictions)],
        draws,
        seed,
        judgements,
    )


def _judged_in_part(cells: Sequence[Cell]) -> bool:
    return any(0 < sum(OVERALL in run.metrics for run in cell.runs) < len(cell.runs) for cell in cells)


def baselines_of(cells: Sequence[Cell], asked: str | None) -> dict[str, Cell]:
    """The baseline of each evaluated cell, by the cell's name. It is its own baseline's too.

    Raises:
        UserError: there is no such cell or method, or a model has it under several templates.
    """
    evaluated = [cell for cell in cells if cell.evaluation]
    by_model: dict[str, list[Cell]] = {}
    for cell in evaluated:
        by_model.setdefault(cell.model, []).append(cell)
    if asked is None:
        if all(len(members) == 1 for members in by_model.values()):
            return {cell.name: evaluated[0] for cell in evaluated}
        first = {
            model: next((c for c in members if c.method == "base"), members[0]) for model, members in by_model.items()
        }
        return {cell.name: first[cell.model] for cell in evaluated}
    whole = [cell for cell in evaluated if cell.name == asked]
    if whole:
        return {cell.name: whole[0] for cell in evaluated}
    found: dict[str, Cell] = {}
    for model, members in by_model.items():
        matching = [cell for cell in members if cell.method == asked]
        if len(matching) > 1:
            fix = f"name one of the cells: {', '.join(cell.name for cell in matching)}"
            raise UserError(f"{model} has {len(matching)} cells of the method {asked}", where="baseline", fix=fix)
        found |= {cell.name: matching[0] for cell in members if matching}
    if not found:
        known = list(dict.fromkeys([*(cell.method for cell in evaluated), *(cell.name for cell in evaluated)]))
        raise UserError(f"no cell or method {asked!r}{nearest(asked, known)}", where="baseline", fix=", ".join(known))
    return found


def _remarks(cells: Sequence[Cell], predictions: Mapping[Path, PredictionTable]) -> list[str]:
    runs = [run for cell in cells for run in cell.runs]
    found = []
    without = [str(run.directory) for run in runs if run.evaluation and run.directory not in predictions]
    if without:
        found.append(
            f"no predictions.jsonl in {', '.join(without)}: its values have no interval over dialogues and no test"
        )
    commits = {str(run.environment.get("git_commit")) for run in runs if run.environment.get("git_commit")}
    if len(commits) > 1:
        found.append(f"the runs are of {len(commits)} versions of this program: {', '.join(sorted(commits))}")
    return found
