"""Metrics of the replies' text: overlap with the given replies, diversity, perplexity."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import rouge_score
from torchmetrics.text import SacreBLEUScore
from torchmetrics.utilities import dim_zero_cat

BLEU_ORDER = 4
_TOKEN = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


@contextmanager
def _float64_default() -> Iterator[None]:
    """torchmetrics makes its text scores in the default dtype, which is bfloat16 inside a bf16-true trainer's steps."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _count_empty(replies: Sequence[str]) -> int:
    return sum(not reply.strip() for reply in replies)


def bleu_counts(reply: str, reference: str) -> list[int]:
    """What a reply adds to the sums that BLEU-1 to BLEU-4 of a corpus are computed from, as `TextOverlap` has them.

    Returns:
        k-grams matched for k = 1 .. 4, tokens of the reply and of its reference. The reply has as many k-grams as
        tokens, less k - 1.

    Example:
        >>> bleu_counts("The cat is on the mat", "the cat sat on the mat")
        [5, 3, 1, 0, 6, 6]
    """
    with _float64_default():
        bleu = SacreBLEUScore(BLEU_ORDER, tokenize="13a", lowercase=True)
        bleu.update([reply], [[reference]])
    return [*map(int, bleu.numerator), int(bleu.preds_len), int(bleu.target_len)]


