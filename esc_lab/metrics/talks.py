"""Metrics of whole talks with simulated seekers: a talk is a row, named by card and number, and a card is a cluster.

Talks with one card share their seeker, so that cards and not talks are the observations of intervals and tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from esc_lab.metrics.metric import Definition, Metric, count_metric, mean_of, number_of
from esc_lab.metrics.prediction_table import BoolArray, FloatArray, PredictionTable

TALKS = "converse/"  # the names of metrics of talks begin so
JUDGED = f"{TALKS}judge/"  # and those of what a judge says of each talk; the rest is its question
USES = "uses/"  # columns of a table of talks: how many replies of a talk use the strategy of this number
TALKS_OF_CARDS = ("talks", "cards")  # `TestSet.kind` of a table of talks
PRIMARY = f"{TALKS}relief"  # of comparisons of talks, where none is asked for


def find_judged_metric(name: str) -> Metric:
    """The record of what a judge says of talks to one of its questions, which are anybody's own."""
    return Metric(
        name, f"judge: {name.removeprefix(JUDGED)}", True, mean_of(name), count=f"{JUDGED}n", decimals=2, shown=True,
        meaning="What a judge says of the talks, a mean: their score, the share that passes its question, or the share "
        "that it prefers to the talks of its baseline.",
    )  # fmt: skip


def _sum_uses(table: PredictionTable, keep: BoolArray) -> FloatArray:
    """How often each strategy is used [strategies, cards]."""
    uses = (table.column(f"{USES}{number}") for number in range(len(table.test.strategies)))
    return table.sum_by_cluster(keep, *(values[keep] for values in uses))


def _entropy(totals: FloatArray) -> FloatArray:
    """Counts [strategies, ...] -> Shannon entropy [...] in bits."""
    with np.errstate(invalid="ignore"):
        shares = totals / totals.sum(axis=0)
    return np.asarray(-(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=0))


def _metric(name: str, heading: str, better: bool | None = None, **settings: Any) -> Metric:
    return Metric(
        f"{TALKS}{name}", heading, better,
        **{"definition": mean_of(f"{TALKS}{name}"), "count": f"{TALKS}talks", "decimals": 2, **settings},
    )  # fmt: skip


METRICS = (
    count_metric(f"{TALKS}talks", "talks", number_of(f"{TALKS}turns"), meaning="Talks."),
    count_metric(f"{JUDGED}n", "n judge"),
    _metric("turns", "turns", decimals=1, shown=True, meaning="Supporter turns of a talk."),
    _metric(
        "success", "success", True, shown=True, change="comes to success {} often",
        meaning="Talks that come to success, an intensity of at most converse.success, as a share.",
    ),
    _metric(
        "turns_to_success", "to success", False, decimals=1, shown=True,
        meaning="Turns to success. A talk without success counts the most turns that a talk may have.",
    ),
    _metric("intensity_start", "at first", meaning="Intensity of the emotion, from 1 to 5, before the first reply."),
    _metric(
        "intensity_end", "at last", False,
        meaning="Intensity of the emotion, from 1 to 5, at the end of the talk.",
    ),
    _metric(
        "relief", "relief", True, shown=True, change="has {} relief",
        meaning="By how much the intensity fell from the seeker's first message to the end of the talk; below 0, it "
        "rose. It is what a model says of a text, and models are easily comforted.",
    ),
    _metric("supporter_words", "words", decimals=1, shown=True, meaning="Words of a reply."),
    _metric("seeker_words", "seeker's words", decimals=1, meaning="Words of a seeker's message."),
    _metric(
        "repeated", "repeated", False, decimals=3, shown=True, change="repeats itself {}",
        meaning="4-grams of the supporter that it has said before in the talk, as a share.",
    ),
    _metric(
        "echoed", "echoed", False, decimals=3, shown=True, change="echoes the seeker {}",
        meaning="4-grams of the supporter that the seeker has said before in the talk, as a share.",
    ),
    _metric("asks", "asks", shown=True, meaning="Replies with a question, as a share."),
    _metric("labelled", "labelled", meaning="Replies with a strategy, as a share."),
    _metric("strategies", "strategies", decimals=1, meaning="Different strategies in a talk."),
    _metric(
        "strategy_entropy", "entropy", definition=Definition(_sum_uses, _entropy), shown=True,
        meaning="Entropy of the strategies in bits: how evenly they are used, over all talks.",
    ),
    _metric(
        "transition_entropy", "of the next", definition=None,
        meaning="Entropy of a strategy after the one before in bits: how little a turn's strategy tells of the next.",
    ),
    _metric(
        "strategy_repeats", "same again", shown=True,
        meaning="Strategies that the turn before had too, as a share.",
    ),
    _metric("ended_by_seeker", "seeker ends", shown=True, meaning="Talks that the seeker ends, as a share."),
    _metric("ends/max_turns", "most turns", definition=None, meaning="Talks that have the most turns, as a share."),
)  # fmt: skip
