"""Metrics of subgroups of the decisions: by problem, by emotion, by depth of the turn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esc_lab.comparison.estimates import compare_tables, tabulate_metric
from esc_lab.comparison.runs import Cell
from esc_lab.config.evaluate import GenerationConfig
from esc_lab.evaluation.decisions import draw_decisions
from esc_lab.metrics.prediction_table import BoolArray, FloatArray, PredictionTable, TestSet
from esc_lab.metrics.records import find_metric
from esc_lab.statistics.crossed_effects import CrossedMean, SeedTable, estimate_mean
from esc_lab.statistics.intervals import Interval

MIN_DECISIONS = 20  # in a group
MIN_CLUSTERS = 5  # dialogues in a group with intervals: fewer hardly say how much dialogues differ
_DEPTHS = 6


@dataclass(frozen=True)
class Group:
    """Decisions that have something in common.

    Attributes:
        kind: `problem`, `emotion` or `depth`.
        name: e.g. `job crisis` (in lower case: corpora write a name now so, now so), or `5-9` turns before the reply.
        decisions: how many.
        clusters: how many dialogues they are from (see `TestSet.cluster`).
        depth: their mean number of turns before the reply.
        keep: bool [decisions of the test set].
    """

    kind: str
    name: str
    decisions: int
    clusters: int
    depth: float
    keep: BoolArray


@dataclass(frozen=True)
class GroupEstimate:
    """A metric of a cell in a group: its mean over the seeds, and the difference to the baseline if there is one.

    Of a group of few dialogues (`MIN_CLUSTERS`) the intervals have no ends.
    """

    group: Group
    cell: str
    metric: str
    interval: Interval
    difference: Interval | None


def group_decisions(test: TestSet, drawn: GenerationConfig | None = None) -> tuple[list[Group], list[str]]:
    """Groups of a test set by problem, emotion and depth; and the names of those that are left out as too small.

    Args:
        drawn: how the decisions that have replies were drawn. Where that was by strata of depth, these are the groups
            by depth, of the decisions that were drawn, however few.
    """
    depths = _label_strata(test, drawn) if drawn and drawn.depths else _label_depths(test.turn)
    groups, left_out = [], []
    for kind, labels in (
        ("problem", _normalize(test.problem)),
        ("emotion", _normalize(test.emotion)),
        ("depth", depths),
    ):
        names = dict.fromkeys(labels[np.argsort(test.turn, kind="stable")]) if kind == "depth" else np.unique(labels)
        for name in names:
            keep = labels == name
            least = 1 if kind == "depth" and drawn and drawn.depths else MIN_DECISIONS
            if name and keep.sum() >= least:
                clusters = len(np.unique(test.cluster[keep]))
                groups.append(Group(kind, str(name), int(keep.sum()), clusters, float(test.turn[keep].mean()), keep))
            elif name:
                left_out.append(f"{kind} {name} ({keep.sum()})")
    return groups, left_out


def estimate_groups(
    cells: Sequence[Cell],
    predictions: Mapping[Path, PredictionTable],
    groups: Sequence[Group],
    metrics: Sequence[str],
    baselines: Mapping[str, Cell],
) -> list[GroupEstimate]:
    """The metrics of each cell in each group. Cells without predictions, or without any in a group, have none there."""
    estimates = []
    for metric in map(find_metric, metrics):
        if not metric.grouped or metric.definition is None:
            continue
        for group in groups:
            tables: dict[str, tuple[Cell, SeedTable]] = {}
            for cell in cells:
                table = tabulate_metric(cell, metric.definition, predictions, keep=group.keep)
                if not np.isnan(table.values).any():
                    tables[cell.name] = cell, table
            for name, (_, table) in tables.items():
                baseline, difference = baselines.get(name), None
                if baseline and baseline.name != name and baseline.name in tables:
                    change = compare_tables(tables[name], tables[baseline.name])
                    difference = limit_interval(change, group.clusters)
                interval = limit_interval(estimate_mean(table), group.clusters)
                estimates.append(GroupEstimate(group, name, metric.name, interval, difference))
    return estimates


def limit_interval(mean: CrossedMean, clusters: int) -> Interval:
    """A mean with its interval, where it is of clusters enough (`MIN_CLUSTERS`)."""
    return mean.interval() if clusters >= MIN_CLUSTERS else Interval(mean.value, math.nan, math.nan)


def _normalize(labels: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
    return np.array([" ".join(label.lower().split()) for label in labels.tolist()], dtype=np.str_)


def _label_depths(turn: FloatArray) -> npt.NDArray[np.str_]:
    """The name of each decision's bin of turns, bins of about the same size."""
    count = max(1, min(_DEPTHS, len(turn) // (2 * MIN_DECISIONS)))
    starts = np.unique(np.quantile(turn, np.linspace(0, 1, count + 1)[:-1], method="nearest"))
    number = np.searchsorted(starts, turn, side="right") - 1
    return np.array([_span(turn[number == bin_]) for bin_ in range(len(starts))])[number]


def _label_strata(test: TestSet, drawn: GenerationConfig) -> npt.NDArray[np.str_]:
    """The name of the stratum that each decision was drawn in; empty where it was not."""
    replied = draw_decisions(test.keys, drawn) or ()
    strata = [(_span(np.array([low, high - 1])), low, high) for low, high in pairwise(drawn.depths)]
    names = (next((name for name, low, high in strata if low <= turn < high), "") for _, turn in test.keys)
    return np.array([name if key in replied else "" for key, name in zip(test.keys, names, strict=True)])


def _span(turns: FloatArray) -> str:
    low, high = int(turns.min()), int(turns.max())
    return str(low) if low == high else f"{low}-{high}"
