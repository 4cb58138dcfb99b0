"""Strategy choice of a cell, strategy by strategy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esc_lab.comparison.estimates import enough_for_interval
from esc_lab.comparison.runs import Cell
from esc_lab.metrics.prediction_table import NOT_ASKED, FloatArray, PredictionTable
from esc_lab.metrics.records import find_metric
from esc_lab.metrics.strategy_choice import CHOICES, class_scores, count_choices, preferences
from esc_lab.statistics.crossed_effects import SeedTable, estimate_mean, influence
from esc_lab.statistics.intervals import Interval


@dataclass(frozen=True)
class StrategyTable:
    """Strategy choice of a cell, means over its seeds.

    Attributes:
        of: `strategy` (the most probable one) or `generated` (parsed from what the model wrote).
        strategies: names, in the order of all arrays below.
        precision, recall, f1, gold, predicted: [classes].
        preference: p with 95 % intervals, for each class.
        confusion: counts [classes + 1, classes]; rows predicted, the last unparsable, columns gold.
    """

    of: str
    strategies: tuple[str, ...]
    precision: FloatArray
    recall: FloatArray
    f1: FloatArray
    gold: FloatArray
    predicted: FloatArray
    preference: tuple[Interval, ...]
    confusion: FloatArray


def tabulate_strategies(cell: Cell, predictions: Mapping[Path, PredictionTable]) -> StrategyTable | None:
    """Strategy choice of a cell: of the exact distribution, else of what it wrote; None where it has no choice."""
    tables = [predictions[run.directory] for run in cell.runs if run.directory in predictions]
    if len(tables) < len(cell.runs):
        return None
    measured = [of for of, choice in CHOICES.items() if all((getattr(t, choice) != NOT_ASKED).any() for t in tables)]
    if not measured:
        return None
    choice = CHOICES[measured[0]]
    by_cluster = [count_choices(table, np.ones(len(table.decision), bool), choice) for table in tables]
    counts = np.stack([one.sum(axis=2, dtype=np.float64) for one in by_cluster], axis=2)  # [classes + 1, classes, runs]
    scores = {name: values.mean(axis=1) for name, values in class_scores(counts).items()}
    return StrategyTable(
        measured[0],
        tables[0].test.strategies,
        precision=scores["precision"],
        recall=scores["recall"],
        f1=scores["f1"],
        gold=scores["support"],
        predicted=scores["predicted"],
        preference=_preferences(by_cluster, with_ends=enough_for_interval(cell, find_metric(f"{measured[0]}/B"))),
        confusion=counts.mean(axis=2),
    )


def _preferences(by_cluster: Sequence[FloatArray], *, with_ends: bool) -> tuple[Interval, ...]:
    """Preference for each class, a mean over runs, from their counts [classes + 1, classes, clusters]."""
    classes = by_cluster[0].shape[1]

    def preference(totals: FloatArray) -> FloatArray:
        return preferences(totals.reshape(classes, classes, -1))

    sums = [one[:-1].reshape(classes**2, -1) for one in by_cluster]
    values = np.stack([preference(own.sum(axis=1, dtype=np.float64))[:, 0] for own in sums])  # [runs, classes]
    changes = np.stack([influence(own, preference) for own in sums])  # [runs, classes, clusters]
    present = np.logical_or.reduce([own.any(axis=0) for own in sums])
    intervals = []
    for number in range(classes):
        found = estimate_mean(SeedTable(values[:, number], changes[:, number], present)).interval()
        low, high = (max(found.low, 0.0), found.high) if with_ends else (math.nan, math.nan)
        intervals.append(Interval(found.value, low, high))
    return tuple(intervals)
