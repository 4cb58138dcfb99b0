"""Strategy choice of a cell, strategy by strategy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from esc_lab.comparison.estimates import Resampling
from esc_lab.comparison.runs import Cell
from esc_lab.metrics.prediction_table import NOT_ASKED, FloatArray
from esc_lab.metrics.strategy_choice import CHOICES, class_scores, count_choices, strategy_preference
from esc_lab.statistics.intervals import Interval, percentile_interval


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


def tabulate_strategies(resampling: Resampling, cell: Cell) -> StrategyTable | None:
    """Strategy choice of a cell: of the exact distribution, else of what it wrote; None where it has no choice."""
    tables = [resampling.predictions[run.directory] for run in cell.runs if run.directory in resampling.predictions]
    if resampling.dialogues is None or len(tables) < len(cell.runs):
        return None
    measured = [of for of, choice in CHOICES.items() if all((getattr(t, choice) != NOT_ASKED).any() for t in tables)]
    if not measured:
        return None
    choice = CHOICES[measured[0]]
    by_cluster = [count_choices(table, np.ones(len(table.decision), bool), choice) for table in tables]
    counts = np.stack([one.sum(axis=2, dtype=np.float64) for one in by_cluster], axis=2)  # [classes + 1, classes, runs]
    scores = {name: values.mean(axis=1) for name, values in class_scores(counts).items()}
    weights = resampling.dialogues.weights[by_cluster[0].dtype]
    draws = [strategy_preference(one[:-1] @ weights)[0] for one in by_cluster]  # of each run [classes, draws]
    if by_cluster[0].shape[2] < 2:  # one cluster does not say how clusters differ
        draws = [np.full_like(of_run, math.nan) for of_run in draws]
    preference = tuple(
        percentile_interval(
            values.mean(),
            resampling.draw_cell(cell, values, {r.directory: d[number] for r, d in zip(cell.runs, draws, strict=True)}),
        )
        for number, values in enumerate(strategy_preference(counts[:-1])[0])
    )
    return StrategyTable(
        measured[0],
        tables[0].test.strategies,
        precision=scores["precision"],
        recall=scores["recall"],
        f1=scores["f1"],
        gold=scores["support"],
        predicted=scores["predicted"],
        preference=preference,
        confusion=counts.mean(axis=2),
    )
