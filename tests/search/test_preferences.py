"""The preference rule on a tree with every case of it and on random trees, and what becomes of it in files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_lab.config.search import PreferenceConfig
from esc_lab.data.corpora import read_dialogues, write_dialogues
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.errors import UserError
from esc_lab.search.preferences import find_extensions, find_preferences
from esc_lab.search.statistics import compute_statistics
from esc_lab.search.tree import Tree
from tests.search.hand_made import AFF, CP, EV, NAMES, RNT, SI, START, add, hand_made, make


@pytest.fixture
def tree() -> Tree:
    return hand_made()


PUBLISHED = {1: (3,), 2: (3,), 8: (9,), 11: (12,), 13: (12,), 15: ()}
CASES = {
    "wherever talks stand": (
        {"ended": False},
        (7, 8, 11, 15),
        {1: (3,), 2: (3,), 7: (3,), 8: (9,), 11: (12,), 13: (12,), 15: ()},
    ),
    "default": ({}, (8, 11, 15), PUBLISHED),
    "published": ({"rejected_visits": 0}, (8, 11, 15), {**PUBLISHED, 1: (3, 5), 2: (3, 5)}),
    "judged twice": ({"rejected_visits": 2}, (8, 11, 15), {**PUBLISHED, 1: (), 2: (), 8: ()}),
    "lower": ({"lower": True}, (8, 11, 15), {**PUBLISHED, 1: (), 2: (), 13: ()}),
    "just above": ({"preferred_min": 0.5001}, (8, 15), {1: (3,), 2: (3,), 8: (9,), 13: (11, 12), 15: ()}),
    "just below": ({"rejected_max": 0.4999}, (8, 11, 15), {**PUBLISHED, 1: (), 2: (), 8: ()}),
    "one more visit": ({"preferred_visits": 3}, (8, 15), {1: (3,), 2: (3,), 8: (9,), 13: (11, 12), 15: ()}),
    "visits of the seed": ({"preferred_visits": 101}, (), {}),
    "visits": (
        {"value": "max_n", "preferred_min": 4, "rejected_max": 3},
        (8, 12, 15),
        {1: (3, 7), 2: (3, 7), 8: (9,), 12: (11, 14), 13: (11, 14), 15: ()},
    ),
    "lower visits": (  # the seed's first reply was judged 4 times, node 2 six times
        {"value": "max_n", "preferred_min": 4, "rejected_max": 4, "lower": True},
        (8, 12, 15),
        {1: (3, 7), 2: (3, 7), 8: (9,), 12: (11, 14), 13: (11, 14), 15: ()},
    ),
    "quantiles": (
        {"threshold": "quantile", "preferred_min": 0.75, "rejected_max": 0.25},
        (8, 15),
        {1: (), 2: (), 8: (), 13: (12,), 15: ()},
    ),
    "quantile between two": (
        {"threshold": "quantile", "preferred_min": 0.8, "rejected_max": 0.0},
        (8,),
        {1: (2,), 8: ()},
    ),
    "quantile of visits": (  # of leaves 1 1 2 4 9, of all 1 1 1 2 3 4 5 6 9
        {"value": "max_n", "threshold": "quantile", "preferred_min": 1.0, "rejected_max": 0.25},
        (8, 12),
        {1: (3,), 2: (3,), 8: (9,), 12: (14,)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_case_of_the_rule(name: str, tree: Tree) -> None:
    options, leaves, rejected = CASES[name]
    found = find_preferences(tree, PreferenceConfig(**options))
    assert found.leaves == leaves
    assert found.rejected == rejected
    assert list(found.rejected) == sorted(rejected)
    assert found.preferred == rejected.keys()


def test_limits_that_were_used(tree: Tree) -> None:
    found = find_preferences(tree, PreferenceConfig(threshold="quantile", preferred_min=0.8, rejected_max=0.25))
    assert (found.preferred_min, found.rejected_max) == (pytest.approx(0.78), 0.49)
    found = find_preferences(tree, PreferenceConfig(preferred_min=0.1, rejected_max=-0.1))
    assert (found.preferred_min, found.rejected_max) == (0.1, -0.1)


def test_quantiles_of_nothing_and_of_one(tree: Tree) -> None:
    rule = PreferenceConfig(threshold="quantile", preferred_min=0.9, rejected_max=0.9)
    for number in (9, 11, 12, 14, 15):
        tree.nodes[number].ended = False
    found = find_preferences(tree, rule)
    assert (found.leaves, found.preferred_min) == ((8,), None)
    tree.nodes[11].ended = True
    found = find_preferences(tree, rule)
    assert (found.leaves, found.preferred_min) == ((8, 11), 0.5)
    for node in tree.nodes[1:]:
        if not node.seed:
            node.visits = 0
    found = find_preferences(tree, rule)
    assert (found.preferred_min, found.rejected_max) == (None, None)
    assert found.rejected == {1: (), 8: ()}
    assert find_preferences(Tree(START), rule).leaves == ()


def test_a_seed_that_the_judge_dislikes(tree: Tree) -> None:
    """Under the published limits the planted value counts and may be used up; a quantile lets the seed pass."""
    tree.nodes[8].visits, tree.nodes[8].value = 115, (100 - 45) / 115
    assert 8 not in find_preferences(tree, PreferenceConfig()).leaves
    assert 8 in find_preferences(tree, PreferenceConfig(threshold="quantile", preferred_min=1.0)).leaves


def test_a_seed_that_does_not_end_needs_judgements_to_be_rejected(tree: Tree) -> None:
    tree.nodes[8].ended = False
    tree.nodes[1].visits, tree.nodes[1].value = 100, 0.0  # as if the seed were planted with 0
    assert 1 not in find_preferences(tree, PreferenceConfig(rejected_max=0.5)).rejected[2]
    tree.nodes[1].visits = 101
    assert find_preferences(tree, PreferenceConfig(rejected_max=0.5)).rejected[2] == (1, 3)


def test_equally_many_visits_are_not_lower(tree: Tree) -> None:
    tree.nodes[7].visits = 6  # as many as node 2; the seed's first reply was judged 4 times
    rule = PreferenceConfig(value="max_n", preferred_min=4, rejected_max=6, lower=True)
    rejected = find_preferences(tree, rule).rejected
    assert (rejected[1], rejected[2]) == ((3,), (3,))


@pytest.mark.parametrize("name", ["preferred_min", "rejected_max"])
def test_a_quantile_is_a_share(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}=1.5 is not a quantile"):
        find_preferences(Tree(START), PreferenceConfig(threshold="quantile", **{name: 1.5}))


def test_what_is_find_extensions(tree: Tree) -> None:
    assert find_extensions(tree, find_preferences(tree, PreferenceConfig())) == [16]
    assert find_extensions(tree, find_preferences(tree, PreferenceConfig(rejected_max=-3))) == [4, 10, 16]


def test_dialogues_hold_only_what_was_judged(tree: Tree) -> None:
    seed, short, long = make(tree, PreferenceConfig())

    def reply(number: int, strategy: str, value: float | None, visits: int) -> Reply:
        return Reply(f"reply {number}", (strategy,), value, visits)

    start = (Turn("supporter", Reply("Hello.")), Turn("seeker", Reply("They closed the shop.")))
    planned = reply(3, CP, 0.5, 1)
    informed = reply(12, SI, 0.49, 9)
    assert seed.turns == (
        *start,
        Turn("supporter", reply(1, EV, -0.5, 4), (planned,)),
        Turn("seeker", Reply("answer 1")),
        Turn("supporter", reply(8, SI, None, 0), (reply(9, AFF, 0.5, 1),)),
    )
    first = (*start, Turn("supporter", reply(2, AFF, -0.4, 6), (planned,)), Turn("seeker", Reply("answer 2")))
    assert short.turns == (
        *first,
        Turn("supporter", reply(11, CP, 0.5, 2), (informed,)),
        Turn("seeker", Reply("answer 11")),
    )
    assert long.turns == (
        *first,
        Turn("supporter", reply(13, EV, 0.2, 5), (informed,)),
        Turn("seeker", Reply("answer 13")),
        Turn("supporter", reply(15, RNT, 0.75, 4)),
    )
    assert [dialogue.meta for dialogue in (seed, short, long)] == [
        {
            "seed_dialogue": Dialogue((), "cso", "t", "Shop.", problem="Work", meta={"of": "the seed"}).id,
            "search": {"seed_turns": turns},
        }
        for turns in ([2, 4], [], [])
    ]
    assert {(d.tree_id, d.inventory, d.situation, d.problem) for d in (seed, short, long)} == {
        ("t", "cso", "Shop.", "Work")
    }


def test_values_are_free_of_rounding_noise(tree: Tree) -> None:
    for _ in range(7):
        tree.back_up(8, 0.3)
    assert tree.nodes[8].judgement[1] != 0.3
    assert make(tree, PreferenceConfig())[0].turns[4].reply == Reply("reply 8", (SI,), 0.3, 7)


# Values and quantiles are such that every interpolation is exact.
VALUES = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0])


def rules(threshold: str, limits: list[float]) -> st.SearchStrategy[PreferenceConfig]:
    return st.builds(
        PreferenceConfig,
        value=st.sampled_from(["max_q", "max_n"]),
        threshold=st.just(threshold),
        preferred_min=st.sampled_from(limits),
        preferred_visits=st.integers(0, 2),
        rejected_max=st.sampled_from(limits),
        rejected_visits=st.integers(0, 2),
        lower=st.booleans(),
        ended=st.booleans(),
    )


RULES = rules("absolute", [-0.5, 0.0, 0.5, 1.0, 2.0, 3.0]) | rules("quantile", [0.0, 0.25, 0.5, 1.0])


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    tree = Tree(START)
    tree.nodes[0].seed = draw(st.booleans())
    for _ in range(draw(st.integers(0, 10))):
        open_ = [
            n for n, node in enumerate(tree.nodes) if node.text is not None and not node.ended and not node.children
        ]
        if not open_:
            break
        parent = draw(st.sampled_from(open_))
        names = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=4, unique=True))
        for index, name in enumerate(names):
            seed = tree.nodes[parent].seed and index == 0
            text = f" ({name}) {len(tree.nodes)}" if seed or draw(st.integers(0, 3)) else None
            judged = draw(st.integers(0, 4)) if text else 0
            mean = draw(VALUES) if judged else 0.0
            visits = judged + 100 if seed else judged
            value = (100 + judged * mean) / visits if seed else mean
            answer, ended = draw(st.sampled_from(["", "yes", " no "])), draw(st.booleans())
            fields = {"text": text, "answer": answer, "ended": ended} if text else {"lost": draw(st.booleans())}
            add(tree, parent, name, visits, value, **{"seed": seed, **fields})
    return tree


Decision = dict[str, Any]


def ways(nodes: list[Decision], number: int) -> Iterator[list[int]]:
    """All ways from a node's children down, to leaves and to inner nodes."""
    for child in nodes[number]["children"]:
        yield [child]
        yield from ([child, *way] for way in ways(nodes, child))


