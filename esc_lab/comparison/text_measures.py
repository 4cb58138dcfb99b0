"""BLEU and distinct-n as functions of sums over dialogues."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from esc_lab.evaluation.decisions import FloatArray, IntArray, Predictions

Sums = Callable[[Predictions, FloatArray], FloatArray]


def bleu_sums(order: int) -> Sums:
    """Of BLEU-`order`: k-grams matched for k = 1 .. order, k-grams, tokens, tokens of references [2 * order + 2, ...].

    Counts are float32, where they are exact.
    """

    def sums(predictions: Predictions, keep: FloatArray) -> FloatArray:
        test, values = predictions.test, predictions.values
        keep = keep & ~np.isnan(values["match_1"])
        tokens = values["bleu_tokens"][keep]
        counts = [
            *(values[f"match_{k}"][keep] for k in range(1, order + 1)),
            *(np.maximum(tokens - k, 0) for k in range(order)),
            tokens,
            values["reference_tokens"][keep],
        ]
        cluster = test.cluster[predictions.decision[keep]]
        return np.stack([np.bincount(cluster, one, minlength=test.clusters) for one in counts]).astype(np.float32)

    return sums


def bleu(sums: FloatArray) -> FloatArray:
    """Totals [2 * order + 2, ...], see `bleu_sums` -> BLEU of the corpus [...], as `TextOverlap` has it."""
    order = len(sums) // 2 - 1
    matches, grams, tokens, reference = sums[:order], sums[order : 2 * order], sums[-2], sums[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.exp(np.minimum(1 - reference / tokens, 0) + np.log(matches / grams).mean(axis=0))
    found = np.where((matches == 0).any(axis=0), 0, found)
    return np.where(reference + tokens > 0, found, np.nan)


def distinct_sums(length: int) -> Sums:
    """Of distinct-n: what each dialogue contributes, around the value itself, and 1 for each that has replies.

    Distinct-n falls as replies are added, so that of a resample, in which dialogues occur twice, is too low, and an
    interval of such draws misses the value. Its jackknife does not resample: with V the value and V(-d) that without
    dialogue d, d contributes V + (m - 1) (mean of V(-d) over the m dialogues - V(-d)). The mean of these over all
    dialogues is V, and their spread gives its standard error (Efron and Stein 1981: not too small on average), so
    they are bootstrapped and tested as any mean. Of several samples, V is the mean over the samples.
    """

    def sums(predictions: Predictions, keep: FloatArray) -> FloatArray:
        test = predictions.test
        grams, rows = _grams(predictions.words, length)
        kept = keep[rows]
        grams, rows = grams[kept], rows[kept]
        answered = keep & ~np.isnan(predictions.values["reply_length"])
        having = np.bincount(test.cluster[predictions.decision[answered]], minlength=test.clusters) > 0
        found = np.zeros((2, test.clusters))
        samples = np.unique(predictions.sample[answered])
        for sample in samples:
            own = predictions.sample[rows] == sample
            cluster = test.cluster[predictions.decision[rows[own]]]
            found[0, having] += _contributions(grams[own], cluster, test.clusters)[having] / len(samples)
        found[1, having] = 1
        return found

    return sums


def _grams(words: FloatArray, length: int) -> tuple[IntArray, IntArray]:
    """Numbers of the n-grams of all replies, and the row of each."""
    numbers, rows = words.astype(np.int64)
    if length == 1 or not len(numbers):
        return numbers, rows
    inside = rows[:-1] == rows[1:]
    return (numbers[:-1] * (numbers.max() + 1) + numbers[1:])[inside], rows[:-1][inside]


def _contributions(grams: IntArray, cluster: IntArray, clusters: int) -> FloatArray:
    """Contribution [clusters] of each cluster to the distinct-n of all n-grams; meaningless of one without any."""
    _, grams = np.unique(grams, return_inverse=True)
    kinds = int(grams.max()) + 1 if len(grams) else 0
    held = np.unique(grams * clusters + cluster)  # once for each n-gram and cluster that has it
    alone = np.bincount(held // clusters, minlength=kinds) == 1
    own = np.bincount((held % clusters)[alone[held // clusters]], minlength=clusters)
    tokens = np.bincount(cluster, minlength=clusters)
    value = kinds / max(len(grams), 1)
    without = (kinds - own) / np.maximum(len(grams) - tokens, 1)
    present = tokens > 0
    count = int(present.sum())
    mean = without[present].mean() if count else 0.0
    return np.where(present, value + (count - 1) * (mean - without), value)
