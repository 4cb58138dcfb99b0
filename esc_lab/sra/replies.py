"""Replies with measured attention, as columns, and the bootstrap over their dialogues.

A draw of the bootstrap is a weight for each dialogue: how often it was drawn. All replies of a dialogue have its
weight, in every run, so a statistic of a draw is a function of sums by dialogue, and all draws are one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from esc_lab.seeds import derive_seed

Measure = Literal["sra", "log_sra", "net", "log_relative"]
MEASURES: tuple[Measure, ...] = ("sra", "log_sra", "net", "log_relative")

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]


@dataclass(frozen=True)
class MeasuredReply:
    """A reply with the attention that it paid to its strategy.

    Attributes:
        run: what it is compared by: a template, a checkpoint, a length of history.
        turn: number of turns before the reply.
        strategy: the one that it was to follow.
        sra: attention per token of the strategy span, above 0.
        control: the same of a neutral span, above 0; nan if there is none.
        relative: sra times the number of visible keys, above 0; 1 is uniform attention.
        adheres: whether it follows the strategy; None if nobody judged it.
        sample: its number among several replies to one prompt.

    Raises:
        ValueError: an attention is zero or negative, or sra or relative is nan: they have no logarithm.
    """

    run: str
    dialogue: str
    turn: int
    strategy: str
    sra: float
    control: float
    relative: float
    adheres: bool | None
    sample: int = 0

    def __post_init__(self) -> None:
        if not (self.sra > 0 and self.relative > 0) or self.control <= 0:
            raise ValueError(
                f"attention of dialogue {self.dialogue}, turn {self.turn} in {self.run} must be above 0: "
                f"sra {self.sra}, control {self.control}, relative {self.relative}"
            )


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % interval; nan where unknown."""

    value: float
    low: float
    high: float


def measures(replies: Sequence[MeasuredReply]) -> dict[str, FloatArray]:
    """Each measure, and `adherence` (0 or 1), as [n]; nan where there is no control or no judgement."""
    sra, control, relative = np.array([(reply.sra, reply.control, reply.relative) for reply in replies]).T
    return {
        "sra": sra,
        "log_sra": np.log(sra),
        "net": np.log(sra) - np.log(control),
        "log_relative": np.log(relative),
        "adherence": np.array([math.nan if r.adheres is None else float(r.adheres) for r in replies]),
    }


