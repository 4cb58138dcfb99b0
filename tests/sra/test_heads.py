"""Heads and adherence: a planted head, noise, zeros, and correlations computed one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from esc_lab.sra.heads import leave_heads_out, relate_heads, score_top_heads


def attention_of_heads(n=600, shape=(3, 4), carrier=(1, 2), strength=1.5, seed=0):
    """Heads of which one carries adherence; runs differ in attention and adherence alike, which is not to count."""
    draw = np.random.default_rng(seed)
    number = np.arange(n) % 3
    log = draw.normal(size=(n, *shape)) + 2.0 * number[:, None, None]
    chance = 1 / (1 + np.exp(-strength * (log[:, *carrier] - 2 * number) - 2 * (number - 1)))
    adheres = draw.random(n) < chance
    return np.exp(log - 8), adheres, [f"r{i}" for i in number], [f"d{i // 6}" for i in range(n)]


def test_planted_head_is_found_and_holds_up_on_other_dialogues():
    heads, adheres, run, dialogue = attention_of_heads()
    found = relate_heads(heads, adheres, run)
    assert found.shape == (3, 4)
    assert np.unravel_index(found.argmax(), found.shape) == (1, 2)
    others = np.delete(found.ravel(), 6)
    assert found[1, 2] > 0.4
    assert np.abs(others).max() < 0.15
    change = leave_heads_out(heads, adheres, run)
    assert np.unravel_index(change.argmin(), change.shape) == (1, 2)
    assert change[1, 2] < -0.05
    one, four = score_top_heads(heads, adheres, run, dialogue)  # 16 and 64 are more than there are
    assert (one.k, four.k) == (1, 4)
    assert one.chosen == pytest.approx(found[1, 2], abs=0.02)
    assert one.random < 0.3 < one.chosen
    assert four.random < four.chosen
    assert one.all_heads == four.all_heads < one.chosen


def test_heads_agree_with_scipy():
    heads, adheres, _, _ = attention_of_heads(n=50)
    found, change = (f(heads, adheres, ["r"] * 50) for f in (relate_heads, leave_heads_out))

    def correlation(attention):
        return stats.pearsonr(np.log(attention), adheres).statistic

    for layer, head in np.ndindex(3, 4):
        assert found[layer, head] == pytest.approx(correlation(heads[:, layer, head]))
        rest = np.delete(heads.reshape(50, -1), 4 * layer + head, axis=1).mean(axis=1)
        assert change[layer, head] == pytest.approx(correlation(rest) - correlation(heads.mean(axis=(1, 2))))


def test_choosing_among_noise_does_not_flatter():
    heads, adheres, run, dialogue = attention_of_heads(n=240, shape=(12, 12), carrier=(0, 0), strength=0.0)
    assert np.max(relate_heads(heads, adheres, run)) > 0.15  # the best of 144 by chance
    for row in score_top_heads(heads, adheres, run, dialogue, ks=(1, 4)):
        assert abs(row.chosen) < 0.15
        assert abs(row.random) < 0.1


def test_heads_with_zeros_get_nan_and_are_not_chosen():
    heads, adheres, run, dialogue = attention_of_heads()
    heads[3, 1, 2] = 0
    found = relate_heads(heads, adheres, run)
    assert math.isnan(found[1, 2])
    assert np.isnan(found).sum() == 1
    assert np.isfinite(leave_heads_out(heads, adheres, run)).all()
    one, eleven = score_top_heads(heads, adheres, run, dialogue, ks=(1, 11, 12))
    assert one.k == 1
    assert abs(one.chosen) < 0.2
    assert eleven.chosen == pytest.approx(eleven.random)  # eleven of eleven
    assert eleven.all_heads > eleven.chosen  # the planted head counts among all


def test_a_lone_head_cannot_be_left_out():
    heads, adheres, run, _ = attention_of_heads(shape=(1, 1), carrier=(0, 0))
    assert np.isnan(leave_heads_out(heads, adheres, run)).all()
    assert relate_heads(heads, adheres, run)[0, 0] > 0.4


def test_heads_in_other_order_give_the_same():
    heads, adheres, run, dialogue = attention_of_heads()
    order = np.random.default_rng(0).permutation(len(run))
    mixed = (heads[order], adheres[order], [run[i] for i in order], [dialogue[i] for i in order])
    assert relate_heads(*mixed[:3]) == pytest.approx(relate_heads(heads, adheres, run))
    for before, after in zip(score_top_heads(heads, adheres, run, dialogue), score_top_heads(*mixed), strict=True):
        assert (after.chosen, after.random) == pytest.approx((before.chosen, before.random))


def test_head_shapes_must_agree():
    heads, adheres, run, dialogue = attention_of_heads(n=12)
    for wrong in ((heads[:, 0], adheres, run), (heads, adheres[1:], run), (heads, adheres, run[1:])):
        with pytest.raises(ValueError, match="do not agree"):
            relate_heads(*wrong)
    with pytest.raises(ValueError, match="11 dialogue labels"):
        score_top_heads(heads, adheres, run, dialogue[1:])
