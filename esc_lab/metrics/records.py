"""All metrics that comparisons, reports and W&B know, by name and in the order of a table's columns."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import numpy as np

from esc_lab.metrics import attention, chance, strategy_choice, talks, text
from esc_lab.metrics.metric import Definition, Metric, count_metric, mean, mean_of, number_of
from esc_lab.metrics.prediction_table import PAIR_MEASURES, BoolArray, FloatArray, PredictionTable

SURVEY = "survey/"  # the names of metrics that are ratings of people begin so; the rest is the question


def find_metric(name: str) -> Metric:
    """The record of a metric; of one that is not known a record with its name as heading and its group's count.

    Questions of surveys and of judges of talks are anybody's own: each is a metric.
    """
    if name in METRICS:
        return METRICS[name]
    if name.startswith(SURVEY):
        return Metric(
            name, f"people: {name.removeprefix(SURVEY)}", True, mean_of(name), count=f"{SURVEY}n", decimals=2,
            shown=True,
            meaning="Mean over decisions of the ratings that people gave the replies on this scale; where replies were "
            "compared in pairs, how much they were preferred to the others, 0 = as much as these to them. Intervals "
            "and tests are for the raters who were asked: how much other raters would differ is not in them.",
        )  # fmt: skip
    if name.startswith(talks.JUDGED):
        return talks.find_judged_metric(name)
    group = name.partition("/")[0]
    count = next((metric.count for metric in METRICS.values() if metric.name.startswith(f"{group}/")), "")
    return Metric(name, name, count=count, is_count="classes_" in name)


def _sum_decisions(table: PredictionTable, keep: BoolArray) -> FloatArray:
    cluster = table.test.cluster[np.unique(table.decision[keep])]
    return np.bincount(cluster, minlength=table.test.clusters)[None]


def _share_of_pairs(measure: str) -> Definition:
    """Mean of one of `PAIR_MEASURES` over the preference pairs where it is known.

    Pairs belong to dialogues and not to rows of predictions, so it does not matter which of those are kept.
    """

    def sums(table: PredictionTable, keep: BoolArray) -> FloatArray:
        known = table.pairs[:, ~np.isnan(table.pairs[1 + PAIR_MEASURES.index(measure)])]
        cluster, right = known[0].astype(np.intp), known[1 + PAIR_MEASURES.index(measure)]
        size = table.test.clusters
        return np.stack([np.bincount(cluster, weight, minlength=size) for weight in (right, np.ones_like(right))])

    return Definition(sums, mean)


def _pair_metric(measure: str, heading: str, meaning: str, *, better: bool | None = True, change: str = "") -> Metric:
    return Metric(
        f"preference/{measure}", heading, better, _share_of_pairs(measure), count="preference/pairs", shown=True,
        meaning=meaning, change=change,
    )  # fmt: skip


_PAIR_MEANINGS = {
    "win_rate": "Share of pairs in which a judge prefers the reply to that of the baseline, a tie as half.",
    "length_controlled": "Win rate that is to be expected between replies of equal length (Dubois et al. 2024).",
    "consistency": "Share of pairs on which the judge says the same whichever reply comes first.",
}
_RECORDS = (
    *strategy_choice.METRICS,
    *chance.METRICS,
    *text.METRICS,
    *attention.METRICS,
    Metric(
        "adherence/accuracy", "adher.", True, mean_of("adheres"), count="adherence/n", shown=True, grouped=True,
        meaning="Share of the written replies in which a classifier finds the strategy they were to follow.",
    ),
    Metric(
        "adherence/own_words", "adher. own", True, mean_of("own_words"), count="adherence/n", grouped=True,
        meaning="Adherence without echoes: as adher., but a reply that copies its instruction (more than a fifth of "
        "its runs of four words) does not count as one that follows it.",
    ),
    count_metric("adherence/n", "n adher.", number_of("adheres")),
    Metric(
        "judge/overall", "judge", True, mean_of("judge"), count="judge/n", decimals=2, shown=True,
        meaning="Weighted mean of the scores that a language model gave the written replies by a rubric, from 0 to 4.",
    ),
    count_metric("judge/n", "n judge"),
    count_metric(f"{SURVEY}n", "n rated"),
    count_metric("judge/pairs", "pairs judge"),
    *(Metric(f"judge/{name}", name.replace("_", " "), count="judge/pairs", meaning=meaning)
      for name, meaning in _PAIR_MEANINGS.items()),
    _pair_metric(
        "accuracy", "pref.",
        "Share of held-out pairs of replies of which the model finds the preferred one more probable than the rejected "
        "one. A short reply is more probable as it has fewer tokens: read it beside 'shorter'.",
    ),
    _pair_metric(
        "accuracy_per_token", "pref./token", "As pref., by the mean log-probability of a token.",
        change="finds the preferred reply of a held-out pair the more probable one, token by token, {} often",
    ),
    _pair_metric(
        "shorter", "shorter",
        "Share of held-out pairs whose preferred reply has fewer tokens than the rejected one (as many: half): what "
        "pref. and reward would be of a model that judges by length alone.",
        better=None,
    ),
    _pair_metric(
        "reward_accuracy", "reward", "As pref., but by how much training raised the probability of the two replies."
    ),
    _pair_metric("reward_accuracy_per_token", "reward/token", "As reward, by how much it raised that of a token."),
    Metric(
        "preference/margin", "margin", count="preference/pairs",
        meaning="By how much more training raised the log-probability of the preferred reply of a pair, in the rewards "
        "of its objective, on average.",
    ),
    count_metric("preference/pairs", "pairs"),
    Metric(
        "val/loss", "val loss", False, decimals=4, shown=True,
        meaning="Loss on validation data at the end of the training; comparable only within one objective.",
    ),
    count_metric("decisions", "decisions", Definition(_sum_decisions, itemgetter(0))),
    *talks.METRICS,
)  # fmt: skip
METRICS: dict[str, Metric] = {metric.name: metric for metric in _RECORDS}


def metrics_of_replies() -> dict[str, Callable[[str, str], float]]:
    """The functions of metrics that are means over replies, by name."""
    return {name: metric.reply for name, metric in METRICS.items() if metric.reply}
