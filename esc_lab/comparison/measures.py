"""Metrics as functions of sums over dialogues, so that a bootstrap or a permutation of dialogues is a matrix product.

A metric has an array [k, clusters] of sums for each run (a cluster is a dialogue, see `TestSet`), and a function of the
total [k, ...] over the clusters that were drawn. The functions are those of `esc_lab.metrics`, which need torch, over
many draws at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from esc_lab.comparison.text_measures import bleu, bleu_sums, distinct_sums
from esc_lab.evaluation.decisions import NOT_ASKED, UNPARSABLE, FloatArray, Predictions

BoolArray = npt.NDArray[np.bool_]
ITERATIONS = 20


@dataclass(frozen=True)
class Measure:
    """A metric of many draws of dialogues.

    Attributes:
        sums: the sums [k, clusters] of predictions whose rows [rows] are kept; counts as float32, where they are exact.
        value: the metric [...] from totals [k, ...]; nan where there is nothing to compute it from.
    """

    sums: Callable[[Predictions, BoolArray], FloatArray]
    value: Callable[[FloatArray], FloatArray]


def mean(sums: FloatArray) -> FloatArray:
    """Totals of a value and its count [2, ...] -> mean [...]."""
    with np.errstate(invalid="ignore"):
        return np.asarray(sums[0] / sums[1])


def perplexity(sums: FloatArray) -> FloatArray:
    """Totals of log-probabilities and tokens [2, ...] -> perplexity [...]."""
    return np.exp(-mean(sums))


def f1(sums: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Totals of hits, predictions and gold decisions of each class [3 * classes, ...] -> F1, predictions, gold."""
    hits, predicted, gold = np.split(sums, 3)
    return 2 * hits / np.maximum(predicted + gold, 1), predicted, gold


def macro_f1(sums: FloatArray) -> FloatArray:
    """Q: mean F1 of the classes that occur in gold or prediction; `sums` as for `f1`."""
    scores, predicted, gold = f1(sums)
    with np.errstate(invalid="ignore"):
        return np.asarray(scores.sum(0) / (predicted + gold > 0).sum(0))


def weighted_f1(sums: FloatArray) -> FloatArray:
    """Q_W: mean F1 of the classes, weighted by their gold decisions; `sums` as for `f1`."""
    scores, _, gold = f1(sums)
    with np.errstate(invalid="ignore"):
        return np.asarray((scores * gold).sum(0) / gold.sum(0))


def preference(counts: FloatArray) -> FloatArray:
    """Preference p [classes, ...] (Kang et al. 2024), guarded as in `esc_lab.metrics.strategy_preference`.

    Args:
        counts: [classes ** 2, ...], how often each class was predicted (outer) where each is gold (inner).
    """
    classes = math.isqrt(len(counts))
    errors = counts.reshape(classes, classes, -1)
    hits = np.einsum("iin->in", errors)
    # A class that is never missed, or two that are never predicted wrongly, divide by zero for sure.
    never_missed, never_wrong = errors.sum(0) == hits, errors.sum(1) == hits
    plain = ~(never_missed.any(0) | (never_wrong.sum(0) > 1))
    if plain.all():
        found = _iterate(errors)
    else:
        found = np.full((classes, errors.shape[2]), math.nan, dtype=errors.dtype)
        found[:, plain] = _iterate(errors[..., plain])
    guarded = ~np.isfinite(found).all(0)
    if guarded.any():
        found[:, guarded] = _iterate(errors[..., guarded] + errors.dtype.type(0.5 / (classes - 1)))
    return found.reshape(classes, *counts.shape[1:])


def bias(counts: FloatArray) -> FloatArray:
    """B [...]: standard deviation of the preferences over the classes; `counts` as for `preference`."""
    return np.asarray(preference(counts).std(0))


def _iterate(errors: FloatArray) -> FloatArray:
    """The published iteration over tables [classes, classes, n]: p [classes, n], not finite where it divides by zero.

    p may be scaled at will between its rounds; here it keeps a mean of 1. Rounds that would change only the
    last digits are left out.
    """
    classes = len(errors)
    others = [np.delete(np.arange(classes), i) for i in range(classes)]
    wrong = [errors[i, rest] for i, rest in enumerate(others)]
    missed = [errors[rest, i] for i, rest in enumerate(others)]
    p = np.ones_like(errors[0])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for _ in range(ITERATIONS):
            before = p.copy()
            for i, rest in enumerate(others):
                theirs = p[rest]
                share = np.reciprocal(theirs + p[i])
                lost = np.einsum("jn,jn->n", missed[i], share)
                share *= theirs
                p[i] = np.einsum("jn,jn->n", wrong[i], share) / lost
            p *= classes / p.sum(0)
            if not (np.abs(p - before) > 8 * np.finfo(p.dtype).eps * p).any():
                break
    return np.asarray(p)


def confusion(predictions: Predictions, keep: BoolArray, choice: str) -> FloatArray:
    """Counts [classes + 1, classes, clusters] float32: predicted (the last: unparsable), gold, cluster.

    `choice` is `chosen` or `written`. Where several strategies are right, gold is the predicted one if it is among
    them, else the first (`esc_lab.metrics.resolve_gold`).
    """
    test, predicted = predictions.test, getattr(predictions, choice)
    keep = keep & (predicted != NOT_ASKED)
    predicted, decision = predicted[keep], predictions.decision[keep]
    right = test.gold[decision, predicted] & (predicted != UNPARSABLE)
    gold = np.where(right, predicted, test.first[decision])
    classes = len(test.strategies)
    row = np.where(predicted == UNPARSABLE, classes, predicted)
    place = (row * classes + gold) * test.clusters + test.cluster[decision]
    counts = np.bincount(place, minlength=(classes + 1) * classes * test.clusters)
    return counts.reshape(classes + 1, classes, test.clusters).astype(np.float32)


