"""One iteration of the search, call by call: texts of a leaf, ratings, a rollout from its best child, judgements.

Each piece of work is a generator. It yields the call whose result it needs next, together with calls that may be made
beside it, and fills in its outcome as results come. It reads the tree before its first call only, and puts nothing into
it but the seed's path.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from esc_lab.config.search import MCTSConfig
from esc_lab.data.dialogue import Turn
from esc_lab.search.seed_dialogue import SeedDecision
from esc_lab.search.tree import (
    SEED_PRIOR,
    SEED_VALUE,
    SEED_VISITS,
    WORST_REWARD,
    Node,
    Tree,
    append_answer,
    append_reply,
    compute_priors,
)
from esc_lab.seeds import derive_seed

CallKind = Literal["rate", "reply", "answer", "judge"]


@dataclass(frozen=True)
class StrategyPriors:
    """Priors themselves, in place of ratings: strategy -> probability."""

    shares: Mapping[str, float]


@dataclass(frozen=True)
class Call:
    """A call that the search needs. Equal calls have equal results.

    Attributes:
        kind: what to tell. `rate`: strategy -> rating, or `StrategyPriors`. `reply`: the supporter's text. `answer`:
            the `SeekerTurn`. `judge`: the score of the last reply, in [0, 4]. None where there is no usable result.
        history: the conversation so far. For `judge` it ends with the reply and leaves out an opening by the supporter.
        strategy: of the reply, for `reply`.
        sample: number of the draw among calls with the same content: 0 in the tree, 1 in rollouts, counting up where an
            ended leaf is judged again.
    """

    kind: CallKind
    history: tuple[Turn, ...]
    strategy: str | None
    sample: int

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:  # once: histories are long
        return hash((self.kind, self.history, self.strategy, self.sample))


@dataclass(frozen=True)
class SeekerTurn:
    """What the seeker says; `text` may be empty where the conversation has ended."""

    text: str
    ended: bool


@dataclass(frozen=True)
class Exchange:
    """Texts of a node: the supporter's reply and the seeker's turn after it."""

    reply: str
    seeker: SeekerTurn


@dataclass
class Outcome:
    """The result of an iteration, as far as it is known.

    Attributes:
        exchange: new texts of the leaf; None if it had texts before.
        lost: it needed texts, and there are no usable ones.
        priors: of its children; empty if it was not expanded.
        child, child_exchange: strategy of the child that was simulated, and its texts; None if there are none.
        own_scores: the judge's score of the leaf's own reply; empty if the judge was not asked.
        scores: those of the child's reply and the rollout's, in order.
    """

    exchange: Exchange | None = None
    lost: bool = False
    priors: Mapping[str, float] = field(default_factory=dict)
    child: str = ""
    child_exchange: Exchange | None = None
    own_scores: list[float | None] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)

    @property
    def endings(self) -> int:
        """How often the conversation ended in its texts."""
        return sum(exchange.seeker.ended for exchange in (self.exchange, self.child_exchange) if exchange)

    @property
    def reward(self) -> float | None:
        """Mean of the scores that there are, as a reward in [-3, 1]."""
        judged = [score for score in (*self.own_scores, *self.scores) if score is not None]
        return sum(judged) / len(judged) + WORST_REWARD if judged else None


Ratings = Mapping[str, float] | StrategyPriors
# Waits for the result of the first call that it yields.
Steps = Generator[tuple[Call, ...], Any, None]


class Iterations:
    """The calls of a search's iterations, for its settings and strategies; `seed` is that of its draws."""

    def __init__(self, settings: MCTSConfig, strategies: Sequence[str], seed: int) -> None:
        self.settings, self.strategies, self.seed = settings, tuple(strategies), seed

    def search_leaf(self, tree: Tree, number: int, purpose: int, outcome: Outcome, stops: Callable[[], bool]) -> Steps:
        """One iteration from its selected leaf.

        Args:
            purpose: number of the iteration, by which strategies without ratings are drawn.
            outcome: is filled in.
            stops: asked when the conversation goes on at the leaf: whether the search stops there.
        """
        if not self.settings.simulate:
            yield from self._value_leaf(tree, number, purpose, outcome, stops)
            return
        node = tree.nodes[number]
        text, seeker = node.text or "", SeekerTurn(node.answer or "", node.ended)
        strategy, scorings, history = node.strategy, node.scorings, tree.history(node.parent)
        if node.text is None:
            outcome.exchange = yield from self._write_exchange(history, strategy or "")
            if outcome.exchange is None:
                outcome.lost = True
                return
            text, seeker = outcome.exchange.reply, outcome.exchange.seeker
        if strategy:
            history = append_reply(history, text, strategy)
        judged = strategy and (seeker.ended or self.settings.judge_own_turn)
        own = [self._call("judge", history, sample=scorings)] if judged else []
        if seeker.ended:
            outcome.own_scores = [(yield (own[0],))]
            return
        if stops():
            return
        history = append_answer(history, seeker.text)
        ratings = yield from self._rate(history, 0, own)
        priors = self._priors(ratings)
        outcome.child, outcome.priors = self._choose_strategy(priors, ratings, purpose, 0), priors
        yield from self._simulate(history, outcome, purpose)
        for call in own:
            outcome.own_scores.append((yield (call,)))

    def _value_leaf(self, tree: Tree, number: int, purpose: int, outcome: Outcome, stops: Callable[[], bool]) -> Steps:
        """One iteration without simulation: a new leaf gets a reply and its score; one that has them is expanded.

        Then its most probable child gets a reply and a score. Until a leaf is selected again nobody answers it.
        """
        node = tree.nodes[number]
        if node.text is None:
            if stops():
                return
            history = tree.history(node.parent)
            outcome.exchange, outcome.own_scores = yield from self._write_judged(history, node.strategy or "")
            outcome.lost = outcome.exchange is None
            return
        history, ended = tree.history(number), node.ended
        if node.strategy and not node.answer and not ended:
            seeker = yield (self._call("answer", history),)
            if seeker is None:
                outcome.lost = True
                return
            outcome.exchange, ended = Exchange(node.text, seeker), seeker.ended
        if ended:
            said = tree.history(node.parent)
            judgement = self._call("judge", append_reply(said, node.text, node.strategy or ""), sample=node.scorings)
            outcome.own_scores = [(yield (judgement,))]
            return
        if stops():
            return
        if outcome.exchange:
            history = append_answer(history, outcome.exchange.seeker.text)
        ratings = yield from self._rate(history, 0, ())
        priors = self._priors(ratings)
        outcome.child, outcome.priors = self._choose_strategy(priors, ratings, purpose, 0), priors
        outcome.child_exchange, outcome.scores = yield from self._write_judged(history, outcome.child)

    def _write_judged(
        self, history: Sequence[Turn], strategy: str
    ) -> Generator[tuple[Call, ...], Any, tuple[Exchange | None, list[float | None]]]:
        """A reply that nobody has answered yet, and its score; None without a usable reply."""
        text = yield (self._call("reply", history, strategy),)
        if text is None:
            return None, []
        score = yield (self._call("judge", append_reply(history, text, strategy)),)
        return Exchange(text, SeekerTurn("", ended=False)), [score]

    def extend_node(self, tree: Tree, number: int, outcome: Outcome) -> Steps:
        """Texts of a node that the search did not reach, and a rollout from it."""
        node = tree.nodes[number]
        if not self.settings.simulate:
            history = tree.history(node.parent)
            outcome.exchange, outcome.own_scores = yield from self._write_judged(history, node.strategy or "")
            outcome.lost = outcome.exchange is None
            return
        below = Outcome(child=node.strategy or "")
        yield from self._simulate(tree.history(node.parent), below, -number)
        outcome.exchange, outcome.own_scores = below.child_exchange, below.scores
        outcome.lost = below.child_exchange is None

    def plant(self, tree: Tree, path: Sequence[SeedDecision], ended: bool) -> Steps:
        """Put the seed dialogue in as a path: rate the strategies at each of its decisions, the gold one among them.

        This alone changes the tree: nothing else is in flight meanwhile.
        """
        history = tree.start
        calls = []
        for decision in path:
            calls.append(self._call("rate", history))
            history = append_answer(append_reply(history, decision.text, decision.strategy), decision.answer)
        number = 0
        tree.nodes[0].seed, tree.nodes[0].visits, tree.nodes[0].value = True, SEED_VISITS, SEED_VALUE
        for index, decision in enumerate(path):
            ratings = None if self.settings.policy == "random" else (yield tuple(calls[index:]))
            priors = self._priors(ratings)
            if decision.strategy not in priors:
                priors = {name: prior * (1 - SEED_PRIOR) for name, prior in priors.items()}
                priors[decision.strategy] = SEED_PRIOR
            children = tree.expand(number, priors)
            number = next(child for child in children if tree.nodes[child].strategy == decision.strategy)
            node = tree.nodes[number]
            node.seed, node.visits, node.value = True, SEED_VISITS, SEED_VALUE
            node.text, node.answer = decision.text, decision.answer
        tree.nodes[number].ended = ended

    def _call(self, kind: CallKind, history: Sequence[Turn], strategy: str | None = None, sample: int = 0) -> Call:
        if kind == "judge":  # sees no opening by the supporter
            first = next(index for index, turn in enumerate(history) if turn.speaker == "seeker")
            history = history[first:]
        return Call(kind, tuple(history), strategy, sample)

    def _priors(self, ratings: Ratings | None) -> dict[str, float]:
        """Priors of the rated strategies; uniform over all strategies without ratings."""
        if ratings is None:
            return dict.fromkeys(self.strategies, 1 / len(self.strategies))
        if isinstance(ratings, StrategyPriors):
            return dict(ratings.shares)
        return compute_priors(ratings, self.settings.rating_scale)

    def _choose_strategy(self, priors: Mapping[str, float], ratings: Ratings | None, *purpose: int) -> str:
        """The most probable strategy, the first of equals; one drawn at random where there are no ratings."""
        names = list(priors)
        if ratings is None:
            draw = np.random.default_rng(derive_seed(self.seed, "rollout", *purpose))
            return names[int(draw.integers(len(names)))]
        return max(names, key=priors.__getitem__)

    def _rate(
        self, history: Sequence[Turn], sample: int, beside: Sequence[Call]
    ) -> Generator[tuple[Call, ...], Any, Ratings | None]:
        if self.settings.policy == "random":
            return None
        ratings: Ratings | None = yield (self._call("rate", history, sample=sample), *beside)
        return ratings

    def _write_exchange(
        self, history: Sequence[Turn], strategy: str
    ) -> Generator[tuple[Call, ...], Any, Exchange | None]:
        text = yield (self._call("reply", history, strategy),)
        if text is None:
            return None
        seeker = yield (self._call("answer", append_reply(history, text, strategy)),)
        return None if seeker is None else Exchange(text, seeker)

    def _simulate(self, history: Sequence[Turn], outcome: Outcome, purpose: int) -> Steps:
        """Texts of the outcome's child and a rollout from it: the texts, None if there are none, and all its scores.

        A judgement waits for nobody: it is asked for with the call that follows the reply.
        """
        strategy = outcome.child
        judgements: list[Call] = []
        for number in range(self.settings.rollout_rounds + 1):
            sample = min(number, 1)
            if number > 0:
                ratings = yield from self._rate(history, sample, judgements)
                strategy = self._choose_strategy(self._priors(ratings), ratings, purpose, number)
            text = yield (self._call("reply", history, strategy, sample), *judgements)
            if text is None:
                break
            history = append_reply(history, text, strategy)
            judgement = self._call("judge", history, sample=sample)
            seeker = yield (self._call("answer", history, sample=sample), judgement)
            if number == 0 and seeker is None:
                break  # the child is lost, and its judgement with it
            judgements.append(judgement)
            if number == 0:
                outcome.child_exchange = Exchange(text, seeker)
            if seeker is None or seeker.ended:
                break
            history = append_answer(history, seeker.text)
        for judgement in judgements:
            outcome.scores.append((yield (judgement,)))


def add_outcome(tree: Tree, number: int, outcome: Outcome) -> int:
    """Put what an iteration gave into the tree, but for its reward; the number of the node that is rewarded."""
    node = tree.nodes[number]
    _reach(node, outcome.exchange)
    node.lost = outcome.lost
    _note_score(node, outcome.own_scores)
    if not outcome.priors:
        return number
    children = tree.expand(number, outcome.priors)
    rewarded = next(child for child in children if tree.nodes[child].strategy == outcome.child)
    child = tree.nodes[rewarded]
    _reach(child, outcome.child_exchange)
    child.lost = outcome.child_exchange is None
    _note_score(child, outcome.scores)
    return rewarded


def _reach(node: Node, exchange: Exchange | None) -> None:
    if exchange is not None:
        node.text, node.answer, node.ended = exchange.reply, exchange.seeker.text, exchange.seeker.ended


def _note_score(node: Node, scores: Sequence[float | None]) -> None:
    """Note the judge's score of a node's own reply, the first of those that were asked for."""
    if scores:
        node.scorings += 1
        node.turn_score = node.turn_score if scores[0] is None else scores[0]
