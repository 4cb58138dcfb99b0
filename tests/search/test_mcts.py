"""The search against a plain sequential one, and what several leaves in flight must not change."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_lab.config.search import MCTSConfig
from esc_lab.data.dialogue import Reply, Turn
from esc_lab.search.mcts import Search, SeedDecision
from esc_lab.search.preferences import find_preferences
from esc_lab.search.tree import Tree
from tests.search.oracle import REGIMES, START, Oracle, Regime, grow, run

NAMES = ("Affirmation", "Question", "Information", "Others")
SEED = (
    SeedDecision("Question", "What happened?", "They closed the shop."),
    SeedDecision("Affirmation", "You did well there.", "Thanks, bye."),
)


@dataclass
class Plain:
    """A node of the sequential search."""

    parent: Plain | None
    strategy: str
    prior: float
    n: int = 0
    q: float = 0.0
    text: str | None = None
    answer: str | None = None
    end: bool = False
    scorings: int = 0
    children: list[Plain] = field(default_factory=list)

    def talk(self) -> tuple[Turn, ...]:
        if self.parent is None:
            return START
        turns = (*self.parent.talk(), Turn("supporter", Reply(self.text or "", (self.strategy,))))
        return (*turns, Turn("seeker", Reply(self.answer))) if self.answer else turns


class Sequential:
    """The published search, one call after another, as the paper's code orders it."""

    def __init__(self, constants: MCTSConfig, oracle: Oracle) -> None:
        self.constants, self.oracle = constants, oracle
        self.root = Plain(None, "", 1.0)
        self.ended = 0

    def plant(self) -> None:
        node = self.root
        node.n, node.q = 100, 1.0
        for number, decision in enumerate(SEED):
            self.expand(node, decision.strategy)
            node = next(child for child in node.children if child.strategy == decision.strategy)
            node.n, node.q, node.text, node.answer = 100, 1.0, decision.text, decision.answer
            node.end = number == len(SEED) - 1
        self.ended = 1

    def expand(self, node: Plain, gold: str | None = None) -> None:
        ratings = self.oracle.rate(node.talk(), 0)
        assert ratings is not None
        total = sum(math.exp(value / 5) for value in ratings.values())
        found = {name: math.exp(value / 5) / total for name, value in ratings.items()}
        if gold and gold not in found:
            found = {name: 0.9 * value for name, value in found.items()} | {gold: 0.1}
        node.children = [Plain(node, name, prior) for name, prior in found.items()]

    def reach(self, node: Plain) -> None:
        assert node.parent is not None
        before = node.parent.talk()
        node.text = self.oracle.reply(before, node.strategy, 0)
        answered = self.oracle.answer((*before, Turn("supporter", Reply(node.text or "", (node.strategy,)))), 0)
        assert answered is not None
        node.answer, node.end = answered.text, answered.ended
        self.ended += node.end

    def score(self, talk: tuple[Turn, ...], sample: int) -> float:
        value = self.oracle.judge(talk[1:], sample)  # without the opening
        assert value is not None
        return value

    def rollout(self, node: Plain) -> float:
        before = node.parent.talk() if node.parent else START
        talk = (*before, Turn("supporter", Reply(node.text or "", (node.strategy,))))
        scores = [self.score(talk, node.scorings)]
        node.scorings += 1
        talk, end = node.talk(), node.end
        for _ in range(self.constants.rollout_rounds):
            if end:
                break
            ratings = self.oracle.rate(talk, 1)
            assert ratings is not None
            name = max(ratings, key=ratings.__getitem__)
            talk = (*talk, Turn("supporter", Reply(self.oracle.reply(talk, name, 1) or "", (name,))))
            scores.append(self.score(talk, 1))
            answered = self.oracle.answer(talk, 1)
            assert answered is not None
            talk, end = (*talk, Turn("seeker", Reply(answered.text))), answered.ended
        return sum(scores) / len(scores) - 3

    def value(self, node: Plain) -> float:
        assert node.parent is not None
        return node.q + self.constants.c * node.prior * math.sqrt(node.parent.n) / (node.n + 1)

    def run(self) -> int:
        iterations = 0
        while iterations < self.constants.max_iterations:
            leaf = self.root
            while leaf.children:
                leaf = max(leaf.children, key=self.value)
            if leaf.parent and leaf.text is None:
                self.reach(leaf)
            enough = iterations >= self.constants.min_iterations and self.ended >= self.constants.min_ended
            if not leaf.end and (enough or self.ended >= self.constants.max_ended):
                break
            target = leaf
            if not leaf.end:
                self.expand(leaf)
                target = max(leaf.children, key=lambda child: child.prior)
                self.reach(target)
            reward = self.rollout(target)
            node: Plain | None = target
            while node:
                node.q = (node.q * node.n + reward) / (node.n + 1)
                node.n += 1
                node = node.parent
            iterations += 1
        return iterations


