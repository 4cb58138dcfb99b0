"""What judgements of whole talks say of a run: pairs in each aspect, and the intensity of the seeker's emotion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from esc_lab.evaluation.arena.measures import average_intensities, measure_emotion
from esc_lab.judging.results import OVERALL, Pair, PairwiseResult, summarize_pairs
from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.intervals import FloatArray, Interval
from esc_lab.statistics.partial_correlation import partial_correlation

MEASURES = ("intensity_start", "intensity_end", "relief", "success", "turns_to_success")
Intensities = Sequence[Sequence[float | None]]  # of talks, in order; see `measure_emotion`


def summarize_aspects(
    pairs: Mapping[str, Sequence[Pair]], cards: Sequence[str], draws: int, seed: int
) -> dict[str, PairwiseResult]:
    """The result in each aspect, and `overall`, of all their pairs together; intervals over cards.

    Args:
        pairs: [talks] of each aspect.
        cards: [talks].
    """
    sample = ClusterSample(cards, draws, seed)
    found = {aspect: summarize_pairs(of_talks, sample) for aspect, of_talks in pairs.items()}
    everything = [pair for of_talks in pairs.values() for pair in of_talks]
    return {**found, OVERALL: summarize_pairs(everything, ClusterSample([*cards] * len(pairs), draws, seed))}


@dataclass(frozen=True)
class IntensityResult:
    """The intensity of the seekers' emotion as the seeker's model and the judge say, in the same talks.

    Attributes:
        seeker, judge: means over the talks that have them, by the names of `MEASURES`; nan where none has.
        seeker_curve, judge_curve: see `average_intensities`.
        turns: correlation (Pearson) of what both say after the same turns; `turns_n` of how many.
        relief: that of the relief of a talk; `relief_n` of how many talks.
        missing: turns of which the judge does not say.
    """

    seeker: Mapping[str, Interval]
    judge: Mapping[str, Interval]
    seeker_curve: Sequence[Sequence[float]]
    judge_curve: Sequence[Sequence[float]]
    turns: Interval
    turns_n: int
    relief: Interval
    relief_n: int
    missing: int


def summarize_intensity(
    seeker: Intensities, judge: Intensities, limits: tuple[float, int], cards: Sequence[str], draws: int, seed: int
) -> IntensityResult:
    """The result from what both say of the same talks; intervals over cards.

    Args:
        limits: the intensity at which a talk has succeeded, and the turns that one without success counts.
        cards: [talks].
    """
    success, most = limits
    by_seeker, by_judge = (
        [measure_emotion(talk, success=success, max_turns=most) for talk in of] for of in (seeker, judge)
    )
    sample = ClusterSample(cards, draws, seed)
    turns = [
        (card, one, other)
        for card, *talk in zip(cards, seeker, judge, strict=True)
        for one, other in zip(*talk, strict=False)  # a talk that became too long may lack the seeker's last one
        if one is not None and other is not None
    ]
    values = np.array([(one, other) for _, one, other in turns], dtype=np.float64).reshape(-1, 2)
    of_turns = ClusterSample([card for card, *_ in turns], draws, seed) if turns else sample
    relief = [_column(talks, "relief") for talks in (by_seeker, by_judge)]
    return IntensityResult(
        seeker={name: sample.mean(_column(by_seeker, name)) for name in MEASURES},
        judge={name: sample.mean(_column(by_judge, name)) for name in MEASURES},
        seeker_curve=average_intensities(seeker),
        judge_curve=average_intensities(judge),
        turns=partial_correlation(values[:, 0], values[:, 1], of_turns),
        turns_n=len(turns),
        relief=partial_correlation(relief[0], relief[1], sample),
        relief_n=int((~np.isnan(relief[0] + relief[1])).sum()),
        missing=sum(value is None for talk in judge for value in talk),
    )


def _column(talks: Sequence[Mapping[str, float]], name: str) -> FloatArray:
    return np.array([talk.get(name, math.nan) for talk in talks], dtype=np.float64)
