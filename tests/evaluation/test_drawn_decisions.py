"""Which decisions get replies: drawn alike in all runs, from all of them or as many from each stratum of depth."""

from __future__ import annotations

import logging
import random
from collections import Counter

from esc_lab.config.evaluate import GenerationConfig
from esc_lab.evaluation.decisions import draw_decisions

KEYS = [(f"d{number}", turn) for number in range(30) for turn in range(1, 2 * number, 2)]


def test_strata_have_equal_shares(caplog):
    settings = GenerationConfig(decisions=31, depths=[5, 10, 15, 20, 25, 31])
    with caplog.at_level(logging.WARNING):
        drawn = draw_decisions(KEYS, settings)
    turns = Counter(next(low for low in (25, 20, 15, 10, 5, 0) if turn >= low) for _, turn in drawn)
    assert turns == {5: 7, 10: 6, 15: 6, 20: 6, 25: 6}
    assert max(turn for _, turn in drawn) <= 30
    assert drawn == draw_decisions(random.Random(3).sample(KEYS, len(KEYS)), settings)
    assert not caplog.text


def test_a_stratum_that_is_short_says_so(caplog):
    drawn = draw_decisions(KEYS, GenerationConfig(decisions=20, depths=[0, 10, 56, 58]))
    assert Counter(turn // 56 for _, turn in drawn)[1] == 1  # of the longest dialogue alone
    assert "after 56 to 57 turns there are 1 decisions, not 6" in caplog.text
    everything = draw_decisions(KEYS, GenerationConfig(depths=[0, 10]))
    assert everything == {key for key in KEYS if key[1] < 10}


def test_without_strata_they_are_drawn_as_before():
    assert draw_decisions(KEYS, GenerationConfig()) is None
    few = draw_decisions(KEYS, GenerationConfig(decisions=4))
    assert sorted(few) == [("d10", 15), ("d12", 1), ("d15", 3), ("d18", 19)]
    assert draw_decisions(KEYS, GenerationConfig(decisions=10**6)) == {*KEYS}