class Valued(Sequential):
    """The search without simulation: a new leaf is judged, a leaf that was judged is answered and expanded."""

    def write(self, node: Plain) -> float:
        assert node.parent is not None
        node.text = self.oracle.reply(node.parent.talk(), node.strategy, 0)
        return self.judge(node)

    def judge(self, node: Plain) -> float:
        assert node.parent is not None
        said = Turn("supporter", Reply(node.text or "", (node.strategy,)))
        node.scorings += 1
        return self.score((*node.parent.talk(), said), node.scorings - 1) - 3

    def run(self) -> int:
        for iterations in range(self.constants.max_iterations):
            node: Plain | None = self.root
            while node and node.children:
                node = max(node.children, key=self.value)
            assert node is not None
            enough = iterations >= self.constants.min_iterations and self.ended >= self.constants.min_ended
            stop = enough or self.ended >= self.constants.max_ended
            if node.parent and node.text is None:
                if stop:
                    return iterations
                reward = self.write(node)
            else:
                if node.parent and not node.answer and not node.end:
                    answered = self.oracle.answer(node.talk(), 0)
                    assert answered is not None
                    node.answer, node.end = answered.text, answered.ended
                    self.ended += node.end
                if node.end:
                    reward = self.judge(node)
                elif stop:
                    return iterations
                else:
                    self.expand(node)
                    node = max(node.children, key=lambda child: child.prior)
                    reward = self.write(node)
            while node:
                node.q = (node.q * node.n + reward) / (node.n + 1)
                node.n += 1
                node = node.parent
        return self.constants.max_iterations


def assert_equal(tree: Tree, number: int, plain: Plain) -> None:
    node = tree.nodes[number]
    assert (node.strategy or "", node.visits, node.ended) == (plain.strategy, plain.n, plain.end)
    assert (node.text or None, node.answer or None) == (plain.text, plain.answer or None)
    assert node.value == pytest.approx(plain.q, abs=1e-12)
    assert node.prior == pytest.approx(plain.prior, abs=1e-12)
    assert len(node.children) == len(plain.children)
    for child, other in zip(node.children, plain.children, strict=True):
        assert_equal(tree, child, other)


@given(
    seed=st.integers(0, 10_000),
    c=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    planted=st.booleans(),
    simulate=st.booleans(),
    ending=st.sampled_from([0.02, 0.3, 0.9]),
    limits=st.tuples(st.integers(0, 20), st.integers(0, 3), st.integers(1, 6), st.integers(1, 40)),
)
@settings(max_examples=120)
def test_one_leaf_at_a_time_is_the_published_search(
    seed: int, c: float, planted: bool, simulate: bool, ending: float, limits: tuple[int, int, int, int]
) -> None:
    min_iterations, min_ended, max_ended, max_iterations = limits
    constants = MCTSConfig(
        c=c, min_iterations=min_iterations, min_ended=min_ended, max_ended=max_ended, max_iterations=max_iterations,
        simulate=simulate,
    )  # fmt: skip
    oracle = Oracle(NAMES, seed, ending=ending)
    search = run(Search(constants, START, NAMES, SEED if planted else ()), oracle)
    plain = (Sequential if simulate else Valued)(constants, oracle)
    if planted:
        plain.plant()
    assert plain.run() == search.tree.iterations
    assert_equal(search.tree, 0, plain.root)


@given(
    seed=st.integers(0, 10_000),
    in_flight=st.integers(1, 6),
    missing=st.sampled_from([0.0, 0.2, 0.6]),
    policy=st.sampled_from(["puct", "random", "best_of_n"]),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=100)
def test_the_order_of_results_changes_nothing(
    seed: int, in_flight: int, missing: float, policy: str, order: random.Random
) -> None:
    constants = MCTSConfig(
        min_iterations=15, max_ended=6, max_iterations=25, in_flight=in_flight, policy=policy, candidates=3
    )  # type: ignore[arg-type]
    oracle = Oracle(NAMES, seed, missing)
    in_order = run(Search(constants, START, NAMES, SEED), oracle)
    mixed = run(Search(constants, START, NAMES, SEED), oracle, order)
    assert mixed.tree.state() == in_order.tree.state()


