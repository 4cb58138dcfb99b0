"""What ratings say: how far raters agree, which runs they prefer, and whether that goes with SRA.

Intervals are of a bootstrap over dialogues, so over items. Correlations with SRA are those of the published human study
(arXiv 2402.10453): of ratings with the SRA of the second reply less that of the first, for each rater and for all
ratings, as they are and trimmed. Most of such a correlation may be that of a prompt template with both, so it is given
once more with what templates explain taken out: with the order of the two templates alone, and with one term for each.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from esc_lab.config.survey import SurveyConfig
from esc_lab.judging.survey_answers import Rating
from esc_lab.judging.survey_key import SurveyKey
from esc_lab.statistics.agreement import LEVELS, krippendorff_alpha
from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.correlation import pearson
from esc_lab.statistics.intervals import BoolArray, FloatArray, IntArray, Interval
from esc_lab.statistics.paired_comparison import bradley_terry
from esc_lab.statistics.partial_correlation import partial_correlation

_UNKNOWN = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class RaterResult:
    """A rater's answers to a question.

    Attributes:
        others: correlation with the mean of the others' ratings of the same items; nan below 3 of these.
        repeats: items that were asked twice.
        change: mean distance of the two answers to these.
    """

    rater: str
    ratings: int
    mean: float
    others: float
    repeats: int
    change: float


@dataclass(frozen=True)
class RunResult:
    """What raters said of a run.

    Attributes:
        mean: of pairs the mean preference for its replies, of single replies the mean score.
        strength: see `bradley_terry`; None of single replies.
        wins, ties, losses: ratings of its pairs; 0 of single replies.
    """

    run: str
    ratings: int
    mean: Interval
    strength: Interval | None = None
    wins: int = 0
    ties: int = 0
    losses: int = 0


@dataclass(frozen=True)
class SRAResult:
    """Correlations of ratings with SRA; of pairs with the second reply's less the first's.

    Attributes:
        raters: a rater, or `all`.
        kept: those whose difference is inside the quantiles `survey.trim` and 1 - `survey.trim` of all ratings.
        correlations: `raw`; `trimmed`, of what was kept; `order`, trimmed, given which of the two templates has more
            SRA on average; `templates`, trimmed, given the templates, a term for each. The last two are nan with one
            template, `order` of single replies.
    """

    raters: str
    ratings: int
    kept: int
    correlations: Mapping[str, Interval]


@dataclass(frozen=True)
class QuestionResult:
    """What ratings on one scale say.

    Attributes:
        alpha: Krippendorff's, by level of measurement.
        alpha_trimmed: at interval level, of the ratings that trimmed correlations are of; None without SRA.
        side: mean of what raters chose as they saw it: below 0 if they favour what stands on the left. None of single
            replies.
    """

    question: str
    ratings: int
    items: int
    alpha: Mapping[str, Interval]
    alpha_trimmed: Interval | None
    side: Interval | None
    raters: Sequence[RaterResult]
    runs: Sequence[RunResult]
    sra: Sequence[SRAResult]


def summarize_question(
    question: str, ratings: Sequence[Rating], key: SurveyKey, settings: SurveyConfig, seed: int
) -> QuestionResult:
    """The results of the ratings of one question, one at least."""
    values = np.array([rating.value for rating in ratings], dtype=np.float64)
    unit = number_items(ratings)
    sample = sample_ratings(ratings, settings, seed)
    difference, kept = _sra_of(ratings, settings.trim)
    trimmed = krippendorff_alpha(unit, np.where(kept, values, math.nan), key.scale, "interval", sample)
    return QuestionResult(
        question=question,
        ratings=len(ratings),
        items=len(np.unique(unit)),
        alpha={level: krippendorff_alpha(unit, values, key.scale, level, sample) for level in LEVELS},
        alpha_trimmed=trimmed if kept.any() else None,
        side=sample.mean(np.array([float(rating.shown) for rating in ratings])) if key.pairs else None,
        raters=_describe_raters(ratings),
        runs=(_compare_runs if key.pairs else _rate_runs)(ratings, values, sample),
        sra=_correlate(ratings, values, difference, kept, sample) if kept.any() else (),
    )


def sample_ratings(ratings: Sequence[Rating], settings: SurveyConfig, seed: int) -> ClusterSample:
    """Ratings in clusters of dialogues."""
    return ClusterSample([rating.item.tree for rating in ratings], settings.draws, seed)


def number_items(ratings: Sequence[Rating]) -> IntArray:
    """Which item each rating is of [n], as a number."""
    return np.unique([rating.item.name for rating in ratings], return_inverse=True)[1]


def others_means(ratings: Sequence[Rating]) -> FloatArray:
    """The mean [n] of what the other raters said of the same item; nan where nobody did."""
    unit, values = number_items(ratings), np.array([rating.value for rating in ratings], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return (np.bincount(unit, values)[unit] - values) / (np.bincount(unit)[unit] - 1)


def _describe_raters(ratings: Sequence[Rating]) -> list[RaterResult]:
    others, found = others_means(ratings), []
    for rater in sorted({rating.rater for rating in ratings}):
        own = np.array([rating.rater == rater for rating in ratings])
        values = np.array([rating.value for rating in ratings], dtype=np.float64)[own]
        known = ~np.isnan(others[own])
        agreement = pearson(values[known], others[own][known]) if known.sum() > 2 else math.nan
        again = [abs(r.value - r.again) for r in ratings if r.rater == rater and r.again is not None]
        change = sum(again) / len(again) if again else math.nan
        found.append(RaterResult(rater, len(values), float(values.mean()), float(agreement), len(again), change))
    return found


def _compare_runs(ratings: Sequence[Rating], values: FloatArray, sample: ClusterSample) -> list[RunResult]:
    names = list(dict.fromkeys(reply.run for rating in ratings for reply in rating.item.replies))
    first, second = (np.array([names.index(rating.item.replies[side].run) for rating in ratings]) for side in (0, 1))
    strengths = bradley_terry(first, second, (1 - np.sign(values)) / 2, sample)
    results = []
    for number, name in enumerate(names):
        favour = np.where(first == number, -values, np.where(second == number, values, math.nan))
        own, mean = favour[~np.isnan(favour)], sample.mean(favour)
        counts = [int((np.sign(own) == sign).sum()) for sign in (1, 0, -1)]
        results.append(RunResult(name, len(own), mean, strengths[number], *counts))
    return sorted(results, key=lambda result: -result.mean.value)


def _rate_runs(ratings: Sequence[Rating], values: FloatArray, sample: ClusterSample) -> list[RunResult]:
    runs = np.array([rating.item.replies[0].run for rating in ratings])
    results = [
        RunResult(name, int((runs == name).sum()), sample.mean(np.where(runs == name, values, math.nan)))
        for name in dict.fromkeys(runs.tolist())
    ]
    return sorted(results, key=lambda result: -result.mean.value)


def _sra_of(ratings: Sequence[Rating], trim: float) -> tuple[FloatArray, BoolArray]:
    """SRA, or its difference, of each rating's item [n], nan if it is not known; and whether trimming keeps it [n]."""
    known = []
    for rating in ratings:
        measured = [reply.sra for reply in rating.item.replies if reply.sra is not None]
        whole = len(measured) == len(rating.item.replies)
        known.append(measured[-1] - (measured[0] if len(measured) > 1 else 0) if whole else math.nan)
    difference = np.array(known, dtype=np.float64)
    if np.isnan(difference).all():
        return difference, np.zeros(len(difference), dtype=bool)
    low, high = np.nanquantile(difference, [trim, 1 - trim])
    return difference, (difference >= low) & (difference <= high)