def exact_quantile(values: list[float], q: float) -> float | None:
    if not values:
        return None
    ordered = [Fraction(value) for value in sorted(values)]
    position = Fraction(q) * (len(ordered) - 1)
    below, above = ordered[math.floor(position)], ordered[math.ceil(position)]
    return float(below + (above - below) * (position - math.floor(position)))


def read_rule(tree: Tree, rule: PreferenceConfig) -> tuple[set[int], dict[int, set[int]]]:
    """Preferred leaves and what is rejected beside each preferred decision, straight from the words of the rule."""
    nodes: list[Decision] = tree.state()["nodes"]
    measure = {"max_q": "value", "max_n": "visits"}[rule.value]
    for node in nodes:
        node["judged"] = node["visits"] - (100 if node["seed"] else 0)

    def stops_here(node: Decision) -> bool:
        texts = [nodes[child]["text"] for child in node["children"]]
        return bool(node["ended"] or (not rule.ended and node["text"] is not None and set(texts) <= {None}))

    least: float | None = rule.preferred_min
    most: float | None = rule.rejected_max
    if rule.threshold == "quantile":
        found = [node for node in nodes[1:] if not node["seed"] and node["judged"] >= 1]
        least = exact_quantile([node[measure] for node in found if stops_here(node)], rule.preferred_min)
        most = exact_quantile([node[measure] for node in found], rule.rejected_max)
    good = []
    for way in ways(nodes, 0):
        leaf = nodes[way[-1]]
        passes = least is not None and leaf[measure] >= least
        if rule.threshold == "quantile" and leaf["seed"]:
            passes = True
        if stops_here(leaf) and leaf["visits"] >= rule.preferred_visits and passes:
            good.append(way)
    preferred = {number for way in good for number in way}
    rejected: dict[int, set[int]] = {number: set() for number in preferred}
    for number in preferred:
        for other in nodes[nodes[number]["parent"]]["children"]:
            node = nodes[other]
            if other in preferred or node["text"] is None or most is None:
                continue
            if node[measure] > most or node["judged"] < rule.rejected_visits:
                continue
            if rule.lower and not below(node, nodes[number], measure):
                continue
            rejected[number].add(other)
    return {way[-1] for way in good}, rejected


