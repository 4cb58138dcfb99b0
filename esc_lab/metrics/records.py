"""All metrics that comparisons, reports and W&B know, by name and in the order of a table's columns."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import numpy as np

from esc_lab.metrics import attention, strategy_choice, text
from esc_lab.metrics.metric import Definition, Metric, Sums, count_metric, mean, mean_of, number_of
from esc_lab.metrics.prediction_table import BoolArray, FloatArray, PredictionTable


def find_metric(name: str) -> Metric:
    """The record of a metric; of one that is not known a record with its name as heading and its group's count."""
    if name in METRICS:
        return METRICS[name]
    group = name.partition("/")[0]
    count = next((metric.count for metric in METRICS.values() if metric.name.startswith(f"{group}/")), "")
    return Metric(name, name, count=count, is_count="classes_" in name)


def _sum_decisions(table: PredictionTable, keep: BoolArray) -> FloatArray:
    cluster = table.test.cluster[np.unique(table.decision[keep])]
    return np.bincount(cluster, minlength=table.test.clusters)[None]


def _sum_pairs(row: int) -> Sums:
    """Preference pairs that are right by a row of `PredictionTable.pairs`, and all that are known by it [2, clusters].

    Pairs belong to dialogues and not to rows of predictions, so it does not matter which of those are kept.
    """

    def sums(table: PredictionTable, keep: BoolArray) -> FloatArray:
        known = table.pairs[row] >= 0
        cluster, right = table.pairs[[0, row]][:, known]
        size = table.test.clusters
        return np.stack([np.bincount(cluster, weight, minlength=size) for weight in (right, np.ones_like(right))])

    return sums


_RECORDS = (
    *strategy_choice.METRICS,
    *text.METRICS,
    *attention.METRICS,
    Metric(
        "adherence/accuracy", "adher.", True, mean_of("adheres"), count="adherence/n", shown=True, grouped=True,
        meaning="Share of the written replies in which a classifier finds the strategy they were to follow.",
    ),
    count_metric("adherence/n", "n adher.", number_of("adheres")),
    Metric(
        "judge/overall", "judge", True, mean_of("judge"), count="judge/n", decimals=2, shown=True,
        meaning="Weighted mean of the scores that a language model gave the written replies by a rubric, from 0 to 4.",
    ),
    count_metric("judge/n", "n judge"),
    count_metric("judge/pairs", "pairs judge"),
    *(Metric(f"judge/{name}", name.replace("_", " "), count="judge/pairs")
      for name in ("win_rate", "length_controlled", "consistency")),
    Metric(
        "preference/accuracy", "pref.", True, Definition(_sum_pairs(1), mean), count="preference/pairs", shown=True,
        meaning="Share of held-out pairs of replies of which the model finds the preferred one more probable than the "
        "rejected one.",
    ),
    Metric(
        "preference/reward_accuracy", "reward", True, Definition(_sum_pairs(2), mean), count="preference/pairs",
        shown=True, meaning="As pref., but by how much training raised the probability of the two replies.",
    ),
    Metric("preference/margin", "margin", count="preference/pairs"),
    count_metric("preference/pairs", "pairs"),
    Metric(
        "val/loss", "val loss", False, decimals=4, shown=True,
        meaning="Loss on validation data at the end of the training; comparable only within one objective.",
    ),
    count_metric("decisions", "decisions", Definition(_sum_decisions, itemgetter(0))),
)  # fmt: skip
METRICS: dict[str, Metric] = {metric.name: metric for metric in _RECORDS}


def metrics_of_replies() -> dict[str, Callable[[str, str], float]]:
    """The functions of metrics that are means over replies, by name."""
    return {name: metric.reply for name, metric in METRICS.items() if metric.reply}