def _f1_sums(choice: str) -> Callable[[Predictions, BoolArray], FloatArray]:
    def sums(predictions: Predictions, keep: BoolArray) -> FloatArray:
        counts = confusion(predictions, keep, choice)
        return np.concatenate([np.einsum("iic->ic", counts[:-1]), counts[:-1].sum(axis=1), counts.sum(axis=0)])

    return sums


def _error_sums(choice: str) -> Callable[[Predictions, BoolArray], FloatArray]:
    def sums(predictions: Predictions, keep: BoolArray) -> FloatArray:
        counts = confusion(predictions, keep, choice)[:-1]
        return counts.reshape(-1, counts.shape[-1])

    return sums


def _hit_sums(choice: str, *, unparsable: bool = False) -> Callable[[Predictions, BoolArray], FloatArray]:
    def sums(predictions: Predictions, keep: BoolArray) -> FloatArray:
        counts = confusion(predictions, keep, choice)
        hits = counts[-1].sum(0) if unparsable else np.einsum("iic->c", counts[:-1])
        return np.stack([hits, counts.sum((0, 1))])

    return sums


def _value_sums(total: str, count: str | None = None) -> Callable[[Predictions, BoolArray], FloatArray]:
    """Sums of a value over the rows where it is known, and of another (None: how many rows these are)."""

    def sums(predictions: Predictions, keep: BoolArray) -> FloatArray:
        test, values = predictions.test, predictions.values[total]
        keep = keep & ~np.isnan(values)
        cluster = test.cluster[predictions.decision[keep]]
        counted = None if count is None else predictions.values[count][keep]
        return np.stack(
            [np.bincount(cluster, one, minlength=test.clusters).astype(float) for one in (values[keep], counted)]
        )

    return sums


def _choice(group: str, choice: str) -> dict[str, Measure]:
    return {
        f"{group}/Q": Measure(_f1_sums(choice), macro_f1),
        f"{group}/Q_W": Measure(_f1_sums(choice), weighted_f1),
        f"{group}/B": Measure(_error_sums(choice), bias),
        f"{group}/accuracy": Measure(_hit_sums(choice), mean),
    }


def _agreement_sums(predictions: Predictions, keep: BoolArray) -> FloatArray:
    """Pairs of samples of a decision that name the same strategy, and pairs that name one [2, clusters]."""
    test = predictions.test
    keep = keep & (predictions.written >= 0)
    classes = len(test.strategies)
    place = predictions.decision[keep] * classes + predictions.written[keep]
    counts = np.bincount(place, minlength=classes * len(test.keys)).reshape(-1, classes)
    pairs = [(number * (number - 1) // 2) for number in (counts, counts.sum(axis=1, keepdims=True))]
    return np.stack([np.bincount(test.cluster, one.sum(axis=1), minlength=test.clusters) for one in pairs])


def _pair_sums(row: int) -> Callable[[Predictions, BoolArray], FloatArray]:
    """Preference pairs that are right by a row of `Predictions.pairs`, and all that are known by it [2, clusters].

    Pairs belong to dialogues and not to rows of predictions, so it does not matter which of those are kept.
    """

    def sums(predictions: Predictions, keep: BoolArray) -> FloatArray:
        known = predictions.pairs[row] >= 0
        cluster, right = predictions.pairs[[0, row]][:, known]
        size = predictions.test.clusters
        return np.stack([np.bincount(cluster, one, minlength=size) for one in (right, np.ones_like(right))])

    return sums


TEXT_METRICS = (
    "text/rouge_l", "text/reply_length", "text/distinct_1", "text/distinct_2", *(f"text/bleu_{k}" for k in range(1, 5))
)  # fmt: skip
# The metrics that are known dialogue by dialogue. The others are taken from metrics.json as they are.
MEASURES: Mapping[str, Measure] = {
    **_choice("strategy", "chosen"),
    "strategy/label_mass": Measure(_value_sums("label_mass"), mean),
    **_choice("generated", "written"),
    "generated/unparsable": Measure(_hit_sums("written", unparsable=True), mean),
    "text/perplexity": Measure(_value_sums("log_prob", "tokens"), perplexity),
    "generated/agreement": Measure(_agreement_sums, mean),
    "text/rouge_l": Measure(_value_sums("rouge_l"), mean),
    "text/reply_length": Measure(_value_sums("reply_length"), mean),
    **{f"text/bleu_{order}": Measure(bleu_sums(order), bleu) for order in range(1, 5)},
    **{f"text/distinct_{length}": Measure(distinct_sums(length), mean) for length in (1, 2)},
    **{f"sra/{name}": Measure(_value_sums(name), mean) for name in ("sra", "log_sra", "sham_net", "log_relative")},
    "adherence/accuracy": Measure(_value_sums("adheres"), mean),
    "judge/overall": Measure(_value_sums("judge"), mean),
    "preference/accuracy": Measure(_pair_sums(1), mean),
    "preference/reward_accuracy": Measure(_pair_sums(2), mean),
}
