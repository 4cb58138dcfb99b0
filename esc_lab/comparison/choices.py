"""Strategy choice of a cell, strategy by strategy."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def strategy_table(resampling: Resampling, cell: Cell) -> StrategyTable | None:
    """Strategy choice of a cell: of the exact distribution, else of what it wrote; None where it has no choice."""
    found = [resampling.predictions.get(run.directory) for run in cell.runs]
    predictions = [one for one in found if one is not None]
    if resampling.dialogues is None or len(predictions) < len(found):
        return None
    asked = (of for of, choice in CHOICES.items() if all((getattr(p, choice) != NOT_ASKED).any() for p in predictions))
    of = next(asked, None)
    if of is None:
        return None
    counts = [count_choices(one, np.ones(len(one.decision), bool), CHOICES[of]) for one in predictions]
    tables = np.stack([one.sum(axis=2, dtype=np.float64) for one in counts], axis=2)  # [classes + 1, classes, runs]
    scores = {name: values.mean(axis=1) for name, values in class_scores(tables).items()}
    return StrategyTable(
        of,
        predictions[0].test.strategies,
        precision=scores["precision"],
        recall=scores["recall"],
        f1=scores["f1"],
        gold=scores["support"],
        predicted=scores["predicted"],
        preference=_preferences(resampling, cell, strategy_preference(tables[:-1])[0], [one[:-1] for one in counts]),
        confusion=tables.mean(axis=2),
    )


def _preferences(
    resampling: Resampling, cell: Cell, values: FloatArray, errors: Sequence[FloatArray]
) -> tuple[Interval, ...]:
    """Intervals of the preferences [classes, runs], from counts [classes, classes, clusters] of each run."""
    assert resampling.dialogues is not None
    weights = resampling.dialogues.weights[errors[0].dtype]
    drawn = np.stack([strategy_preference(one @ weights)[0] for one in errors])  # [runs, classes, draws]
    if errors[0].shape[2] < 2:
        drawn = np.full_like(drawn, math.nan)
    return tuple(
        percentile_interval(of_class.mean(), resampling.cell_draws(cell, of_class, list(drawn[:, number])))
        for number, of_class in enumerate(values)
    )