class TextOverlap(Metric):
    r"""ROUGE-L and BLEU-1 to BLEU-4 of replies against one reference each.

    With LCS the longest common subsequence of two token lists: P = LCS / reply tokens, R = LCS / reference tokens, and
    ROUGE-L = 2 P R / (P + R) (Lin 2004), here its mean over replies. BLEU-N (Papineni et al. 2002) is that of the
    corpus, not a mean over replies: exp(min(0, 1 - reference tokens / reply tokens)) times the geometric mean, for
    k = 1 .. N, of k-grams matched / k-grams of all replies; 0 if some k-gram length has no match.

    ROUGE-L reads lower-cased runs of a-z and 0-9, without stemming, as the `rouge-score` package does. BLEU reads
    lower-cased 13a tokens, without smoothing: sacreBLEU's signature is `nrefs:1|case:lc|eff:no|tok:13a|smooth:none`.

    `compute` returns float64 scalars: `rouge_l` and `bleu_1` to `bleu_4` in [0, 1], `replies` (how many) and
    `empty_replies` (how many are blank). A blank reply has ROUGE-L 0, matches nothing in BLEU, and its missing
    tokens count in the brevity penalty.

    Raises:
        ValueError: from `compute`, if there were no replies.

    Example:
        >>> metric = TextOverlap()
        >>> metric.update(["The cat sat on the mat.", ""], ["the cat is on the mat.", "I see."])
        >>> found = {name: round(value.item(), 3) for name, value in metric.compute().items()}
        >>> [found[name] for name in ("rouge_l", "bleu_1", "bleu_2", "bleu_3", "bleu_4")]
        [0.417, 0.558, 0.492, 0.398, 0.319]
        >>> found["replies"], found["empty_replies"]
        (2.0, 1.0)
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    rouge_sum: Tensor
    matches: Tensor
    totals: Tensor
    reply_tokens: Tensor
    reference_tokens: Tensor
    replies: Tensor
    empty: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("rouge_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for state in ("matches", "totals"):
            self.add_state(state, torch.zeros(BLEU_ORDER, dtype=torch.int64), dist_reduce_fx="sum")
        for state in ("reply_tokens", "reference_tokens", "replies", "empty"):
            self.add_state(state, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Sequence[str], target: Sequence[str]) -> None:
        """Count N replies (`preds`) and the references (`target`) that they are compared with.

        Raises:
            ValueError: there are more of one than of the other.
        """
        if len(preds) != len(target):
            raise ValueError(f"{len(preds)} replies, but {len(target)} references")
        if not preds:
            return
        references = [[reference] for reference in target]
        with _float64_default():
            rouge = rouge_score(list(preds), references, rouge_keys="rougeL")["rougeL_fmeasure"]
            bleu = SacreBLEUScore(BLEU_ORDER, tokenize="13a", lowercase=True)
            bleu.update(preds, references)
        # A cast of the whole model casts this state too; counting goes on in float64 all the same.
        self.rouge_sum = self.rouge_sum.double() + rouge * len(preds)
        self.matches = self.matches + bleu.numerator.long().to(self.device)
        self.totals = self.totals + bleu.denominator.long().to(self.device)
        self.reply_tokens = self.reply_tokens + int(bleu.preds_len)
        self.reference_tokens = self.reference_tokens + int(bleu.target_len)
        self.replies = self.replies + len(preds)
        self.empty = self.empty + _count_empty(preds)

    def compute(self) -> dict[str, Tensor]:
        if self.replies == 0:
            raise ValueError("TextOverlap has no replies to compute from: call update() first")
        return {
            "rouge_l": self.rouge_sum / self.replies,
            **{f"bleu_{order}": self._bleu(order) for order in range(1, BLEU_ORDER + 1)},
            "replies": self.replies.double(),
            "empty_replies": self.empty.double(),
        }

    def _bleu(self, order: int) -> Tensor:
        matches, totals = self.matches[:order].double(), self.totals[:order].double()
        if matches.min() == 0:
            return torch.zeros_like(matches[0])
        brevity = (1 - self.reference_tokens.double() / self.reply_tokens).clamp(max=0).exp()
        return brevity * (matches / totals).log().mean().exp()


class Diversity(Metric):
    r"""Distinct-1 and distinct-2 (Li et al. 2016): different n-grams / all n-grams over all replies; and reply length.

    Tokens are lower-cased words (an apostrophe stays inside its word) and single punctuation marks. Distinct-n falls as
    the number of replies grows: compare it only between sets of equal size.

    `compute` returns float64 scalars: `distinct_1`, `distinct_2` (0 if there are no n-grams), `reply_length` (mean
    tokens; a blank reply has 0), `replies` and `empty_replies` (how many, and how many are blank).

    The state holds a 64-bit hash of every different n-gram, so that processes can pool theirs; that two of a million
    n-grams share a hash has a chance of 3e-8.

    Raises:
        ValueError: from `compute`, if there were no replies.

    Example:
        >>> metric = Diversity()
        >>> metric.update(["I hear you.", "I don't know you."])
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}
        {'distinct_1': 0.667, 'distinct_2': 0.857, 'reply_length': 4.5, 'replies': 2.0, 'empty_replies': 0.0}
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    unigrams: list[Tensor]
    bigrams: list[Tensor]
    unigram_count: Tensor
    bigram_count: Tensor
    replies: Tensor
    empty: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for state in ("unigrams", "bigrams"):
            self.add_state(state, [], dist_reduce_fx="cat")
        for state in ("unigram_count", "bigram_count", "replies", "empty"):
            self.add_state(state, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.reset()

    def reset(self) -> None:
        super().reset()
        # A process without replies must gather int64 like the others; for an empty list torchmetrics sends floats.
        self.unigrams.append(self._hashes([]))
        self.bigrams.append(self._hashes([]))

    def update(self, preds: Sequence[str]) -> None:
        """Count N replies."""
        tokens = [_TOKEN.findall(reply.lower()) for reply in preds]
        unigrams = [token for reply in tokens for token in reply]
        bigrams = [f"{first} {second}" for reply in tokens for first, second in pairwise(reply)]
        self.unigrams.append(self._hashes(unigrams))
        self.bigrams.append(self._hashes(bigrams))
        self.unigram_count = self.unigram_count + len(unigrams)
        self.bigram_count = self.bigram_count + len(bigrams)
        self.replies = self.replies + len(preds)
        self.empty = self.empty + _count_empty(preds)

    def compute(self) -> dict[str, Tensor]:
        if self.replies == 0:
            raise ValueError("Diversity has no replies to compute from: call update() first")
        distinct_1, distinct_2 = (len(torch.unique(dim_zero_cat(hashes))) for hashes in (self.unigrams, self.bigrams))
        return {
            "distinct_1": distinct_1 / self.unigram_count.double().clamp(min=1),
            "distinct_2": distinct_2 / self.bigram_count.double().clamp(min=1),
            "reply_length": self.unigram_count.double() / self.replies,
            "replies": self.replies.double(),
            "empty_replies": self.empty.double(),
        }

    def _hashes(self, ngrams: Sequence[str]) -> Tensor:
        """Hashes of the different n-grams, int64; the same in every process, unlike Python's own string hash."""
        digests = (hashlib.blake2b(ngram.encode(), digest_size=8).digest() for ngram in set(ngrams))
        hashes = [int.from_bytes(digest, "little", signed=True) for digest in digests]
        return torch.tensor(hashes, dtype=torch.int64, device=self.device)


class ReplyPerplexity(Metric):
    r"""Perplexity of the given replies under the model: exp(-(sum of log-probabilities) / number of tokens).

    Every token of the corpus weighs the same. `compute` returns `reply_perplexity`, a float64 scalar; it is inf if some
    reply has probability 0.

    Raises:
        ValueError: from `compute`, if no tokens were counted.

    Example:
        >>> metric = ReplyPerplexity()
        >>> metric.update(torch.tensor([-6.0, -2.0]), torch.tensor([3, 1]))
        >>> metric.compute()["reply_perplexity"]
        tensor(7.3891, dtype=torch.float64)
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    log_prob: Tensor
    tokens: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("log_prob", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, log_prob_sum: Tensor, tokens: Tensor) -> None:
        """Count N replies.

        Args:
            log_prob_sum: natural log-probability of each reply, summed over its tokens; any shape.
            tokens: number of tokens of each reply, same shape.

        Raises:
            ValueError: shapes differ, or a log-probability is nan or positive.
        """
        if log_prob_sum.shape != tokens.shape:
            raise ValueError(f"shapes differ: {list(log_prob_sum.shape)} and {list(tokens.shape)}")
        # Rounding can lift a log-probability a little above 0.
        if not (log_prob_sum <= 1e-3 * tokens).all():
            raise ValueError(f"log-probabilities must be numbers up to 0, got up to {log_prob_sum.max().item()}")
        # A cast of the whole model casts this state too; counting goes on in float64 all the same.
        self.log_prob = self.log_prob.double() + log_prob_sum.double().sum()
        self.tokens = self.tokens + tokens.long().sum()

    def compute(self) -> dict[str, Tensor]:
        if self.tokens == 0:
            raise ValueError("ReplyPerplexity has no tokens to compute from: call update() first")
        return {"reply_perplexity": (-self.log_prob.double() / self.tokens).exp()}
