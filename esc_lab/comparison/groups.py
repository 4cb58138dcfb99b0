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

FEWEST = 20  # decisions in a group
FEWEST_CLUSTERS = (
    5  # dialogues in a group with intervals: draws of fewer hardly differ, so that intervals are too short
)
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

    Of a group of few dialogues (`FEWEST_CLUSTERS`) the intervals have no ends.
    """

    group: Group
    cell: str
    metric: str
    interval: Interval
    difference: Interval | None


def groups_of(test: TestSet) -> tuple[list[Group], list[str]]:
    """Groups of a test set by problem, emotion and depth; and the names of those that are left out as too small."""
    found, left_out = [], []
    count = max(1, min(_DEPTHS, len(test.turn) // (2 * FEWEST)))
    bins = np.unique(np.quantile(test.turn, np.linspace(0, 1, count + 1)[:-1], method="nearest"))
    depth = np.searchsorted(bins, test.turn, side="right") - 1
    names = np.array([_span(test.turn[depth == number]) for number in range(len(bins))])
    for kind, labels in (("problem", _named(test.problem)), ("emotion", _named(test.emotion)), ("depth", names[depth])):
        for name in names if kind == "depth" else np.unique(labels):
            keep = labels == name
            if name and keep.sum() >= FEWEST:
                clusters = len(np.unique(test.cluster[keep]))
                found.append(Group(kind, str(name), int(keep.sum()), clusters, float(test.turn[keep].mean()), keep))
            elif name:
                left_out.append(f"{kind} {name} ({keep.sum()})")
    return found, left_out


def group_estimates(
    resampling: Resampling, groups: Sequence[Group], metrics: Sequence[str], baselines: Mapping[str, Cell]
) -> list[GroupEstimate]:
    """The metrics of each cell in each group. Cells without predictions, or without any in a group, have none there."""

    return [
        GroupEstimate(group, name, metric, _interval(group, draws[name]), _difference(group, name, draws, baselines))
        for metric in metrics
        for record in [find_metric(metric)]
        if record.grouped and record.definition
        for group in groups
        for draws in [_group_draws(resampling, record.definition, group)]
        for name in draws
    ]


def _group_draws(resampling: Resampling, measure: Definition, group: Group) -> dict[str, FloatArray]:
    """By cell [1 + draws], the value itself first; without the cells of which a run has nothing in the group."""
    found = {}
    sums = resampling.sums([run for cell in resampling.cells for run in cell.runs], measure, group.keep)
    drawn = resampling.run_draws(sums, measure)
    for cell in resampling.cells:
        if all(run.directory in sums for run in cell.runs):
            totals = np.stack([sums[run.directory].sum(axis=1, dtype=np.float64) for run in cell.runs], axis=1)
            values = measure.value(totals)
            draws = resampling.cell_draws(cell, values, [drawn.get(run.directory) for run in cell.runs])
            found[cell.name] = np.concatenate([[values.mean()], draws])
    return found


def _interval(group: Group, draws: FloatArray) -> Interval:
    return percentile_interval(draws[0], draws[1:] if group.clusters >= FEWEST_CLUSTERS else draws[:0])


def _difference(
    group: Group, name: str, draws: Mapping[str, FloatArray], baselines: Mapping[str, Cell]
) -> Interval | None:
    baseline = baselines.get(name)
    if baseline is None or baseline.name == name or baseline.name not in draws:
        return None
    return _interval(group, draws[name] - draws[baseline.name])


def _named(labels: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
    return np.array([" ".join(label.lower().split()) for label in labels.tolist()], dtype=np.str_)


def _span(turns: FloatArray) -> str:
    low, high = int(turns.min()), int(turns.max())
    return str(low) if low == high else f"{low}-{high}"