@given(
    seed=st.integers(0, 10_000),
    in_flight=st.integers(1, 5),
    stop=st.integers(5, 200),
    planted=st.booleans(),
    simulate=st.booleans(),
)
@settings(max_examples=80)
def test_a_saved_search_goes_on_to_the_same_tree(
    seed: int, in_flight: int, stop: int, planted: bool, simulate: bool
) -> None:
    constants = MCTSConfig(min_iterations=15, max_ended=6, max_iterations=20, in_flight=in_flight, simulate=simulate)
    oracle = Oracle(NAMES, seed, 0.1)
    seed_path = SEED if planted else ()
    whole = run(Search(constants, START, NAMES, seed_path), oracle)
    search = Search(constants, START, NAMES, seed_path)
    calls = search.ask()
    for _ in range(stop):
        if not calls:
            break
        search.tell(calls[0], oracle.result(calls.pop(0)))
        calls += search.ask()
    loaded = Search.from_state(json.loads(json.dumps(search.state())), constants)
    assert run(loaded, oracle).tree.state() == whole.tree.state()


def test_a_seeded_tree_of_the_paper_stops_after_100_iterations_and_the_ended_leaves_selected_then() -> None:
    for seed in range(4):
        tree = run(Search(MCTSConfig(), START, NAMES, SEED), Oracle(NAMES, seed, ending=0.05)).tree
        again = sum(node.scorings - 1 for node in tree.nodes if node.ended and node.scorings)
        assert 100 <= tree.iterations <= 100 + again + 1


def test_missing_results_invent_nothing() -> None:
    constants = MCTSConfig(min_iterations=60, max_ended=60, max_iterations=60)
    tree = run(Search(constants, START, NAMES), Oracle(NAMES, 1, missing=0.3)).tree
    nodes = tree.nodes
    assert any(node.lost for node in nodes)
    for node in nodes:
        assert not (node.lost and (node.text or node.visits or node.children))
        assert len(node.children) in (0, *range(1, len(NAMES) + 1))
    uniform = [node for node in nodes if len(node.children) == 4 and {nodes[c].prior for c in node.children} == {0.25}]
    assert uniform  # ratings that were missing
    assert tree.iterations == 60
    assert nodes[0].visits < 60  # a rollout without a judgement is not backed up


def test_without_any_text_the_search_ends() -> None:
    class Silent(Oracle):
        def reply(self, *_: object) -> None:
            return None

    tree = run(Search(MCTSConfig(), START, NAMES), Silent(NAMES)).tree
    assert all(node.lost for node in tree.nodes[1:])
    assert tree.iterations == len(tree.nodes) - 1  # the simulated child, then each of its siblings


@pytest.mark.parametrize("own", [False, True])
def test_which_replies_are_judged(own: bool) -> None:
    constants = MCTSConfig(min_iterations=3, min_ended=0, judge_own_turn=own, rollout_rounds=4)
    oracle = Oracle(NAMES, 1, ending=0.0)
    search = Search(constants, START, NAMES)
    talks = []
    calls = search.ask()
    while calls:
        call = calls.pop(0)
        if call.kind == "judge":
            talks.append(call.history)
        search.tell(call, oracle.result(call))
        calls += search.ask()
    # The root has no reply of its own; after that each iteration has the child's, four of the rollout, and its own.
    assert len(talks) == 5 + (5 + own) * 2
    assert all(talk[0].speaker == "seeker" and talk[-1].speaker == "supporter" for talk in talks)


