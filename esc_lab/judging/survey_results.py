"""What ratings say: how far raters agree, which runs they prefer, and whether that goes with SRA.

Intervals are of a bootstrap over dialogues, so over items. Correlations with SRA are those of the published human study
(arXiv 2402.10453): of ratings with the SRA of the second reply less that of the first, for each rater and for all
ratings, as they are and trimmed. Most of such a correlation may be that of a prompt template or a model with both, so
it is given once more with what these explain taken out: with the order of the two templates alone, with one term for
each, and with one for each run.
"""

from __future__ import annotations

import math
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
        mean: of the answers as it saw them: of pairs below 0 if it favours what stands on the left.
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
            SRA on average; `templates` and `runs`, trimmed, given the templates or the runs, a term for each. `order`
            and `templates` are nan with one template, `runs` with one run, `order` of single replies.
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
    sra, kept = _read_sra(ratings, settings.trim)
    trimmed = krippendorff_alpha(unit, np.where(kept, values, math.nan), key.scale, "interval", sample)
    return QuestionResult(
        question=question,
        ratings=len(ratings),
        items=len(np.unique(unit)),
        alpha={level: krippendorff_alpha(unit, values, key.scale, level, sample) for level in LEVELS},
        alpha_trimmed=trimmed if kept.any() else None,
        side=sample.mean(np.array([float(rating.shown) for rating in ratings])) if key.pairs else None,
        raters=_describe_raters(ratings),
        runs=_describe_runs(ratings, values, sample),
        sra=_correlate(ratings, values, sra, kept, sample) if kept.any() else (),
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
        mean = np.mean([rating.shown for rating in ratings if rating.rater == rater])
        found.append(RaterResult(rater, len(values), float(mean), float(agreement), len(again), change))
    return found


def _describe_runs(ratings: Sequence[Rating], values: FloatArray, sample: ClusterSample) -> list[RunResult]:
    names = list(dict.fromkeys(reply.run for rating in ratings for reply in rating.item.replies))
    sides = np.array([[names.index(reply.run) for reply in rating.item.replies] for rating in ratings])
    pairs = sides.shape[1] == 2
    strengths: Sequence[Interval | None] = [None] * len(names)
    if pairs:
        strengths = bradley_terry(sides[:, 0], sides[:, 1], (1 - np.sign(values)) / 2, sample)
    results = []
    for number, name in enumerate(names):
        favour = np.where(sides[:, -1] == number, values, np.where(sides[:, 0] == number, -values, math.nan))
        counts = [int((np.sign(favour) == sign).sum()) if pairs else 0 for sign in (1, 0, -1)]
        size = int((~np.isnan(favour)).sum())
        results.append(RunResult(name, size, sample.mean(favour), strengths[number], *counts))
    return sorted(results, key=lambda result: -result.mean.value)


def _read_sra(ratings: Sequence[Rating], trim: float) -> tuple[FloatArray, BoolArray]:
    """SRA of the replies of each rating's item [n, 1 or 2], nan if not known; and whether trimming keeps it [n]."""
    sra = np.array([[math.nan if r.sra is None else r.sra for r in rating.item.replies] for rating in ratings])
    difference = _subtract(sra)
    if np.isnan(difference).all():
        return sra, np.zeros(len(sra), dtype=bool)
    low, high = np.nanquantile(difference, [trim, 1 - trim])
    return sra, (difference >= low) & (difference <= high)


def _subtract(of_replies: FloatArray) -> FloatArray:
    """What the second reply has more than the first, of [n, 2, ...]; what the only one has, of [n, 1, ...]."""
    return of_replies[:, -1] - (of_replies[:, 0] if of_replies.shape[1] == 2 else 0)


def _correlate(
    ratings: Sequence[Rating], values: FloatArray, sra: FloatArray, kept: BoolArray, sample: ClusterSample
) -> list[SRAResult]:
    templates, runs = (
        _number([[getattr(reply, name) for reply in rating.item.replies] for rating in ratings])
        for name in ("template", "run")
    )
    terms = {
        "order": _order_templates(templates, sra, kept),
        "templates": _build_terms(templates),
        "runs": _build_terms(runs),
    }
    difference = _subtract(sra)
    raters = np.array([rating.rater for rating in ratings])
    results = []
    for name in ("all", *sorted(set(raters.tolist()))):
        own = np.where((raters == name) | (name == "all"), difference, math.nan)
        trimmed = np.where(kept, own, math.nan)
        correlations = {
            "raw": partial_correlation(own, values, sample),
            "trimmed": partial_correlation(trimmed, values, sample),
            **{
                kind: partial_correlation(trimmed, values, sample, given) if given.any() else _UNKNOWN
                for kind, given in terms.items()
            },
        }
        size, left = (int((~np.isnan(x)).sum()) for x in (own, trimmed))
        results.append(SRAResult(name, size, left, correlations))
    return results


def _order_templates(places: IntArray, sra: FloatArray, kept: BoolArray) -> FloatArray:
    """Which template of each pair has more mean SRA [n, 1]: 1 the second reply's, -1 the first's, 0 neither's."""
    known = [sra[kept][places[kept] == number] for number in range(places.max() + 1)]
    rank = np.argsort(np.argsort([own.mean() if len(own) else 0.0 for own in known]))[places]
    return np.sign(_subtract(rank))[:, None] if places.shape[1] == 2 else np.zeros((len(places), 1))


def _number(names: Sequence[Sequence[str]]) -> IntArray:
    """Names [n, 1 or 2] as numbers from 0."""
    return np.unique(names, return_inverse=True)[1].reshape(np.shape(names))


def _build_terms(places: IntArray) -> FloatArray:
    """A term for each of k templates or runs but one [n, k - 1]; of pairs the second reply's less the first's."""
    return _subtract(np.eye(places.max() + 1)[places])[:, 1:]
