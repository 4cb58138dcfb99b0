"""Metrics of cells with intervals, and their differences to a baseline with tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from esc_lab.comparison.runs import Cell, Run
from esc_lab.metrics.metric import Definition
from esc_lab.metrics.prediction_table import BoolArray, FloatArray, IntArray, PredictionTable
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
        test = next((one.test for one in predictions.values()), None)
        self.dialogues = Draws(test.clusters, draws, seed) if test else None
        self.seeds: dict[str, IntArray] = {
            cell.name: draw_seeds(len(cell.runs), draws, seed, cell.name) for cell in cells
        }

    def sums(self, runs: Sequence[Run], measure: Definition, keep: BoolArray | None = None) -> dict[Path, FloatArray]:
        """Sums [k, clusters] of predictions whose decisions [decisions] are kept, by directory, where there are any."""
        found = {}
        for run in runs:
            if (predictions := self.predictions.get(run.directory)) is not None:
                rows = np.ones(len(predictions.decision), bool) if keep is None else keep[predictions.decision]
                sums = measure.sums(predictions, rows)
                if sums.any():
                    found[run.directory] = sums
        return found

    def run_draws(self, sums: Mapping[Path, FloatArray], measure: Definition) -> dict[Path, FloatArray]:
        """Draws [draws] of the runs that there are sums of."""
        if not sums or self.dialogues is None:
            return {}
        return dict(zip(sums, bootstrap(np.stack([*sums.values()]), measure.value, self.dialogues), strict=True))

    def cell_draws(self, cell: Cell, values: FloatArray, draws: Sequence[FloatArray | None]) -> FloatArray:
        """A cell's metric in each draw [draws], from the values and the draws of its runs; nan if nothing is drawn."""
        known = [one for one in draws if one is not None]
        if len(known) == len(cell.runs):
            return average_over_seeds(np.stack(known), self.seeds[cell.name])
        if len(cell.runs) > 1:
            return average_over_seeds(np.repeat(values[:, None], self.draws, axis=1), self.seeds[cell.name])
        return np.full(self.draws, math.nan)


def estimate(
    resampling: Resampling,
    metrics: Sequence[str],
    baselines: Mapping[str, Cell],
    primary: str,
) -> Estimates:
    """Every metric of every cell that has it.

    Args:
        resampling: cells and draws.
        metrics: names as in metrics.json.
        baselines: the cell that a cell is compared with, by name; cells without one are not compared.
        primary: the metric whose p-values are left uncorrected.
    """
    found: Estimates = {}
    for metric in metrics:
        drawn = _Drawn(resampling, metric)
        for cell in drawn.cells:
            found[cell.name, metric] = drawn.estimate(cell, baselines.get(cell.name), primary)
    compared = [(key, one.difference) for key, one in found.items() if one.difference and not one.difference.primary]
    corrected = holm([difference.p for _, difference in compared])
    for (key, difference), p in zip(compared, corrected, strict=True):
        found[key] = replace(found[key], difference=replace(difference, corrected=p))
    return found


class _Drawn:
    """One metric: its sums and draws for every run, and its draws for every cell that has it."""

    def __init__(self, resampling: Resampling, metric: str) -> None:
        self.metric, self.record, self.dialogues = metric, find_metric(metric), resampling.dialogues
        self.measure = None if self.record.is_count else self.record.definition
        self.cells = [cell for cell in resampling.cells if all(metric in run.metrics for run in cell.runs)]
        self.values = {cell.name: np.array([run.metrics[metric] for run in cell.runs]) for cell in self.cells}
        runs = [run for cell in self.cells for run in cell.runs]
        self.sums = resampling.sums(runs, self.measure) if self.measure else {}
        draws = resampling.run_draws(self.sums, self.measure) if self.measure else {}
        self.draws = {
            cell.name: resampling.cell_draws(
                cell, self.values[cell.name], [draws.get(run.directory) for run in cell.runs]
            )
            for cell in self.cells
        }

    def estimate(self, cell: Cell, baseline: Cell | None, primary: str) -> Estimate:
        values = self.values[cell.name]
        over = (*(["dialogues"] if self._by_dialogue(cell) else []), *(["seeds"] if len(cell.runs) > 1 else []))
        bounds = percentile_interval(values.mean(), self.draws[cell.name])
        difference = None
        if baseline and baseline.model != cell.model and self.record.by_tokens:
            baseline = None
        if baseline and baseline.name != cell.name and baseline.name in self.values and not self.record.is_count:
            difference = self._difference(cell, baseline, primary)
        return Estimate(tuple(values.tolist()), bounds, self._count(cell), over, difference)

    def _by_dialogue(self, cell: Cell) -> bool:
        return all(run.directory in self.sums for run in cell.runs)

    def _count(self, cell: Cell) -> float:
        return float(np.mean([run.metrics.get(self.record.count, math.nan) for run in cell.runs]))

    def _difference(self, cell: Cell, baseline: Cell, primary: str) -> Difference:
        value = self.values[cell.name].mean() - self.values[baseline.name].mean()
        draws = self.draws[cell.name] - self.draws[baseline.name]
        p = math.nan
        if self.measure and self.dialogues and self._by_dialogue(cell) and self._by_dialogue(baseline):
            pairs = _pairs(cell, baseline)
            first = np.stack([self.sums[run.directory] for run, _ in pairs])
            second = np.stack([self.sums[run.directory] for _, run in pairs])
            p = permutation_p(first, second, self.measure.value, self.dialogues)
        bounds = percentile_interval(value, draws)
        return Difference(baseline.name, bounds, p, p, self.metric == primary)


def _pairs(cell: Cell, baseline: Cell) -> list[tuple[Run, Run]]:
    """The runs of equal seeds; if the seeds differ (of a model as it came, say), all pairs."""
    if cell.seeds == baseline.seeds:
        return list(zip(cell.runs, baseline.runs, strict=True))
    return [(run, other) for run in cell.runs for other in baseline.runs]
