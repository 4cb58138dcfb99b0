"""Metrics of cells with intervals, and their differences to a baseline with tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from esc_lab.comparison.runs import Cell
from esc_lab.metrics.metric import Definition, Metric
from esc_lab.metrics.prediction_table import BoolArray, FloatArray, PredictionTable
from esc_lab.metrics.records import find_metric
from esc_lab.metrics.talks import TALKS_OF_CARDS
from esc_lab.statistics.crossed_effects import CrossedMean, SeedTable, estimate_mean, influence, subtract
from esc_lab.statistics.intervals import Interval
from esc_lab.statistics.multiple_tests import holm

SIGNIFICANCE = (0.05, 0.01, 0.001)  # a star for each level that p is below
GUARDED = "\u2020"  # stands at a value that a guard acted on


@dataclass(frozen=True)
class Difference:
    """A cell minus its baseline.

    Attributes:
        baseline: name of the baseline's cell.
        interval: the difference with its 95 % interval; nan ends where there is none.
        p: of the test that there is no difference, by the same estimate; nan where there is no interval.
        corrected: p by Holm's correction; of the primary metric p itself.
        primary: whether it is of the primary metric.
    """

    baseline: str
    interval: Interval
    p: float
    corrected: float
    primary: bool

    @property
    def marks(self) -> str:
        """A star each for p below 0.05, 0.01 and 0.001."""
        return "*" * sum(self.corrected < level for level in SIGNIFICANCE)


@dataclass(frozen=True)
class Estimate:
    """A metric of a cell.

    Attributes:
        values: of each of its runs, as recorded in metrics.json.
        interval: their mean with its 95 % interval; nan ends where there is none.
        n: observations it is computed from, a mean over the runs; nan if unknown.
        over: what the interval accounts for: other `dialogues` (of talks: `cards`), other `seeds`, both, or nothing.
        guarded: whether a guard acted in some run, without which the metric would have no value (see `Metric.guard`).
        difference: to the baseline; None of the baseline itself, of counts, or if one side has no such metric.
    """

    values: tuple[float, ...]
    interval: Interval
    n: float
    over: tuple[str, ...]
    guarded: bool = False
    difference: Difference | None = None


Estimates = dict[tuple[str, str], Estimate]  # by cell and metric


def tabulate_metric(
    cell: Cell,
    definition: Definition | None,
    predictions: Mapping[Path, PredictionTable],
    *,
    values: FloatArray | None = None,
    keep: BoolArray | None = None,
) -> SeedTable:
    """A metric of a cell's runs; by dialogue only if it is defined and all runs left predictions.

    Args:
        values: [runs], the metric as recorded; None: computed, nan of a run without predictions.
        keep: [decisions], those that count; None: all.
    """
    known = [predictions.get(run.directory) for run in cell.runs]
    tables = [table for table in known if table is not None]
    if definition is None or len(tables) < len(cell.runs):
        return SeedTable(np.full(len(cell.runs), math.nan) if values is None else values)
    rows = (np.ones(len(t.decision), bool) if keep is None else keep[t.decision] for t in tables)
    sums = [definition.sums(table, kept) for table, kept in zip(tables, rows, strict=True)]
    if values is None:
        values = np.array([definition.value(own.sum(axis=1, keepdims=True, dtype=np.float64))[0] for own in sums])
    if not all(own.any() for own in sums):
        return SeedTable(values)
    changes = np.stack([influence(own, definition.value) for own in sums])
    return SeedTable(values, changes, np.logical_or.reduce([own.any(axis=0) for own in sums]))


def compare_tables(first: tuple[Cell, SeedTable], second: tuple[Cell, SeedTable]) -> CrossedMean:
    """The first cell less the second.

    Runs of equal seeds are pairs: a seed stands for one order of the data and one start of the adapter, and often one
    run goes on from the other. What they have in common cancels, and where they have nothing in common the difference
    is as right, with fewer degrees of freedom.
    """
    (cell, table), (baseline, other) = first, second
    if cell.seeds == baseline.seeds or min(len(cell.runs), len(baseline.runs)) == 1:
        return estimate_mean(subtract(table, other))
    return estimate_mean(table, other)


def compute_estimates(
    cells: Sequence[Cell],
    predictions: Mapping[Path, PredictionTable],
    metrics: Sequence[str],
    baselines: Mapping[str, Cell],
    primary: str,
) -> Estimates:
    """Every metric of every cell that has it.

    Args:
        cells: the cells that are compared.
        predictions: of their runs, by directory, all of one test set; runs without any are left out.
        metrics: names as in metrics.json.
        baselines: the cell that a cell is compared with, by name; cells without one are not compared.
        primary: the metric whose p-values are left uncorrected.
    """
    estimates: Estimates = {}
    for name in metrics:
        metric = _ComparedMetric(find_metric(name), cells, predictions)
        for cell in metric.cells:
            estimates[cell.name, name] = metric.estimate(cell, baselines.get(cell.name), name == primary)
    secondary = {
        key: estimate.difference
        for key, estimate in estimates.items()
        if estimate.difference and not estimate.difference.primary
    }
    for key, difference in _correct(secondary).items():
        estimates[key] = replace(estimates[key], difference=difference)
    return estimates


def compare_cells(
    cell: Cell, other: Cell, predictions: Mapping[Path, PredictionTable], metrics: Sequence[Metric]
) -> dict[Metric, Difference]:
    """A cell less another one in each metric that both have; their p-values are corrected together."""
    compared = {metric: _ComparedMetric(metric, (cell, other), predictions) for metric in metrics}
    found = {metric: of.compare(cell, other) for metric, of in compared.items() if len(of.cells) == 2}
    return _correct({metric: difference for metric, difference in found.items() if difference})


_Name = TypeVar("_Name")


def _correct(differences: Mapping[_Name, Difference]) -> dict[_Name, Difference]:
    """With p-values that are corrected together (Holm)."""
    corrected = holm([difference.p for difference in differences.values()])
    return {
        name: replace(difference, corrected=p)
        for (name, difference), p in zip(differences.items(), corrected, strict=True)
    }


def enough_for_interval(cell: Cell, metric: Metric) -> bool:
    """Whether every run of a cell has as many observations as an interval of the metric needs."""
    for run in cell.runs:
        needed = metric.min_count * (2 if run.metrics.get(metric.guard, 0) else 1)
        if needed and not run.metrics.get(metric.count, 0) >= needed:
            return False
    return True


class _ComparedMetric:
    """One metric: its table of every cell that has it."""

    def __init__(self, metric: Metric, cells: Sequence[Cell], predictions: Mapping[Path, PredictionTable]) -> None:
        self.metric = metric
        self.cells = [cell for cell in cells if all(metric.name in run.metrics for run in cell.runs)]
        self.predictions, self.definition = predictions, None if metric.is_count else metric.definition
        self.tables = {cell.name: self._tabulate(cell) for cell in self.cells}
        self.unit = next((table.test.kind[1] for table in predictions.values()), "dialogues")

    def _tabulate(self, cell: Cell) -> SeedTable:
        values = np.array([run.metrics[self.metric.name] for run in cell.runs])
        return tabulate_metric(cell, self.definition, self.predictions, values=values)

    def _known(self, cell: Cell) -> list[BoolArray]:
        """Of whole talks, in which of them each run has the measure; empty where it is none of single talks."""
        tables = [self.predictions.get(run.directory) for run in cell.runs]
        return [
            ~np.isnan(table.values[self.metric.name])
            for table in tables
            if table is not None and table.test.kind == TALKS_OF_CARDS and self.metric.name in table.values
        ]

    def estimate(self, cell: Cell, baseline: Cell | None, primary: bool) -> Estimate:
        table = self.tables[cell.name]
        over = (
            *([self.unit] if table.by_dialogue else []),
            *(["seeds"] if len(cell.runs) > 1 else []),
        )
        mean = estimate_mean(table)
        enough = enough_for_interval(cell, self.metric)
        known = [float(of_run.sum()) for of_run in self._known(cell)]
        count = np.mean(known or [run.metrics.get(self.metric.count, math.nan) for run in cell.runs])
        guarded = any(run.metrics.get(self.metric.guard, 0) for run in cell.runs)
        difference = self.compare(cell, baseline, primary) if baseline else None
        interval = mean.interval(corrected=self.metric.biased) if enough else _alone(mean)
        return Estimate(tuple(table.values.tolist()), interval, float(count), over, guarded, difference)

    def _comparable(self, cell: Cell, baseline: Cell) -> bool:
        if self.metric.is_count or baseline.name == cell.name or baseline.name not in self.tables:
            return False
        return baseline.model == cell.model or not self.metric.by_tokens

    def compare(self, cell: Cell, baseline: Cell, primary: bool = False) -> Difference | None:
        """The cell less its baseline; None where they cannot be compared.

        Of whole talks: in those that have it in both, so that nobody gains by one that is missing.
        """
        if not self._comparable(cell, baseline):
            return None
        tables = self.tables
        known = [*self._known(cell), *self._known(baseline)]
        if known and not (both := np.logical_and.reduce(known)).all():  # paired: the talks that both have
            if not both.any():
                return None
            tables = {
                of.name: tabulate_metric(of, self.definition, self.predictions, keep=both) for of in (cell, baseline)
            }
        mean = compare_tables((cell, tables[cell.name]), (baseline, tables[baseline.name]))
        p, interval = math.nan, _alone(mean)
        if enough_for_interval(cell, self.metric) and enough_for_interval(baseline, self.metric):
            p = mean.p(corrected=self.metric.biased)
        if not math.isnan(p):
            interval = mean.interval(corrected=self.metric.biased)
        return Difference(baseline.name, interval, p, p, primary)


def _alone(mean: CrossedMean) -> Interval:
    return Interval(mean.value, math.nan, math.nan)
