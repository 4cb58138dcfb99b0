"""How much net attention owes to its control: its level over neutral phrases and both orders, and their spread.

A neutral phrase is no zero: sham-net SRA moves by a few tenths with what the phrase says and with whether it stands
before or after the strategy. So prompts take turns with several phrases in both orders, balanced over strategies. The
level is the mean over phrases and orders, each counted once; it is no better known than the phrases agree. Contrasts
between runs are free of that, as both sides have the same phrase in the same place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from esc_lab.sra.sample import ReplySample, number_labels
from esc_lab.statistics.intervals import FloatArray, Interval, percentile_interval


@dataclass(frozen=True)
class ControlSummary:
    """Sham-net SRA of the replies of a run by the control in their prompts.

    Attributes:
        level: mean over phrases of the mean over orders; intervals are over dialogues, for these phrases.
        spread: standard deviation of the phrases' means; nan below two phrases.
        order: mean with the phrase before the strategy minus that with it after; nan where prompts have one order.
        phrases: mean and number of replies of each phrase, in order of first appearance.
    """

    run: str
    level: Interval
    spread: float
    order: Interval
    phrases: dict[str, tuple[Interval, int]]


def summarize_controls(sample: ReplySample) -> list[ControlSummary]:
    """Each run whose replies have a neutral phrase, in order of first appearance."""
    phrases, phrase = number_labels([reply.phrase for reply in sample.replies])
    places, place = number_labels([reply.place for reply in sample.replies])
    net = sample.values["sham_net"]
    summaries = []
    for number, run in enumerate(sample.runs):
        known = np.where(
            (sample.run == number) & np.array([bool(reply.phrase) for reply in sample.replies]), net, np.nan
        )
        if np.isnan(known).all():
            continue
        cells = sample.means(known, phrase * len(places) + place, len(phrases) * len(places))
        cells = cells.reshape(-1, len(phrases), len(places))  # [1 + draws, phrases, places]
        by_phrase, by_place = _mean(cells, 2), dict(zip(places, np.moveaxis(_mean(cells, 1), -1, 0), strict=True))
        order = np.full(len(cells), math.nan)
        if {"before", "after"} <= by_place.keys():
            order = by_place["before"] - by_place["after"]
        met = by_phrase[0][~np.isnan(by_phrase[0])]
        summaries.append(
            ControlSummary(
                run,
                level=_interval(_mean(by_phrase, 1)),
                spread=float(np.std(met, ddof=1)) if len(met) > 1 else math.nan,
                order=_interval(order),
                phrases={
                    name: (_interval(by_phrase[:, i]), int((~np.isnan(known) & (phrase == i)).sum()))
                    for i, name in enumerate(phrases)
                    if not math.isnan(by_phrase[0, i])
                },
            )
        )
    return summaries


def _mean(values: FloatArray, axis: int) -> FloatArray:
    """Mean of the known values along an axis; nan where there is none."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(axis) / known.sum(axis))


def _interval(samples: FloatArray) -> Interval:
    return percentile_interval(float(samples[0]), samples[1:])
