"""Numbers of a preference data set, by hand."""

from __future__ import annotations

import math

import pytest

from esc_lab.config.search import PreferenceConfig
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.search.statistics import compute_statistics
from esc_lab.search.tree import Tree
from tests.search.hand_made import AFF, CP, EV, NAMES, RNT, SI, START, hand_made, make


def test_statistics() -> None:
    tree = hand_made()
    empty = Tree(START, iterations=2)
    found = compute_statistics(make(tree, PreferenceConfig()), [tree, empty], NAMES)
    assert (found.trees, found.trees_without_dialogues, found.iterations, found.ended_leaves) == (2, 1, 25, 6)
    assert (found.dialogues, found.turns_per_dialogue) == (3, 6)
    assert (found.preferred, found.preferred_found, found.preferred_seed, found.preferred_alone) == (6, 4, 2, 1)
    assert (found.rejected, found.pairs, found.pairs_unjudged, found.pairs_inverted) == (3, 5, 1, 3)
    assert (found.gap_quartile_1, found.gap_quartile_2, found.gap_quartile_3) == pytest.approx(
        (-0.925, -0.595, -0.215)
    )  # of -1, -0.9, -0.29, 0.01
    assert (found.depth_mean, found.depth_max) == (pytest.approx(11 / 6), 3)
    assert found.chosen_strategies == {**dict.fromkeys(NAMES, 0), EV: 2, SI: 1, AFF: 1, CP: 1, RNT: 1}
    assert found.rejected_strategies == {**dict.fromkeys(NAMES, 0), CP: 1, AFF: 1, SI: 1}
    metrics = found.metrics()
    assert (metrics["search/pairs"], metrics["search/chosen/" + EV], metrics["search/rejected/" + RNT]) == (5, 2, 0)
    assert metrics["search/gap_quartile_2"] == pytest.approx(-0.595)
    assert ("pairs", "5") in found.table()
    assert found.strategy_table()[NAMES.index(EV)] == (EV, "2", "0")


def test_statistics_of_replies_without_judgements_and_of_equal_values() -> None:
    tree = hand_made()
    tree.nodes[12].value = 0.2  # as node 13, beside which it is rejected
    found = compute_statistics(make(tree, PreferenceConfig(rejected_visits=0)), [tree], NAMES)
    assert (found.pairs, found.pairs_unjudged, found.pairs_inverted) == (7, 3, 2)


def test_equal_replies_in_other_places_count_again() -> None:
    def dialogue(tree_id: str, first: str) -> Dialogue:
        other = Reply("no", (CP,), 0.0, 1)
        turns = (
            Turn("seeker", Reply(first)),
            Turn("supporter", Reply("yes", (AFF,), 1.0, 2), (other,)),
            Turn("supporter", Reply("yes", (AFF,), 1.0, 2), (other,)),
        )
        return Dialogue(turns, "cso", tree_id, meta={"search": {"seed_turns": []}})

    once = [dialogue("a", "hello"), dialogue("a", "hi"), dialogue("b", "hi")]
    found = compute_statistics([*once, *once], [], NAMES)
    assert (found.preferred, found.rejected, found.pairs, found.dialogues) == (6, 6, 6, 6)


def test_statistics_of_nothing() -> None:
    found = compute_statistics([], [Tree(START)], NAMES)
    assert found.gap_quartile_1 is None
    assert all(math.isfinite(value) for value in found.metrics().values())
    assert not any("gap" in name for name in found.metrics())
    assert len(found.table()) == 16
