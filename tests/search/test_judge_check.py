"""AUC of a judge against SciPy and by hand, and the contexts that it is measured on."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.errors import UserError
from esc_lab.search.judge_check import JudgeCheck, draw_check_pairs, measure_judge
from esc_lab.statistics.bootstrap import draw_weights

SCORES = st.sampled_from([0.0, 0.1, 1.5, 2.0, 3.9, 4.0])


@given(scores=st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=12))
def test_auc_is_that_of_mann_whitney(scores: list[tuple[float, float]]) -> None:
    gold, shuffled = map(list, zip(*scores, strict=True))
    groups = [str(number) for number in range(len(scores))]
    expected = mannwhitneyu(gold, shuffled).statistic / (len(gold) * len(shuffled))
    assert measure_judge(gold, shuffled, groups, seed=0, draws=2).auc == pytest.approx(expected, abs=1e-12)
    assert measure_judge(shuffled, gold, groups, seed=0, draws=2).auc == pytest.approx(1 - expected, abs=1e-12)


def test_auc_counts_ties_half() -> None:
    assert measure_judge([3.0, 2.0], [2.0, 1.0], ["a", "b"], seed=0).auc == 0.875
    assert measure_judge([1.0], [1.0], ["a"], seed=0).auc == 0.5


@pytest.mark.parametrize(("gold", "shuffled"), [([], []), ([float("nan")], [1.0])])
def test_auc_needs_scores(gold: list[float], shuffled: list[float]) -> None:
    with pytest.raises(ValueError, match="score"):
        measure_judge(gold, shuffled, ["a"] * len(gold), seed=0)


def test_interval_is_that_of_repeated_contexts() -> None:
    """Each draw by hand: the contexts of a dialogue repeated as often as it was drawn."""
    chance = random.Random(3)
    groups = ["a"] * 4 + ["b"] * 2 + ["c"] * 3 + ["d"]
    gold = [chance.choice([1.0, 2.0, 3.0, 4.0]) for _ in groups]
    shuffled = [chance.choice([0.0, 1.0, 2.0, 3.0]) for _ in groups]
    found = measure_judge(gold, shuffled, groups, seed=5, draws=200)
    drawn = []
    for weights in draw_weights(4, 200, seed=5):
        times = dict(zip("abcd", weights.tolist(), strict=True))
        good = [score for score, group in zip(gold, groups, strict=True) for _ in range(times[group])]
        foreign = [score for score, group in zip(shuffled, groups, strict=True) for _ in range(times[group])]
        drawn.append(mannwhitneyu(good, foreign).statistic / len(good) ** 2)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=1e-12)
    assert (found.pairs, found.dialogues) == (10, 4)


def test_interval_covers_the_truth() -> None:
    """Gold and shuffled scores from the same normal distribution, alike within a dialogue: the AUC is one half."""
    covered = 0
    groups = [str(number) for number in range(40) for _ in range(3)]
    for trial in range(100):
        draw = np.random.default_rng(trial)
        shared = np.repeat(draw.normal(size=(2, 40)), 3, axis=1)
        gold, shuffled = (shared + draw.normal(size=(2, 120))).tolist()
        found = measure_judge(gold, shuffled, groups, seed=trial, draws=400)
        covered += found.low <= 0.5 <= found.high
    assert 85 <= covered <= 100


def test_one_dialogue_says_nothing_about_others() -> None:
    assert measure_judge([1.0, 2.0], [0.0, 0.5], ["a", "a"], seed=0) == JudgeCheck(1.0, 0.0, 1.0, 2, 1)
    with pytest.raises(ValueError, match="each of 1 contexts"):
        measure_judge([1.0, 2.0], [0.0, 0.5], ["a"], seed=0)


def test_trust() -> None:
    assert JudgeCheck(0.6, 0.5, 0.7, 9, 3).trusted
    assert not JudgeCheck(0.59, 0.5, 0.7, 9, 3).trusted


def talk(name: str, decisions: int, *, opening: bool = False) -> Dialogue:
    turns = [Turn("supporter", Reply(f"{name} opens", ("Others",)))] if opening else []
    for number in range(decisions):
        turns.append(Turn("seeker", Reply(f"{name} says {number}")))
        turns.append(Turn("supporter", Reply(f"{name} replies {number}", ("Question",)), (Reply("no"),)))
    return Dialogue((*turns, Turn("seeker", Reply("bye"))), "esconv", tree_id=name)


@given(
    sizes=st.lists(st.integers(0, 6), min_size=2, max_size=6).filter(lambda sizes: sum(map(bool, sizes)) > 1),
    count=st.integers(2, 30),
    seed=st.integers(0, 9),
)
def test_contexts(sizes: list[int], count: int, seed: int) -> None:
    dialogues = [talk(str(number), size, opening=number % 2 == 0) for number, size in enumerate(sizes)]
    pairs = draw_check_pairs(dialogues, count, seed)
    assert pairs == draw_check_pairs(dialogues, count, seed)
    rest = sum(sizes) - max(sizes)
    possible = min(sum(sizes), 2 * rest)  # no more of one dialogue than of all others
    assert min(count, possible) - 1 <= len(pairs) <= count
    assert len(pairs) >= 2
    assert Counter(pair.gold for pair in pairs) == Counter(pair.shuffled for pair in pairs)
    assert len({pair.gold for pair in pairs}) == len(pairs)
    for history, gold, shuffled, name in pairs:
        whole = dialogues[int(name)]
        opening = whole.turns[0].speaker == "supporter"
        index = len(history) + opening
        assert history == tuple(Turn(turn.speaker, turn.reply) for turn in whole.turns[opening:index])
        assert gold == Turn("supporter", whole.turns[index].reply)
        assert history[0].speaker == "seeker"
        assert shuffled.reply.text.split()[0] != name


def test_contexts_come_from_many_dialogues() -> None:
    pairs = draw_check_pairs([talk(str(number), 5) for number in range(10)], 10, 0)
    assert Counter(pair.tree_id for pair in pairs) == Counter({str(number): 1 for number in range(10)})
    assert pairs != draw_check_pairs([talk(str(number), 5) for number in range(10)], 10, 1)


def test_dialogues_of_one_tree_share_their_contexts() -> None:
    same = [talk("a", 2), talk("a", 3)]
    with pytest.raises(UserError, match="fewer than two dialogues"):
        draw_check_pairs(same, 4, 0)
    pairs = draw_check_pairs([*same, talk("b", 9)], 100, 0)
    assert Counter(pair.tree_id for pair in pairs) == {"a": 3, "b": 3}
    with pytest.raises(UserError, match="1 gold replies"):
        draw_check_pairs([talk("a", 1), talk("b", 1)], 1, 0)
