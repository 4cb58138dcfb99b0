"""How much net attention owes to its control: its level over neutral phrases and both orders, and their spread.

A neutral phrase is no zero: sham-net SRA moves by a few tenths with what the phrase says and with whether it stands
before or after the strategy. So prompts take turns with several phrases in both orders, balanced over strategies. Least
squares tell the effects of phrases and of the order apart where replies have not met all of them evenly; the level is
the mean over phrases midway between the orders. It is no better known than the phrases agree. Contrasts between runs
are free of that, as both sides have the same phrase in the same place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from esc_lab.sra.sample import ReplySample, number_labels
from esc_lab.statistics.intervals import FloatArray, IntArray, Interval, percentile_interval

MAX_POOR = 0.2  # share of draws without some phrase or order; the others say little of how dialogues differ
_SIDE = {"before": 0.5, "after": -0.5}


@dataclass(frozen=True)
class ControlSummary:
    """Sham-net SRA of the replies of a run by the control in their prompts.

    Intervals are over dialogues, without ends where these are too few for the phrases.

    Attributes:
        level: mean over phrases.
        spread: standard deviation over phrases; nan below two.
        order: with the phrase before the strategy minus with it after; nan where it cannot be told from the phrases.
        phrases: level and number of replies of each phrase, in order of first appearance.
    """

    run: str
    level: Interval
    spread: float
    order: Interval
    phrases: dict[str, tuple[Interval, int]]


def summarize_controls(sample: ReplySample) -> list[ControlSummary]:
    """Each run whose replies have a neutral phrase, in order of first appearance."""
    has_phrase = np.array([bool(reply.phrase) for reply in sample.replies])
    known = has_phrase & ~np.isnan(sample.values["sham_net"])
    runs = [(run, known & (sample.run == number)) for number, run in enumerate(sample.runs)]
    return [_summarize_run(sample, run, members) for run, members in runs if members.any()]


def _summarize_run(sample: ReplySample, run: str, members: IntArray) -> ControlSummary:
    replies = [reply for reply, own in zip(sample.replies, members, strict=True) if own]
    phrases, phrase = number_labels([reply.phrase for reply in replies])
    side = np.array([_SIDE[reply.place] for reply in replies])
    effects = _fit(sample, members, np.column_stack([np.eye(len(phrases))[phrase], side]))
    if np.isnan(effects[0]).any():  # the order is one with the phrases
        effects = _fit(sample, members, np.eye(len(phrases))[phrase])
    levels, order = effects[:, : len(phrases)], effects[:, len(phrases) :]
    return ControlSummary(
        run,
        level=_interval(levels.mean(axis=1)),
        spread=float(np.std(levels[0], ddof=1)) if len(phrases) > 1 else math.nan,
        order=_interval(order[:, 0]) if order.size else Interval(math.nan, math.nan, math.nan),
        phrases={name: (_interval(levels[:, i]), int((phrase == i).sum())) for i, name in enumerate(phrases)},
    )


def _fit(sample: ReplySample, members: IntArray, design: FloatArray) -> FloatArray:
    """Least squares [1 + draws, effects] of sham-net SRA on a design [members, effects].

    nan in draws that cannot tell the effects apart, and in all of them where the members are of one dialogue.
    """
    net, effects = sample.values["sham_net"][members], design.shape[1]
    moments = np.einsum("ni,nj->nij", design, np.column_stack([design, net])).reshape(len(net), -1)
    rows = np.zeros((len(members), moments.shape[1]))
    rows[members] = moments
    everyone = np.zeros_like(sample.run)
    sums = np.stack([sample.sums(column, everyone, 1)[:, 0] for column in rows.T], axis=1)
    sums = sums.reshape(-1, effects, effects + 1)
    matrix, right = sums[..., :effects], sums[..., effects:]
    poor = np.linalg.matrix_rank(matrix, hermitian=True) < effects
    matrix[poor] = np.eye(effects)
    found = np.linalg.solve(matrix, right)[..., 0]
    found[poor] = math.nan
    if len(np.unique(sample.cluster[members])) < 2:
        found[1:] = math.nan
    return found


def _interval(samples: FloatArray) -> Interval:
    """Of samples [1 + draws], the value itself first; without ends where many draws are nan."""
    if np.isnan(samples[1:]).mean() > MAX_POOR:
        return Interval(float(samples[0]), math.nan, math.nan)
    return percentile_interval(float(samples[0]), samples[1:])
