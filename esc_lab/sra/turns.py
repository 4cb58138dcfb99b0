"""Attention on the strategy and adherence to it turn by turn in whole talks: means by turn, and trends within talks.

What is drawn are cards: all talks with the seeker of a card are drawn together, in every run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from esc_lab.data.dialogue import Dialogue
from esc_lab.sra.relations import Summary, summarize_groups
from esc_lab.sra.sample import Measure, MeasuredReply, ReplySample, number_labels
from esc_lab.statistics.correlation import center_within
from esc_lab.statistics.intervals import FloatArray, Interval, percentile_interval


@dataclass(frozen=True)
class TurnSummary(Summary):
    """The replies of a run at its supporter's turn of this number, from 1; the greeting is none."""

    run: str
    turn: int


def place_in_talks(replies: Iterable[MeasuredReply], talks: Iterable[Dialogue]) -> list[MeasuredReply]:
    """Replies of talks that stage `converse` left: `turn` becomes the number of the supporter's turn, from 1,
    `dialogue` the card, and `sample` the number of the talk with it.
    """
    places = {
        (talk.id, index): (str(talk.meta["card"]), int(talk.meta["talk"]), number)
        for talk in talks
        for number, index in enumerate(talk.decisions(), start=1)
    }
    placed = []
    for reply in replies:
        card, talk, number = places[reply.dialogue, reply.turn]
        placed.append(replace(reply, dialogue=card, sample=talk, turn=number))
    return placed


def summarize_turns(sample: ReplySample) -> list[TurnSummary]:
    """Each run and turn of replies from `place_in_talks`, in this order."""
    places = [(int(run), reply.turn) for run, reply in zip(sample.run, sample.replies, strict=True)]
    distinct = sorted(set(places))
    group = np.array([distinct.index(place) for place in places])
    summaries = summarize_groups(sample, group, len(distinct))
    return [
        TurnSummary(run=sample.runs[run], turn=turn, **summary)
        for (run, turn), summary in zip(distinct, summaries, strict=True)
    ]


def fit_trends(sample: ReplySample, measure: Measure | Literal["adherence"]) -> dict[str, Interval]:
    """By run, how much a measure changes from one of the supporter's turns to the next.

    The slope of least squares within talks, sum(x y) / sum(x x) of deviations from the means of a talk: talks that end
    early do not pass for a change. nan where no talk has two turns, without an interval where all are of one card.
    """
    values = sample.values[measure]
    known = ~np.isnan(values)
    _, talk = number_labels([f"{reply.run}\n{reply.dialogue}\n{reply.sample}" for reply in sample.replies])
    turn = np.array([float(reply.turn) for reply in sample.replies])
    x, y = np.zeros_like(turn), np.zeros_like(turn)
    x[known], y[known] = (center_within(each[known], talk[known]) for each in (turn, values))
    across, up = (sample.sums(products, sample.run, len(sample.runs)) for products in (x * x, x * y))
    with np.errstate(invalid="ignore", divide="ignore"):
        slopes = up / across
    return {run: _interval(slopes[:, i], sample, (sample.run == i) & (x != 0)) for i, run in enumerate(sample.runs)}


def _interval(slopes: FloatArray, sample: ReplySample, members: npt.NDArray[np.bool_]) -> Interval:
    draws = slopes[1:] if len(np.unique(sample.cluster[members])) > 1 else np.array([math.nan])
    return percentile_interval(float(slopes[0]), draws)
