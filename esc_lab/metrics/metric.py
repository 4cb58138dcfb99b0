"""What a metric is: its definition from sums over dialogues, and how tables and pages show it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from esc_lab.metrics.prediction_table import BoolArray, FloatArray, PredictionTable

Sums: TypeAlias = Callable[[PredictionTable, BoolArray], FloatArray]
Value: TypeAlias = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True)
class Definition:
    """A metric as a function of sums over clusters of dialogues (see `TestSet.cluster`).

    So what it would be without a dialogue is known for all of them at once.

    Attributes:
        sums: the sums [k, clusters] of predictions whose rows [rows] are kept; counts as float32, where they are exact.
        value: the metric [...] from totals [k, ...]; nan where there is nothing to compute it from.
    """

    sums: Sums
    value: Value

    def compute(self, table: PredictionTable) -> float:
        """The metric of all rows."""
        keep = np.ones(len(table.decision), dtype=bool)
        return float(self.value(self.sums(table, keep).sum(axis=1, keepdims=True, dtype=np.float64))[0])


@dataclass(frozen=True)
class Metric:
    """A metric of evaluations or trainings: what it is, and how tables and pages show it.

    Attributes:
        name: as in metrics.json.
        heading: of its column.
        higher_is_better: None where neither way is better.
        definition: None where it is taken from metrics.json as it is.
        count: name of the metric that says how many observations it is computed from; empty if there is none. Where
            that is 0, an evaluation does not have the metric.
        is_count: whether it counts observations or classes itself: such metrics are not compared.
        decimals: as many are shown.
        shown: whether comparisons have a column for it unless they are asked for others.
        grouped: whether it is given for groups of decisions too. B is not: it grows as n shrinks.
        by_tokens: whether it depends on how a model splits text into tokens, so that models cannot be compared.
        texts: whether it needs the words of the replies.
        biased: whether it grows as observations get fewer, so that its interval is about the value less the bias.
        min_count: fewer observations give it no interval and no test, since those would not hold; twice as many are
            needed where its guard acted.
        guard: name of the metric that is above 0 where a guard gave it a value that it would not have otherwise.
        reply: value of one generated reply and its gold reply, of a metric that is a mean over replies.
        meaning: for readers who know neither the code nor the papers.
        change: what a model does whose value is higher (`{}` = more) or lower (less) than another's, for a sentence on
            what was gained; empty: the metric is not told of there.
    """

    name: str
    heading: str
    higher_is_better: bool | None = None
    definition: Definition | None = None
    count: str = ""
    is_count: bool = False
    decimals: int = 3
    shown: bool = False
    grouped: bool = False
    by_tokens: bool = False
    texts: bool = False
    biased: bool = False
    min_count: int = 0
    guard: str = ""
    reply: Callable[[str, str], float] | None = None
    meaning: str = ""
    change: str = ""

    @property
    def arrow(self) -> str:
        """Which way is better, as a sign."""
        return {True: "\u2191", False: "\u2193", None: ""}[self.higher_is_better]

    @property
    def gist(self) -> str:
        """The first sentence of what it means."""
        counted = "Number of observations." if self.is_count else f"{self.name} in the runs' metrics.json."
        return re.split(r"(?<=\.) (?=[A-Z])", self.meaning or counted)[0]

    @property
    def explanation(self) -> str:
        """What it is and which way is better, in a sentence or two."""
        direction = {True: " More is better.", False: " Less is better.", None: ""}[self.higher_is_better]
        meaning = self.meaning or f"{self.name} in the runs' metrics.json."
        return meaning + direction


def count_metric(name: str, heading: str, definition: Definition | None = None, **settings: Any) -> Metric:
    """A number of observations; `settings` are more attributes of `Metric`."""
    return Metric(name, heading, definition=definition, count=name, is_count=True, decimals=0, **settings)


def reply_metric(name: str, heading: str, reply: Callable[[str, str], float], **settings: Any) -> Metric:
    """A mean over the generated replies to the gold strategy of a function of a reply and its gold reply.

    Evaluations leave the value of each reply in predictions.jsonl; of older files it is worked out anew.

    Args:
        settings: more attributes of `Metric`.
    """
    return Metric(
        name, heading, definition=mean_of(name), count="text/replies", texts=True, reply=reply, **settings
    )  # fmt: skip


def mean(totals: FloatArray) -> FloatArray:
    """Totals of a value and its count [2, ...] -> mean [...]."""
    with np.errstate(invalid="ignore"):
        return np.asarray(totals[0] / totals[1])


def mean_of(name: str) -> Definition:
    """The mean of a value over the rows where it is known."""
    return Definition(sum_values(name), mean)


def number_of(name: str) -> Definition:
    """The number of rows where a value is known."""
    return Definition(sum_values(name), lambda totals: totals[1])


def sum_values(name: str, count: str | None = None) -> Sums:
    """Sums of a value over the rows where it is known, and of another (None: how many rows these are)."""

    def sums(table: PredictionTable, keep: BoolArray) -> FloatArray:
        keep = keep & ~np.isnan(table.column(name))
        values = table.column(name)[keep]
        return table.sum_by_cluster(keep, values, np.ones_like(values) if count is None else table.column(count)[keep])

    return sums