def _correlate(
    ratings: Sequence[Rating], values: FloatArray, sra: FloatArray, kept: BoolArray, sample: ClusterSample
) -> list[SRAResult]:
    order, terms = _template_terms([rating for rating, keep in zip(ratings, kept, strict=True) if keep], ratings)
    raters = np.array([rating.rater for rating in ratings])
    results = []
    for name in ("all", *sorted(set(raters.tolist()))):
        own = np.where((raters == name) | (name == "all"), sra, math.nan)
        trimmed = np.where(kept, own, math.nan)
        correlations = {
            "raw": partial_correlation(own, values, sample),
            "trimmed": partial_correlation(trimmed, values, sample),
            "order": partial_correlation(trimmed, values, sample, order) if order.any() else _UNKNOWN,
            "templates": partial_correlation(trimmed, values, sample, terms) if terms.any() else _UNKNOWN,
        }
        counts = (int((~np.isnan(x)).sum()) for x in (own, trimmed))
        results.append(SRAResult(name, *counts, correlations))
    return results


def _template_terms(known: Sequence[Rating], ratings: Sequence[Rating]) -> tuple[FloatArray, FloatArray]:
    """Of each rating's item which template has more mean SRA [n, 1], and a term for each template but one [n, k - 1].

    Of pairs +1 where the second reply has it and -1 where the first does. No order without pairs; neither with one
    template.
    """
    by_template: dict[str, list[float]] = defaultdict(list)
    for reply in (reply for rating in known for reply in rating.item.replies):
        by_template[reply.template].append(reply.sra if reply.sra is not None else math.nan)
    templates = sorted({reply.template for rating in ratings for reply in rating.item.replies},
                       key=lambda name: float(np.mean(by_template.get(name, [0.0]))))  # fmt: skip
    columns = np.zeros((len(ratings), len(templates)))
    for row, rating in enumerate(ratings):
        for sign, reply in zip((1, -1), rating.item.replies[::-1], strict=False):
            columns[row, templates.index(reply.template)] += sign
    pairs = len(templates) > 1 and len(ratings[0].item.replies) == 2
    order = np.sign(columns @ np.arange(len(templates)))[:, None] if pairs else np.empty((len(ratings), 0))
    return order, columns[:, 1:]
