"""Strategy choice of a cell, strategy by strategy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from esc_lab.comparison.estimates import Resampling
from esc_lab.comparison.measures import confusion, f1, preference
from esc_lab.comparison.runs import Cell
from esc_lab.evaluation.decisions import NOT_ASKED, FloatArray
from esc_lab.statistics.intervals import Interval, percentile_interval

_CHOICES = {"strategy": "chosen", "generated": "written"}


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
    asked = (of for of, choice in _CHOICES.items() if all((getattr(p, choice) != NOT_ASKED).any() for p in predictions))
    of = next(asked, None)
    if of is None:
        return None
    counts = [confusion(one, np.ones(len(one.decision), bool), _CHOICES[of]) for one in predictions]
    classes = len(predictions[0].test.strategies)
    errors = [one[:-1].reshape(classes**2, -1) for one in counts]
    tables = np.stack([one.sum(axis=2, dtype=np.float64) for one in counts])  # [runs, classes + 1, classes]
    hits = np.einsum("rii->ir", tables[:, :-1])
    predicted, gold = tables[:, :-1].sum(axis=2).T, tables.sum(axis=1).T
    values = preference(np.stack([table[:-1].ravel() for table in tables], axis=1))  # [classes, runs]
    return StrategyTable(
        of,
        predictions[0].test.strategies,
        precision=(hits / np.maximum(predicted, 1)).mean(axis=1),
        recall=(hits / np.maximum(gold, 1)).mean(axis=1),
        f1=f1(np.concatenate([hits, predicted, gold]))[0].mean(axis=1),
        gold=gold.mean(axis=1),
        predicted=predicted.mean(axis=1),
        preference=_preferences(resampling, cell, values, errors),
        confusion=tables.mean(axis=0),
    )


def _preferences(
    resampling: Resampling, cell: Cell, values: FloatArray, errors: Sequence[FloatArray]
) -> tuple[Interval, ...]:
    """Intervals of the preferences [classes, runs], from the sums of errors [classes ** 2, clusters] of each run."""
    assert resampling.dialogues is not None
    weights = resampling.dialogues.weights[errors[0].dtype]
    drawn = np.stack([preference(one @ weights) for one in errors])  # [runs, classes, draws]
    if errors[0].shape[1] < 2:
        drawn = np.full_like(drawn, math.nan)
    return tuple(
        percentile_interval(of_class.mean(), resampling.cell_draws(cell, of_class, list(drawn[:, number])))
        for number, of_class in enumerate(values)
    )
