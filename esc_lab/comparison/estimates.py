"""Metrics of cells with intervals, and their differences to a baseline with tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from esc_lab.comparison.runs import Cell, Run
from esc_lab.metrics.metric import Definition, Metric
from esc_lab.metrics.prediction_table import BoolArray, FloatArray, PredictionTable
from esc_lab.metrics.records import find_metric
from esc_lab.statistics.bootstrap import Draws, average_over_seeds, bootstrap, draw_seeds
from esc_lab.statistics.intervals import Interval, percentile_interval
from esc_lab.statistics.permutation import holm, permutation_p


@dataclass(frozen=True)
class Difference:
    """A cell minus its baseline.

    Attributes:
        baseline: name of the baseline's cell.
        interval: the difference with its 95 % interval; nan ends where a side has no draws.
        p: of the paired permutation test; nan where the metric is not known by dialogue.
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
        return "*" * sum(self.corrected < level for level in (0.05, 0.01, 0.001))


@dataclass(frozen=True)
class Estimate:
    """A metric of a cell.

    Attributes:
        values: of each of its runs, as recorded in metrics.json.
        interval: their mean with its 95 % interval; nan ends where nothing is drawn.
        n: observations it is computed from, a mean over the runs; nan if unknown.
        over: what the interval is drawn over: `dialogues`, `seeds`, both, or nothing.
        difference: to the baseline; None of the baseline itself, of counts, or if one side has no such metric.
    """

    values: tuple[float, ...]
    interval: Interval
    n: float
    over: tuple[str, ...]
    difference: Difference | None = None


Estimates = dict[tuple[str, str], Estimate]  # by cell and metric


class Resampling:
    """The draws that all estimates share.

    Args:
        cells: the cells that are compared.
        predictions: of their runs, by directory, all of one test set; runs without any are left out.
        draws, seed: number and seed of the draws.
    """

    def __init__(
        self, cells: Sequence[Cell], predictions: Mapping[Path, PredictionTable], draws: int, seed: int
    ) -> None:
        self.cells, self.predictions, self.draws = cells, predictions, draws
        test = next((table.test for table in predictions.values()), None)
        self.dialogues = Draws(test.clusters, draws, seed) if test else None
        self.seeds = {cell.name: draw_seeds(len(cell.runs), draws, seed, cell.name) for cell in cells}

    def draw_runs(
        self, cells: Sequence[Cell], definition: Definition, keep: BoolArray | None = None
    ) -> tuple[dict[Path, FloatArray], dict[Path, FloatArray]]:
        """Sums [k, clusters] and draws [draws] of the runs that have any, by directory.

        Args:
            keep: [decisions], those that count; None: all.
        """
        sums = {}
        for run in (run for cell in cells for run in cell.runs if run.directory in self.predictions):
            table = self.predictions[run.directory]
            rows = np.ones(len(table.decision), bool) if keep is None else keep[table.decision]
            run_sums = definition.sums(table, rows)
            if run_sums.any():
                sums[run.directory] = run_sums
        if not sums or self.dialogues is None:
            return sums, {}
        draws = bootstrap(np.stack([*sums.values()]), definition.value, self.dialogues)
        return sums, dict(zip(sums, draws, strict=True))

    def draw_cell(self, cell: Cell, values: FloatArray, draws: Mapping[Path, FloatArray]) -> FloatArray:
        """A cell's metric in each draw [draws], from the values and the draws of its runs; nan if nothing is drawn."""
        if all(run.directory in draws for run in cell.runs):
            by_run = np.stack([draws[run.directory] for run in cell.runs])
        elif len(cell.runs) > 1:
            by_run = np.repeat(values[:, None], self.draws, axis=1)
        else:
            return np.full(self.draws, math.nan)
        return average_over_seeds(by_run, self.seeds[cell.name])


def compute_estimates(
    resampling: Resampling, metrics: Sequence[str], baselines: Mapping[str, Cell], primary: str
) -> Estimates:
    """Every metric of every cell that has it.

    Args:
        resampling: cells and draws.
        metrics: names as in metrics.json.
        baselines: the cell that a cell is compared with, by name; cells without one are not compared.
        primary: the metric whose p-values are left uncorrected.
    """
    estimates: Estimates = {}
    for name in metrics:
        metric = _MetricDraws(resampling, find_metric(name))
        for cell in metric.cells:
            estimates[cell.name, name] = metric.estimate(cell, baselines.get(cell.name), name == primary)
    secondary = [
        (key, estimate.difference)
        for key, estimate in estimates.items()
        if estimate.difference and not estimate.difference.primary
    ]
    corrected = holm([difference.p for _, difference in secondary])
    for (key, difference), p in zip(secondary, corrected, strict=True):
        estimates[key] = replace(estimates[key], difference=replace(difference, corrected=p))
    return estimates


class _MetricDraws:
    """One metric: its sums for every run, and its draws for every cell that has it."""

    def __init__(self, resampling: Resampling, metric: Metric) -> None:
        self.metric, self.dialogues = metric, resampling.dialogues
        self.definition = None if metric.is_count else metric.definition
        self.cells = [cell for cell in resampling.cells if all(metric.name in run.metrics for run in cell.runs)]
        self.values = {cell.name: np.array([run.metrics[metric.name] for run in cell.runs]) for cell in self.cells}
        self.sums, draws = resampling.draw_runs(self.cells, self.definition) if self.definition else ({}, {})
        self.draws = {cell.name: resampling.draw_cell(cell, self.values[cell.name], draws) for cell in self.cells}

    def estimate(self, cell: Cell, baseline: Cell | None, primary: bool) -> Estimate:
        values = self.values[cell.name]
        over = (*(["dialogues"] if self._by_dialogue(cell) else []), *(["seeds"] if len(cell.runs) > 1 else []))
        count = np.mean([run.metrics.get(self.metric.count, math.nan) for run in cell.runs])
        interval = percentile_interval(values.mean(), self.draws[cell.name])
        difference = (
            self._difference(cell, baseline, primary) if baseline and self._comparable(cell, baseline) else None
        )
        return Estimate(tuple(values.tolist()), interval, float(count), over, difference)

    def _by_dialogue(self, cell: Cell) -> bool:
        return all(run.directory in self.sums for run in cell.runs)

    def _comparable(self, cell: Cell, baseline: Cell) -> bool:
        if self.metric.is_count or baseline.name == cell.name or baseline.name not in self.values:
            return False
        return baseline.model == cell.model or not self.metric.by_tokens

    def _difference(self, cell: Cell, baseline: Cell, primary: bool) -> Difference:
        value = self.values[cell.name].mean() - self.values[baseline.name].mean()
        p = math.nan
        if self.definition and self.dialogues and self._by_dialogue(cell) and self._by_dialogue(baseline):
            pairs = _pair_seeds(cell, baseline)
            first, second = (np.stack([self.sums[pair[side].directory] for pair in pairs]) for side in (0, 1))
            p = permutation_p(first, second, self.definition.value, self.dialogues)
        interval = percentile_interval(value, self.draws[cell.name] - self.draws[baseline.name])
        return Difference(baseline.name, interval, p, p, primary)


def _pair_seeds(cell: Cell, baseline: Cell) -> list[tuple[Run, Run]]:
    """The runs of equal seeds; if the seeds differ (of a model as it came, say), all pairs."""
    if cell.seeds == baseline.seeds:
        return list(zip(cell.runs, baseline.runs, strict=True))
    return [(run, other) for run in cell.runs for other in baseline.runs]