class Table:
    """Replies as columns [n], with the dialogues' weights in each draw.

    Attributes:
        runs: labels of the runs, in order of first appearance.
        run, dialogue: [n], index into `runs` and into the sorted dialogues.
        values: see `measures`.
        weights: [1 + draws, dialogues]. Row 0 is all ones: row 0 of whatever is computed from them is the value itself.

    Raises:
        ValueError: there are no replies.
    """

    def __init__(self, replies: Sequence[MeasuredReply], draws: int, seed: int) -> None:
        if not replies:
            raise ValueError("there are no replies to analyse")
        self.runs, self.run = codes([reply.run for reply in replies])
        # Sorted, so that the order of the replies has no say in what is drawn.
        dialogues, self.dialogue = np.unique([reply.dialogue for reply in replies], return_inverse=True)
        self.values = measures(replies)
        draw = np.random.default_rng(derive_seed(seed, "bootstrap over dialogues"))
        count = len(dialogues)
        drawn = draw.multinomial(count, np.full(count, 1 / count), size=draws)
        self.weights: FloatArray = np.vstack([np.ones(count), drawn])

    def sums(self, cell: IntArray, cells: int, values: FloatArray) -> FloatArray:
        """Sums [1 + draws, cells] of values [n] over the replies of each cell; `cell` [n] in 0..cells-1."""
        return self.weights @ self._by_dialogue(cell, cells, values)

    def means(self, cell: IntArray, cells: int, values: FloatArray) -> FloatArray:
        """Means [1 + draws, cells] of the known ones among values [n]; nan where a draw has none.

        One dialogue does not say how dialogues differ: a cell with known values from it alone is nan in every draw.
        """
        known = ~np.isnan(values)
        count = self._by_dialogue(cell, cells, known.astype(float))
        total = self.sums(cell, cells, np.where(known, values, 0))
        with np.errstate(invalid="ignore"):
            means = total / (self.weights @ count)
        means[1:, (count > 0).sum(axis=0) < 2] = math.nan
        return means

    def correlations_within_runs(self, x: FloatArray, y: FloatArray, group: IntArray, groups: int) -> FloatArray:
        """Pearson [1 + draws, groups] of x and y [n] about the means of each run, anew in every draw.

        Replies where one side is nan are left out. A correlation is nan where a side does not vary within runs, and, in
        the draws, for a group whose replies are all of one dialogue.
        """
        known, runs = ~np.isnan(x + y), len(self.runs)
        cell = group * runs + self.run
        # About the means of the whole data the sums are small, so that their differences below keep their digits.
        x, y = (deviations_within(np.where(known, v, 0), np.where(known, cell, -1)) * known for v in (x, y))
        n, sx, sy, sxx, syy, sxy = (
            self.sums(cell, groups * runs, values).reshape(-1, groups, runs)
            for values in (known.astype(float), x, y, x * x, y * y, x * y)
        )
        n = np.maximum(n, 1)  # a run without replies in a draw adds nothing
        cxx, cyy, cxy = ((s - a * b / n).sum(axis=-1) for s, a, b in ((sxx, sx, sx), (syy, sy, sy), (sxy, sx, sy)))
        varies = (cxx > 1e-12 * sxx.sum(axis=-1)) & (cyy > 1e-12 * syy.sum(axis=-1))
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.where(varies, np.clip(cxy / np.sqrt(cxx * cyy), -1, 1), math.nan)
        for g in range(groups):
            if len(np.unique(self.dialogue[known & (group == g)])) < 2:
                found[1:, g] = math.nan
        return found

    def _by_dialogue(self, cell: IntArray, cells: int, values: FloatArray) -> FloatArray:
        dialogues = self.weights.shape[1]
        held = np.bincount(self.dialogue * cells + cell, values, minlength=dialogues * cells)
        return np.asarray(held, dtype=np.float64).reshape(dialogues, cells)


def codes(labels: Sequence[str]) -> tuple[list[str], IntArray]:
    """The distinct labels, in order of first appearance, and the index [n] of each label among them."""
    place = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return list(place), np.array([place[label] for label in labels], dtype=np.intp)


def interval(samples: FloatArray) -> Interval:
    """Value and 95 % percentile interval of samples [1 + draws], the value first; draws that are nan are left out."""
    draws = samples[1:][~np.isnan(samples[1:])]
    if math.isnan(samples[0]) or not len(draws):
        return Interval(float(samples[0]), math.nan, math.nan)
    low, high = np.percentile(draws, (2.5, 97.5))
    return Interval(float(samples[0]), float(low), float(high))


def deviations(values: FloatArray) -> FloatArray:
    """Deviations from the mean of the last axis, with rounding errors set to 0: what is constant does not vary."""
    found = values - values.mean(axis=-1, keepdims=True)
    return np.where(np.abs(found) <= 1e-12 * np.abs(values), 0, found)


def deviations_within(values: FloatArray, group: IntArray) -> FloatArray:
    """Deviations of values [..., n] from the mean of their group [n]."""
    found = np.empty_like(values)
    for number in np.unique(group):
        members = group == number
        found[..., members] = deviations(values[..., members])
    return found


def cosine(x: FloatArray, y: FloatArray) -> FloatArray:
    """Correlation along the last axis of deviations from means; nan where one side is all zero."""
    products = np.einsum("...i,...i->...", x, y)
    lengths = np.sqrt(np.einsum("...i,...i->...", x, x)) * np.sqrt(np.einsum("...i,...i->...", y, y))
    with np.errstate(invalid="ignore"):
        found: FloatArray = np.clip(products / lengths, -1, 1)
    return found


def pearson(x: FloatArray, y: FloatArray) -> FloatArray:
    """Pearson's correlation along the last axis; nan where one side does not vary or has a nan."""
    return cosine(deviations(x), deviations(y))


def ranks(values: FloatArray) -> FloatArray:
    """Ranks along the last axis, ties by their mean. Compares all pairs, so it is meant for few values."""
    below = values[..., None] > values[..., None, :]
    level = values[..., None] == values[..., None, :]
    found: FloatArray = below.sum(axis=-1) + (level.sum(axis=-1) + 1) / 2
    return found
