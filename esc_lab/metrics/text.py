"""Metrics of the replies' text: overlap with the gold replies, diversity, length, perplexity."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from esc_lab.metrics.metric import (
    Definition,
    Metric,
    count_metric,
    mean,
    mean_of,
    number_of,
    reply_metric,
    sum_values,
)
from esc_lab.metrics.prediction_table import BoolArray, FloatArray, IntArray, PredictionTable

BLEU_ORDER = 4
# What BLEU is summed from: k-grams matched for k = 1 .. 4, tokens of the reply and of its reference.
BLEU_COUNTS = (*(f"match_{k}" for k in range(1, BLEU_ORDER + 1)), "bleu_tokens", "reference_tokens")
RUN_WORDS = 4  # in a row, of a reply and a text, that count as copied
# Share of such runs above which a reply copies its instruction, whatever strategy is found in it.
MAX_COPIED = 0.2
_WORD = re.compile(r"[a-z0-9]+")
_TOKEN = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Lower-cased words (an apostrophe stays inside its word) and single punctuation marks.

    >>> split_words("I don't know you.")
    ['i', "don't", 'know', 'you', '.']
    """
    return _TOKEN.findall(text.lower())


def rouge_l(reply: str, reference: str) -> float:
    """ROUGE-L of a reply against its reference (F-measure; Lin 2004): 2 LCS / (reply tokens + reference tokens).

    LCS is the length of their longest common subsequence. Tokens are lower-cased runs of a-z and 0-9, without stemming,
    as in the `rouge-score` package. The subsequence is found with one whole number as a row of bits: about five
    operations for each word of the reply (Hyyro 2004). A blank reply has 0.

    >>> round(rouge_l("The cat sat on the mat.", "the cat is on the mat."), 3)
    0.833
    """
    places, count = _word_places(reference)
    words = _WORD.findall(reply.lower())
    row = everything = (1 << count) - 1
    for word in words:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & everything
    common = count - row.bit_count()
    return 2 * common / (len(words) + count) if common else 0.0


def repetition(reply: str) -> float:
    """Share of a reply's 4-grams of words that it has had before (seq-rep-4; Welleck et al. 2020); 0 of a short reply.

    >>> round(repetition("it is so hard it is so hard it is"), 3)
    0.429
    """
    words = split_words(reply)
    grams = [tuple(words[start : start + 4]) for start in range(len(words) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def copied_share(reply: str, known: Sequence[str]) -> float:
    """Share of the runs of four words of a reply that are in some known text, whatever case and punctuation.

    A shorter reply is copied (1) if it is all that one of these texts says.

    >>> copied_share("I feel so alone today, and you?", ["I feel so alone today."])
    0.5
    """
    words, texts = _plain_words(reply), [_plain_words(text) for text in known]
    if len(words) < RUN_WORDS:
        return float(words in texts)
    there = {run for text in texts for run in _word_runs(text)}
    runs = _word_runs(words)
    return sum(run in there for run in runs) / len(runs)


def repeated_share(reply: str) -> float:
    """Share of the runs of four words of a reply that it has said before.

    >>> repeated_share("I am not okay. I am not okay.")
    0.2
    """
    runs = _word_runs(_plain_words(reply))
    return (len(runs) - len(set(runs))) / len(runs) if runs else 0.0


def _plain_words(text: str) -> list[str]:
    return re.findall(r"\w+", text.replace("\u2019", "'").replace("'", "").lower())


def _word_runs(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + RUN_WORDS]) for start in range(len(words) - RUN_WORDS + 1)]


@lru_cache(maxsize=1 << 14)  # runs of one test set share their references
def _word_places(reference: str) -> tuple[dict[str, int], int]:
    """Where each word stands, as bits, and how many words there are."""
    words = _WORD.findall(reference.lower())
    places: dict[str, int] = {}
    for number, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << number
    return places, len(words)