@given(
    seed=st.integers(0, 10_000),
    in_flight=st.integers(2, 8),
    missing=st.sampled_from([0.0, 0.2]),
    policy=st.sampled_from(["puct", "random", "best_of_n"]),
    judged=st.sampled_from(["simulated", "own too", "own"]),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_several_leaves_in_flight_give_the_tree_of_one(
    seed: int, in_flight: int, missing: float, policy: str, judged: str, order: random.Random
) -> None:
    constants = MCTSConfig(min_iterations=20, max_ended=8, max_iterations=30, policy=policy, candidates=3,
                           judge_own_turn=judged == "own too", simulate=judged != "own")  # fmt: skip
    oracle = Oracle(NAMES, seed, missing)
    plain = run(Search(constants, START, NAMES, SEED), oracle)
    several = run(Search(replace(constants, in_flight=in_flight), START, NAMES, SEED), oracle, order)
    assert several.state() == plain.state()
    assert several.used == plain.used
    chosen = [number for number, node in enumerate(plain.tree.nodes) if node.text is None and not node.lost][:5]
    for search in (plain, several):
        search.extend(chosen)
        run(search, oracle, order)
    assert several.state() == plain.state()


@pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: regime.name)
def test_most_of_what_is_foreseen_comes_true(regime: Regime) -> None:
    """Half the time and less with four leaves in flight, for few calls that the tree is not made from."""
    rounds, calls, used = Counter[int](), Counter[int](), Counter[int]()
    for seed in range(6):
        trees = []
        for in_flight in (1, 4):
            constants = MCTSConfig(min_iterations=40, max_iterations=60, in_flight=in_flight)
            grown = grow(regime, seed, NAMES, constants)
            trees.append((grown.search.state(), find_preferences(grown.search.tree, constants.preferences)))
            rounds[in_flight] += grown.rounds
            calls[in_flight] += grown.calls
            used[in_flight] += len(grown.search.used)
        assert trees[0] == trees[1]
    assert used[1] == used[4] == calls[1]
    assert rounds[4] < 0.5 * rounds[1]
    assert calls[4] < 1.3 * calls[1]


def test_nothing_is_foreseen_beyond_the_end() -> None:
    """Where the search will stop at the next leaf that goes on, nothing is asked after that leaf's texts."""
    constants = MCTSConfig(min_iterations=0, min_ended=0, max_iterations=9, in_flight=8)
    search = Search(constants, START, NAMES)
    assert search.done  # the first leaf, the start, goes on
    search = Search(replace(constants, min_iterations=1), START, NAMES)
    oracle = Oracle(NAMES, 3, ending=0.0)
    ahead = []
    while needed := search.ask():
        ahead += (foreseen := search.ask_ahead())
        for call in (*needed, *foreseen):
            search.tell(call, oracle.result(call))
    assert search.tree.iterations == 1
    assert {call.kind for call in ahead} == {"reply", "answer"}


def test_extension_gives_siblings_texts_and_one_rollout() -> None:
    constants = MCTSConfig(min_iterations=5, min_ended=0)
    oracle = Oracle(NAMES, 2)
    search = run(Search(constants, START, NAMES), oracle)
    before = {number: replace(node) for number, node in enumerate(search.tree.nodes)}
    chosen = [number for number, node in before.items() if node.text is None][:3]
    search.extend(chosen)
    run(search, oracle)
    for number, node in enumerate(search.tree.nodes):
        if number in chosen:
            assert (bool(node.text), node.visits) == (True, 1)
            assert -3 <= node.value <= 1
        else:
            assert (node.visits, node.value) == (before[number].visits, before[number].value)
    assert len(search.tree.nodes) == len(before)


def test_best_of_n_tries_the_most_probable_and_follows_the_best() -> None:
    constants = MCTSConfig(policy="best_of_n", candidates=2, min_iterations=30, min_ended=99, max_ended=99,
                               max_iterations=30)  # fmt: skip
    tree = run(Search(constants, START, NAMES), Oracle(NAMES, 4, ending=0.2)).tree
    for node in tree.nodes:
        tried = [tree.nodes[child] for child in node.children if tree.nodes[child].visits]
        assert len(tried) <= 2
        if tried:
            assert min(child.prior for child in tried) >= sorted(tree.nodes[c].prior for c in node.children)[-2]
        followed = [child for child in tried if child.visits > 1 and not child.ended]
        assert len(followed) <= 1 or any(child.ended for child in tree.nodes)
    assert max(len(tree.path(number)) for number in range(len(tree.nodes))) > 5


def test_random_search_asks_no_strategist_and_spreads_over_the_strategies() -> None:
    constants = MCTSConfig(policy="random", min_iterations=80, min_ended=0, max_ended=99)
    oracle = Oracle(NAMES, 4, ending=0.2)
    tree = run(Search(constants, START, NAMES, seed=7), oracle).tree
    assert "rate" not in oracle.kinds
    visits = [tree.nodes[child].visits for child in tree.nodes[0].children]
    assert min(visits) > 8
