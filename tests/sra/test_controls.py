"""Controls of net attention: levels over planted phrases and orders, their spread, and contrasts that are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from esc_lab.sra.controls import summarize_controls
from esc_lab.sra.relations import compare_paired, compare_with_first
from esc_lab.sra.sample import MeasuredReply, ReplySample

EFFECT = {"short chat message": 0.12, "plain text reply": -0.08, "Gentle Humour": 0.28}
PLACE = {"before": 0.2, "after": 0.0}
LEVEL = {"a": 0.1, "b": 0.4}  # of the runs


def planted(counts=(3, 3), noise=0.0):
    """Replies whose net is the sum of the effects of run, phrase and place; `counts` by place."""
    draw = np.random.default_rng(0)
    replies = []
    for (run, level), (phrase, of_phrase), (place, of_place) in product(LEVEL.items(), EFFECT.items(), PLACE.items()):
        for number in range(counts[place == "after"]):
            control = 0.01 * math.exp(-(level + of_phrase + of_place + draw.normal(0, noise)))
            strategy = f"{phrase}, {place}"  # so that a reply of the other run matches
            reply = MeasuredReply(run, f"d{number}", 3, strategy, 0.01, control, 1.0, None, phrase=phrase, place=place)
            replies.append(reply)
    return replies


@pytest.mark.parametrize("counts", [(3, 3), (6, 2)])
def test_each_phrase_and_order_counts_once(counts):
    """However many replies met a phrase or an order: the level is that of an even mix."""
    for row in summarize_controls(ReplySample(planted(counts), 20, 1)):
        assert row.level.value == pytest.approx(LEVEL[row.run] + np.mean([*EFFECT.values()]) + 0.1)
        assert row.spread == pytest.approx(np.std([*EFFECT.values()], ddof=1))
        assert row.order.value == pytest.approx(0.2)
        assert {name: n for name, (_, n) in row.phrases.items()} == dict.fromkeys(EFFECT, sum(counts))
        for name, (mean, _) in row.phrases.items():
            assert mean.value == pytest.approx(LEVEL[row.run] + EFFECT[name] + 0.1)


def test_intervals_are_over_dialogues():
    exact, noisy = (summarize_controls(ReplySample(planted(noise=noise), 200, 1))[0] for noise in (0.0, 0.5))
    assert exact.level.high - exact.level.low == pytest.approx(0, abs=1e-9)
    apart = [replace(reply, dialogue=reply.phrase) for reply in planted()]
    (few, _) = summarize_controls(ReplySample(apart, 200, 1))  # a phrase of one dialogue is missing in many draws
    assert few.level.value == pytest.approx(exact.level.value)
    assert math.isnan(few.level.low)
    assert noisy.level.high - noisy.level.low > 0.1


def test_runs_without_phrases_have_no_row_and_one_phrase_has_no_spread():
    replies = planted()
    assert summarize_controls(ReplySample([replace(reply, phrase="", place="") for reply in replies], 5, 1)) == []
    single = [reply for reply in replies if reply.phrase == "Gentle Humour" and reply.place == "after"]
    (row, _) = summarize_controls(ReplySample(single, 5, 1))
    assert math.isnan(row.spread)
    assert math.isnan(row.order.value)
    assert row.level.value == pytest.approx(LEVEL["a"] + 0.28)


def test_contrasts_are_free_of_the_words_and_refused_under_others():
    found = compare_paired(ReplySample(planted(), 20, 1), "a", "b")
    assert found.sham_net.value == pytest.approx(LEVEL["b"] - LEVEL["a"])
    apart = [replace(reply, dialogue=f"{reply.run} {reply.dialogue}") for reply in planted()]
    assert compare_with_first(ReplySample(apart, 20, 1)) == []
    assert [row.second for row in compare_with_first(ReplySample(planted(), 20, 1))] == ["b"]
    other = [replace(reply, place="after") if reply.run == "b" else reply for reply in planted()]
    with pytest.raises(ValueError, match="no contrast under unequal words"):
        compare_paired(ReplySample(other, 20, 1), "a", "b")
