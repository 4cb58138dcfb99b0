"""Text metrics against hand-computed values and brute force."""

import math
from collections import Counter
from functools import cache
from itertools import starmap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text import rouge_score

from esc_lab.metrics.text import bleu, bleu_counts, rouge_l, split_words

relaxed = settings(max_examples=60)
replies = st.lists(st.sampled_from("abc"), max_size=8).map(" ".join)
pairs = st.lists(st.tuples(replies, replies.filter(bool)), min_size=1, max_size=6)


def ngrams(text, order):
    tokens = text.split()
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def corpus_bleu(preds, target, order):
    log_precision = 0.0
    for k in range(1, order + 1):
        matches = sum(sum((ngrams(p, k) & ngrams(t, k)).values()) for p, t in zip(preds, target, strict=True))
        if matches == 0:
            return 0.0
        log_precision += math.log(matches / sum(sum(ngrams(p, k).values()) for p in preds)) / order
    reply_tokens, reference_tokens = (sum(len(text.split()) for text in texts) for texts in (preds, target))
    return math.exp(log_precision + min(0.0, 1 - reference_tokens / reply_tokens))


def brute_rouge_l(pred, target):
    pred, target = pred.split(), target.split()

    @cache
    def lcs(i, j):
        if i == len(pred) or j == len(target):
            return 0
        return 1 + lcs(i + 1, j + 1) if pred[i] == target[j] else max(lcs(i + 1, j), lcs(i, j + 1))

    return 2 * lcs(0, 0) / (len(pred) + len(target)) if pred else 0.0


def bleu_totals(cases):
    """Totals [9, 1] as `bleu` reads them, from the counts of single replies."""
    counts = list(starmap(bleu_counts, cases))
    *matches, tokens, reference = map(sum, zip(*counts, strict=True))
    grams = [sum(max(of_reply[4] - k, 0) for of_reply in counts) for k in range(4)]
    assert grams[0] == tokens
    return np.array([*matches, *grams, reference], dtype=float)[:, None]


@relaxed
@given(pairs)
def test_overlap_equals_brute_force(cases):
    preds, target = map(list, zip(*cases, strict=True))
    assert list(starmap(rouge_l, cases)) == pytest.approx(list(map(brute_rouge_l, preds, target)), abs=1e-12)
    totals = bleu_totals(cases)
    for order in range(1, 5):
        assert bleu(order, totals)[0] == pytest.approx(corpus_bleu(preds, target, order), abs=1e-12)


def test_overlap_by_hand():
    # LCS "the cat on the mat": 5 of 6 tokens on both sides. Unigrams 5/6, bigrams 3/5, trigrams 1/4, no 4-gram.
    case = ("The cat is on the mat", "the cat sat on the mat")
    assert rouge_l(*case) == pytest.approx(5 / 6)
    assert bleu(2, bleu_totals([case]))[0] == pytest.approx(math.sqrt(5 / 6 * 3 / 5))
    assert bleu(4, bleu_totals([case]))[0] == 0


def test_bleu_clips_repeated_words():
    # The example of Papineni et al. 2002: "the" is repeated seven times and occurs twice in the reference.
    assert bleu_counts("the the the the the the the", "the cat is on the mat") == [2, 0, 0, 0, 7, 6]


def test_bleu_is_of_the_corpus_and_counts_the_missing_tokens_of_short_replies():
    cases = [("a b c d", "a b c d"), ("", "a b c d")]
    assert bleu(4, bleu_totals(cases))[0] == pytest.approx(math.exp(1 - 8 / 4))
    assert np.mean(list(starmap(rouge_l, cases))) == 0.5


def test_bleu_without_replies_or_matches():
    no_bigram, blank = [2, 0, 0, 0, 5, 4, 3, 2, 5.0], [0, 0, 0, 0, 0, 0, 0, 0, 9.0]
    assert bleu(2, np.array([no_bigram, blank]).T).tolist() == [0, 0]
    assert np.isnan(bleu(2, np.zeros((9, 1)))).all()


def test_bleu_counts_in_a_trainer_of_low_precision():
    torch.set_default_dtype(torch.bfloat16)
    try:
        counts = bleu_counts(" ".join(["word"] * 301), " ".join(["word"] * 301))
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert counts == [301, 300, 299, 298, 301, 301]


def test_tokens():
    # Punctuation: dropped by ROUGE, a token of its own for BLEU and for diversity. Case matters to none.
    assert rouge_l("I SEE.", "i see") == 1
    assert bleu_counts("I SEE.", "i see")[4:] == [3, 2]
    assert split_words("Don\u2019t GO!!") == ["don\u2019t", "go", "!", "!"]


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_blank_replies_score_zero(blank):
    assert rouge_l(blank, "take care") == 0
    assert bleu_counts(blank, "take care") == [0, 0, 0, 0, 0, 2]
    assert split_words(blank) == []


texts = st.lists(st.sampled_from(["a", "b", "cat", "It's", "d!", "Cat", "-", "\u00e9"]), max_size=14).map(" ".join)


@relaxed
@given(texts, texts)
def test_rouge_l_is_that_of_torchmetrics(reply, reference):
    expected = rouge_score([reply], [[reference]], rouge_keys="rougeL")["rougeL_fmeasure"]
    assert rouge_l(reply, reference) == pytest.approx(float(expected), abs=1e-6)
