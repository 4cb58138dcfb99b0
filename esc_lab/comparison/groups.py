"""Metrics of subgroups of the decisions: by problem, by emotion, by depth of the turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from esc_lab.comparison.estimates import Resampling
from esc_lab.comparison.runs import Cell
from esc_lab.metrics.metric import Definition
from esc_lab.metrics.prediction_table import BoolArray, FloatArray, TestSet
from esc_lab.metrics.records import find_metric
from esc_lab.statistics.intervals import Interval, percentile_interval

MIN_DECISIONS = 20  # in a group
MIN_CLUSTERS = 5  # dialogues in a group with intervals: draws of fewer hardly differ, so that intervals are too short
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


def group_decisions(test: TestSet) -> tuple[list[Group], list[str]]:
    """Groups of a test set by problem, emotion and depth; and the names of those that are left out as too small."""
    groups, left_out = [], []
    for kind, labels in (
        ("problem", _normalize(test.problem)),
        ("emotion", _normalize(test.emotion)),
        ("depth", _label_depths(test.turn)),
    ):
        names = dict.fromkeys(labels[np.argsort(test.turn, kind="stable")]) if kind == "depth" else np.unique(labels)
        for name in names:
            keep = labels == name
            if name and keep.sum() >= MIN_DECISIONS:
                clusters = len(np.unique(test.cluster[keep]))
                groups.append(Group(kind, str(name), int(keep.sum()), clusters, float(test.turn[keep].mean()), keep))
            elif name:
                left_out.append(f"{kind} {name} ({keep.sum()})")
    return groups, left_out


def estimate_groups(
    resampling: Resampling, groups: Sequence[Group], metrics: Sequence[str], baselines: Mapping[str, Cell]
) -> list[GroupEstimate]:
    """The metrics of each cell in each group. Cells without predictions, or without any in a group, have none there."""
    estimates = []
    for metric in map(find_metric, metrics):
        if not metric.grouped or metric.definition is None:
            continue
        for group in groups:
            draws = _draw_group(resampling, metric.definition, group)
            for name in draws:
                difference = _difference(group, name, draws, baselines)
                estimates.append(GroupEstimate(group, name, metric.name, _interval(group, draws[name]), difference))
    return estimates


def _draw_group(resampling: Resampling, definition: Definition, group: Group) -> dict[str, FloatArray]:
    """By cell [1 + draws], the value itself first; without the cells of which a run has nothing in the group."""
    sums, run_draws = resampling.draw_runs(resampling.cells, definition, group.keep)
    by_cell = {}
    for cell in resampling.cells:
        if all(run.directory in sums for run in cell.runs):
            totals = np.stack([sums[run.directory].sum(axis=1, dtype=np.float64) for run in cell.runs], axis=1)
            values = definition.value(totals)
            by_cell[cell.name] = np.concatenate([[values.mean()], resampling.draw_cell(cell, values, run_draws)])
    return by_cell


def _interval(group: Group, draws: FloatArray) -> Interval:
    return percentile_interval(draws[0], draws[1:] if group.clusters >= MIN_CLUSTERS else draws[:0])


def _difference(
    group: Group, name: str, draws: Mapping[str, FloatArray], baselines: Mapping[str, Cell]
) -> Interval | None:
    baseline = baselines.get(name)
    if baseline is None or baseline.name == name or baseline.name not in draws:
        return None
    return _interval(group, draws[name] - draws[baseline.name])


def _normalize(labels: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
    return np.array([" ".join(label.lower().split()) for label in labels.tolist()], dtype=np.str_)


def _label_depths(turn: FloatArray) -> npt.NDArray[np.str_]:
    """The name of each decision's bin of turns, bins of about the same size."""
    count = max(1, min(_DEPTHS, len(turn) // (2 * MIN_DECISIONS)))
    starts = np.unique(np.quantile(turn, np.linspace(0, 1, count + 1)[:-1], method="nearest"))
    number = np.searchsorted(starts, turn, side="right") - 1
    return np.array([_span(turn[number == bin_]) for bin_ in range(len(starts))])[number]


def _span(turns: FloatArray) -> str:
    low, high = int(turns.min()), int(turns.max())
    return str(low) if low == high else f"{low}-{high}"