def bleu_counts(reply: str, reference: str) -> list[int]:
    """What a reply adds to the sums that BLEU-1 to BLEU-4 of a corpus are computed from.

    BLEU reads lower-cased 13a tokens: sacreBLEU's signature is `nrefs:1|case:lc|eff:no|tok:13a|smooth:none`.

    Returns:
        k-grams matched for k = 1 .. 4, tokens of the reply and of its reference. The reply has as many k-grams as
        tokens, less k - 1.

    Example:
        >>> bleu_counts("The cat is on the mat", "the cat sat on the mat")
        [5, 3, 1, 0, 6, 6]
    """
    import torch  # comparisons do without it
    from torchmetrics.text import SacreBLEUScore

    # torchmetrics counts in the default dtype, which is bfloat16 inside a bf16-true trainer's steps.
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        score = SacreBLEUScore(BLEU_ORDER, tokenize="13a", lowercase=True)
        score.update([reply], [[reference]])
    finally:
        torch.set_default_dtype(before)
    return [*map(int, score.numerator), int(score.preds_len), int(score.target_len)]


def bleu(order: int, totals: FloatArray) -> FloatArray:
    """BLEU of a corpus (Papineni et al. 2002), not a mean over replies.

    exp(min(0, 1 - reference tokens / reply tokens)) times the geometric mean, for k = 1 .. order, of k-grams matched /
    k-grams of all replies; 0 if some k-gram length has no match. The missing tokens of a blank reply count in the
    first factor.

    Args:
        totals: k-grams matched and k-grams, each for k = 1 .. 4, and reference tokens [9, ...].
    """
    matches, grams, tokens, reference = totals[:order], totals[4 : 4 + order], totals[4], totals[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.exp(np.minimum(1 - reference / tokens, 0) + np.log(matches / grams).mean(axis=0))
    value = np.where((matches == 0).any(axis=0), 0, value)
    return np.where(reference + tokens > 0, value, np.nan)


def perplexity(totals: FloatArray) -> FloatArray:
    """Totals of log-probabilities and tokens [2, ...] -> exp(-(log-probability of a token)) [...]."""
    return np.exp(-mean(totals))


def _sum_bleu(table: PredictionTable, keep: BoolArray) -> FloatArray:
    keep = keep & ~np.isnan(table.column("match_1"))
    *matches, tokens, reference = (table.column(name)[keep] for name in BLEU_COUNTS)
    grams = (np.maximum(tokens - k, 0) for k in range(BLEU_ORDER))
    return table.sum_by_cluster(keep, *matches, *grams, reference).astype(np.float32)


def _sum_distinct(length: int, table: PredictionTable, keep: BoolArray) -> FloatArray:
    """Of distinct-n: what each dialogue contributes, around the value itself, and 1 for each that has replies.

    Distinct-n (Li et al. 2016), different n-grams / all n-grams, falls as replies are added, so that of a resample, in
    which dialogues occur twice, is too low, and an interval of such draws misses the value. Its jackknife does not
    resample: with V the value and V(-d) that without dialogue d, d contributes V + (m - 1) (mean of V(-d) over the m
    dialogues - V(-d)). The mean of these over all dialogues is V, and their spread gives its standard error (Efron and
    Stein 1981: not too small on average), so intervals and tests are those of any mean. Of several samples, V is the
    mean over the samples.
    """
    test = table.test
    grams, rows = _number_grams(table.words, length)
    kept = keep[rows]
    grams, rows = grams[kept], rows[kept]
    replied = keep & ~np.isnan(table.column("reply_length"))
    having = np.bincount(test.cluster[table.decision[replied]], minlength=test.clusters) > 0
    sums = np.zeros((2, test.clusters))
    samples = np.unique(table.sample[replied])
    for sample in samples:
        own = table.sample[rows] == sample
        cluster = test.cluster[table.decision[rows[own]]]
        sums[0, having] += _contributions(grams[own], cluster, test.clusters)[having] / len(samples)
    sums[1, having] = 1
    return sums


def _sum_self_distinct(length: int, table: PredictionTable, keep: BoolArray) -> FloatArray:
    """Distinct-n of the samples of each prompt that has several, and how many prompts these are [2, clusters]."""
    replied = np.flatnonzero(keep & ~np.isnan(table.column("reply_length")))
    prompts, group = np.unique(np.stack([table.decision, table.prompted])[:, replied], axis=1, return_inverse=True)
    group_of_row = np.full(len(keep), -1)
    group_of_row[replied] = group
    grams, rows = _number_grams(table.words, length)
    of_gram = group_of_row[rows]
    grams, of_gram = grams[of_gram >= 0], of_gram[of_gram >= 0]
    count = prompts.shape[1]
    different = np.unique(np.stack([of_gram, grams]), axis=1)[0]
    share = np.bincount(different, minlength=count) / np.maximum(np.bincount(of_gram, minlength=count), 1)
    several = np.bincount(group, minlength=count) > 1
    cluster = table.test.cluster[prompts[0, several]]
    return np.stack([np.bincount(cluster, v, minlength=table.test.clusters) for v in (share[several], None)]).astype(
        np.float64
    )


def _number_grams(words: npt.NDArray[np.int32], length: int) -> tuple[IntArray, IntArray]:
    """Numbers of the n-grams of all replies, and the row of each."""
    numbers, rows = words.astype(np.intp)
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
    middle = without[present].mean() if count else 0.0
    return np.where(present, value + (count - 1) * (middle - without), value)


def _sum_blank(table: PredictionTable, keep: BoolArray) -> FloatArray:
    return table.sum_by_cluster(keep, (table.column("reply_length")[keep] == 0).astype(np.float64))


def _text_metric(name: str, heading: str, definition: Definition, **settings: Any) -> Metric:
    return Metric(f"text/{name}", heading, definition=definition, count="text/replies", texts=True, **settings)


_BLEU_MEANINGS = {
    1: "Overlap of the written replies with those in the corpus in words, from 0 to 1.",
    2: "Overlap of the written replies with those in the corpus in words and pairs of words, from 0 to 1.",
    **{k: f"As BLEU-2, in runs of up to {k} words." for k in range(3, BLEU_ORDER + 1)},
}
_DISTINCT_MEANINGS = {
    1: "Diversity: different words, as a share of all words in the written replies.",
    2: "Diversity: different pairs of words, as a share of all pairs of words in the written replies. It falls as "
    "replies grow in number.",
}
METRICS = (
    reply_metric(
        "text/rouge_l", "ROUGE-L", rouge_l, higher_is_better=True, shown=True, grouped=True,
        meaning="Overlap of the written reply with the one in the corpus: F-measure of their longest common "
        "subsequence of words, from 0 to 1.",
    ),
    *(
        _text_metric(f"bleu_{k}", f"BLEU-{k}", Definition(_sum_bleu, partial(bleu, k)), higher_is_better=True,
                     shown=k == 2, meaning=_BLEU_MEANINGS[k])
        for k in range(1, BLEU_ORDER + 1)
    ),
    *(
        _text_metric(f"distinct_{n}", f"dist-{n}", Definition(partial(_sum_distinct, n), mean), shown=n == 2,
                     meaning=_DISTINCT_MEANINGS[n])
        for n in (1, 2)
    ),
    *(
        _text_metric(f"self_distinct_{n}", f"self-dist-{n}", Definition(partial(_sum_self_distinct, n), mean),
                     meaning=f"Distinct-{n} of the samples of one prompt, mean over the prompts.")
        for n in (1, 2)
    ),
    _text_metric("reply_length", "length", mean_of("reply_length"),
                 meaning="Words and punctuation marks of a written reply."),
    count_metric("text/replies", "replies", number_of("reply_length"), texts=True),
    Metric("text/repetition", "repet.", False, mean_of("repetition"), count="text/written", texts=True,
           meaning="Repetition: share of runs of four words in a written reply that it has had before, whichever "
           "strategy the prompt names."),
    Metric("text/copied", "copied", False, mean_of("copied"), count="text/written",
           meaning="Echo: share of runs of four words in a written reply that stand in the instruction it was given, "
           "the name of its strategy or the definition."),
    count_metric("text/written", "written", number_of("repetition"), texts=True),
    _text_metric("empty_replies", "blank", Definition(_sum_blank, itemgetter(0)), is_count=True, decimals=0),
    Metric(
        "text/perplexity", "ppl", False, Definition(sum_values("log_prob", "tokens"), perplexity), count="decisions",
        decimals=2, shown=True, grouped=True, by_tokens=True,
        meaning="How surprised the model is by the replies in the corpus, per token; 1 = not at all.",
        change="is {} surprised by the given replies",
    ),
)  # fmt: skip
