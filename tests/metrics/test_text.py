"""Text metrics against hand-computed values and brute force."""

import math
from collections import Counter
from functools import cache
from itertools import starmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_lab.metrics import Diversity, ReplyPerplexity, TextOverlap, bleu_counts

relaxed = settings(deadline=None, max_examples=60)
replies = st.lists(st.sampled_from("abc"), max_size=8).map(" ".join)
pairs = st.lists(st.tuples(replies, replies.filter(bool)), min_size=1, max_size=6)


def computed(metric, *inputs):
    metric.update(*inputs)
    return {name: value.item() for name, value in metric.compute().items()}


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


def rouge_l(pred, target):
    pred, target = pred.split(), target.split()

    @cache
    def lcs(i, j):
        if i == len(pred) or j == len(target):
            return 0
        return 1 + lcs(i + 1, j + 1) if pred[i] == target[j] else max(lcs(i + 1, j), lcs(i, j + 1))

    return 2 * lcs(0, 0) / (len(pred) + len(target)) if pred else 0.0


@relaxed
@given(pairs)
def test_overlap_equals_brute_force(cases):
    preds, target = map(list, zip(*cases, strict=True))
    assert computed(TextOverlap(), preds, target) == pytest.approx(
        {
            "rouge_l": sum(map(rouge_l, preds, target)) / len(cases),
            **{f"bleu_{order}": corpus_bleu(preds, target, order) for order in range(1, 5)},
            "replies": len(cases),
            "empty_replies": preds.count(""),
        },
        abs=1e-12,
    )


@relaxed
@given(pairs)
def test_bleu_counts_of_single_replies_add_up_to_those_of_the_corpus(cases):
    metric = TextOverlap()
    metric.update(*map(list, zip(*cases, strict=True)))
    *matches, tokens, reference = (sum(counts) for counts in zip(*starmap(bleu_counts, cases), strict=True))
    assert (matches, tokens, reference) == (metric.matches.tolist(), metric.reply_tokens, metric.reference_tokens)
    grams = [sum(max(bleu_counts(*case)[4] - k, 0) for case in cases) for k in range(4)]
    assert grams == metric.totals.tolist()


def test_overlap_by_hand():
    # LCS "the cat on the mat": 5 of 6 tokens on both sides. Unigrams 5/6, bigrams 3/5, trigrams 1/4, no 4-gram.
    found = computed(TextOverlap(), ["The cat is on the mat"], ["the cat sat on the mat"])
    assert found["rouge_l"] == pytest.approx(5 / 6)
    assert found["bleu_2"] == pytest.approx(math.sqrt(5 / 6 * 3 / 5))
    assert found["bleu_4"] == 0


def test_bleu_clips_repeated_words():
    # The example of Papineni et al. 2002: "the" is repeated seven times and occurs twice in the reference.
    metric = TextOverlap()
    metric.update(["the the the the the the the"], ["the cat is on the mat"])
    assert metric.matches.tolist() == [2, 0, 0, 0]
    assert metric.totals.tolist() == [7, 6, 5, 4]


def test_bleu_is_of_the_corpus_and_counts_the_missing_tokens_of_short_replies():
    found = computed(TextOverlap(), ["a b c d", ""], ["a b c d", "a b c d"])
    assert found["bleu_4"] == pytest.approx(math.exp(1 - 8 / 4))
    assert found["rouge_l"] == pytest.approx(0.5)
    assert found["empty_replies"] == 1


def test_tokens_of_rouge_and_bleu():
    # Punctuation: dropped by ROUGE, a token of its own for BLEU. Case matters to neither.
    metric = TextOverlap()
    assert computed(metric, ["I SEE."], ["i see"])["rouge_l"] == pytest.approx(1)
    assert metric.totals.tolist()[0] == 3


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_blank_replies_score_zero_and_are_counted(blank):
    found = computed(TextOverlap(), [blank], ["take care"])
    overlap = dict.fromkeys(("rouge_l", "bleu_1", "bleu_2", "bleu_3", "bleu_4"), 0)
    assert found == {**overlap, "replies": 1, "empty_replies": 1}
    found = computed(Diversity(), [blank])
    assert found == {"distinct_1": 0, "distinct_2": 0, "reply_length": 0, "replies": 1, "empty_replies": 1}


def test_overlap_needs_a_reference_for_each_reply():
    with pytest.raises(ValueError, match="2 replies, but 1 references"):
        TextOverlap().update(["a", "b"], ["a"])


@relaxed
@given(st.lists(replies, min_size=1, max_size=8), st.integers(1, 4))
def test_diversity_equals_brute_force_in_any_batches(texts, size):
    metric = Diversity()
    for start in range(0, len(texts), size):
        metric.update(texts[start : start + size])
    found = {name: value.item() for name, value in metric.compute().items()}
    for order in (1, 2):
        pooled = sum((ngrams(text, order) for text in texts), Counter())
        assert found[f"distinct_{order}"] == pytest.approx(len(pooled) / max(1, pooled.total()))
    assert found["reply_length"] == pytest.approx(sum(len(text.split()) for text in texts) / len(texts))


def test_diversity_by_hand():
    # 9 tokens, 6 different (i, hear, you, ".", don't, know); 7 bigrams, of which "you ." comes twice.
    found = computed(Diversity(), ["I hear you.", "i don't know you."])
    assert found["distinct_1"] == pytest.approx(6 / 9)
    assert found["distinct_2"] == pytest.approx(6 / 7)
    assert found["reply_length"] == pytest.approx(4.5)


def test_bigrams_do_not_reach_across_replies():
    metric = Diversity()
    metric.update(["a", "b", "c"])
    assert metric.bigram_count == 0


def test_perplexity_weighs_tokens_alike():
    metric = ReplyPerplexity()
    metric.update(torch.tensor([-6.0, -1.0]), torch.tensor([3, 1]))
    metric.update(torch.tensor(-5.0), torch.tensor(6))
    assert metric.compute()["reply_perplexity"].item() == pytest.approx(math.exp(12 / 10))


def test_perplexity_of_a_uniform_model_is_its_vocabulary():
    lengths = torch.tensor([4, 9, 1])
    found = computed(ReplyPerplexity(), -lengths * math.log(50.0), lengths)
    assert found["reply_perplexity"] == pytest.approx(50, rel=1e-6)


def test_perplexity_of_an_impossible_reply_is_infinite():
    assert computed(ReplyPerplexity(), torch.tensor([-math.inf]), torch.tensor([2]))["reply_perplexity"] == math.inf


@pytest.mark.parametrize("log_prob", [3.2, math.nan, math.inf])
def test_perplexity_refuses_what_is_no_log_probability(log_prob):
    with pytest.raises(ValueError, match="log-probabilities must be numbers up to 0"):
        ReplyPerplexity().update(torch.tensor([log_prob]), torch.tensor([2]))


def test_perplexity_refuses_different_shapes():
    with pytest.raises(ValueError, match="shapes differ"):
        ReplyPerplexity().update(torch.tensor([-1.0, -2.0]), torch.tensor([2]))