def below(node: Decision, preferred: Decision, measure: str) -> bool:
    def judged(one: Decision) -> float:
        if measure == "visits":
            return one["judged"]
        total = one["value"] * one["visits"] - (100 if one["seed"] else 0)
        return round(total / one["judged"], 6)

    if not preferred["judged"]:
        return True
    return bool(node["judged"]) and judged(node) < judged(preferred)


@given(tree=trees(), rule=RULES)
@settings(max_examples=300)
def test_rule_on_random_trees(tree: Tree, rule: PreferenceConfig) -> None:
    found = find_preferences(tree, rule)
    leaves, rejected = read_rule(tree, rule)
    assert set(found.leaves) == leaves
    assert {number: set(others) for number, others in found.rejected.items()} == rejected
    if rule.lower and rule.value == "max_q":
        assert compute_statistics(make(tree, rule), [tree], NAMES).pairs_inverted == 0


Pair = tuple[tuple[tuple[str, Reply], ...], Reply, Reply]


def pairs_of(found: list[Dialogue]) -> set[Pair]:
    """All pairs with their histories, as texts and strategies."""

    def plain(reply: Reply) -> Reply:
        return replace(reply, value=None, visits=None)

    return {
        (
            tuple((before.speaker, plain(before.reply)) for before in dialogue.turns[:index]),
            plain(turn.reply),
            plain(other),
        )
        for dialogue in found
        for index, turn in enumerate(dialogue.turns)
        for other in turn.rejected
    }


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search") / "made.jsonl"


@given(tree=trees(), rule=RULES)
@settings(max_examples=60)
def test_files_hold_the_same(tree: Tree, rule: PreferenceConfig, path: Path) -> None:
    rule = replace(rule, preferred_visits=1, preferred_min=0.0)  # so that there are some
    made = make(tree, rule)
    if not made:
        return
    assert write_dialogues(made, path, "jsonl") == {}
    assert read_dialogues(path) == made
    pairs = pairs_of(made)
    assert len(pairs) == compute_statistics(made, [tree], NAMES).pairs
    if pairs:
        write_dialogues(made, path, "esc_pro_pairs")
        assert pairs_of(read_dialogues(path)) == pairs
