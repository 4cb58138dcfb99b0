"""What trainings gained over their base model and over what they went on from: tests of a comparison, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esc_lab.comparison.estimates import SIGNIFICANCE, Difference, compare_cells
from esc_lab.comparison.runs import Cell, shorten_names
from esc_lab.metrics.metric import Metric
from esc_lab.metrics.prediction_table import PredictionTable, TestSet
from esc_lab.metrics.records import METRICS
from esc_lab.runs.layout import find_run, read_config

_TOLD = tuple(metric for metric in METRICS.values() if metric.change)


@dataclass(frozen=True)
class Gain:
    """What a trained cell has more or less than another one.

    Attributes:
        differences: the cell less the other, by metric; their p-values are corrected together (Holm).
    """

    cell: Cell
    other: Cell
    differences: Mapping[Metric, Difference]


def find_gains(cells: Sequence[Cell], predictions: Mapping[Path, PredictionTable]) -> list[Gain]:
    """Of each evaluated cell with a training over the base model, and over the cell that its training went on from."""
    pairs = [(cell, other) for cell in cells if cell.evaluation for other in _find_starts(cell, cells)]
    gains = [Gain(cell, other, compare_cells(cell, other, predictions, _TOLD)) for cell, other in pairs]
    return [gain for gain in gains if gain.differences]


def _find_starts(cell: Cell, cells: Sequence[Cell]) -> Iterator[Cell]:
    """The base model's cell and that of the training before, if they are among the cells."""
    training = cell.runs[0].method.training
    if training is None:
        return
    origin = read_config(training).get("init_from")
    before = find_run(Path(origin), training) if origin else None
    for other in cells:
        if other.evaluation and (other.model, other.template) == (cell.model, cell.template):
            start = other.runs[0].method.training
            if other.method == "base" or (before and start and start.resolve() == before.resolve()):
                yield other


def describe_gains(gains: Sequence[Gain], test: TestSet | None) -> list[str]:
    """A sentence for each gain, behind one that says what counts as a difference; nothing without gains.

    A difference is told where its corrected p is below 0.05. Where it is not, no difference can be told; which is not
    to say that there is none.
    """
    if not gains:
        return []
    cells = list({cell.name: cell for gain in gains for cell in (gain.cell, gain.other)}.values())
    alike = len({(cell.model, cell.template) for cell in cells}) == 1
    names = {cell.name: cell.method for cell in cells} if alike else shorten_names(cells)
    over = f"{len(test.keys):,} {test.kind[0]} of {test.clusters:,} test {test.kind[1]}, " if test else ""
    return [
        f"What was gained ({over}95 % intervals; a difference is told where p < {SIGNIFICANCE[0]:g}, corrected for the "
        "tests of its line):",
        *(_describe(gain, names, test.kind[0] if test else "decisions") for gain in gains),
    ]


def record_gains(gains: Sequence[Gain]) -> list[dict[str, Any]]:
    """In JSON types."""
    return [
        {
            "cell": gain.cell.name,
            "other": gain.other.name,
            "differences": {
                metric.name: {**vars(each.interval), "p": each.p, "corrected": each.corrected}
                for metric, each in gain.differences.items()
            },
        }
        for gain in gains
    ]


def _describe(gain: Gain, names: Mapping[str, str], rows: str) -> str:
    better: list[str] = []
    worse: list[str] = []
    open_: list[str] = []
    untested: list[str] = []
    for metric, difference in gain.differences.items():
        value = f"{metric.heading} {difference.interval.text(metric.decimals, '+')}"
        more = difference.interval.value > 0
        if math.isnan(difference.p):
            untested.append(metric.heading)
        elif difference.corrected >= SIGNIFICANCE[0]:
            open_.append(value)
        else:
            told = better if more == metric.higher_is_better else worse
            told.append(f"{metric.change.format('more' if more else 'less')} ({value})")
    cell = names[gain.cell.name]
    parts = [f"it {_join(better)}" if better else "nothing is better for certain"]
    parts += [f"but it {_join(worse)}"] if worse else []
    parts += [f"no difference can be told in {_join(open_)}"] if open_ else []
    parts += [f"too few {rows} to test {_join(untested)}"] if untested else []
    return f"{cell} against {names[gain.other.name]}: {'; '.join(parts)}."


def _join(texts: Sequence[str]) -> str:
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
