"""One iteration of the search, call by call: texts of a leaf, ratings, a rollout from its best child, judgements.

Each piece of work is a generator. It yields the call whose result it needs next, together with calls that may be made
beside it, and returns what came of it. Nothing here changes the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import numpy as np

from esc_lab.data.dialogue import Reply, Turn
from esc_lab.search.settings import SearchSettings
from esc_lab.search.tree import Tree, priors
from esc_lab.seeds import derive_seed

CallKind = Literal["rate", "reply", "answer", "judge"]


@dataclass(frozen=True)
class Call:
    """A call that the search needs.

    Attributes:
        kind: what to tell. `rate`: strategy -> rating. `reply`: the supporter's text. `answer`: the seeker's
            `Answered`. `judge`: the score of the last reply, in [0, 4]. None where none could be had.
        history: the talk so far. For `judge` it ends with the reply and leaves out an opening by the supporter.
        strategy: of the reply, for `reply`.
        sample: number of the draw among calls with the same content: 0 in the tree, 1 in rollouts, counting up where an
            ended leaf is judged again.
        number: unique in its search.
    """

    kind: CallKind
    history: tuple[Turn, ...]
    strategy: str | None
    sample: int
    number: int


@dataclass(frozen=True)
class Answered:
    """What the seeker says; `text` may be empty where the talk has ended."""

    text: str
    ended: bool


@dataclass(frozen=True)
class Texts:
    """Of a node: the supporter's text and the seeker's answer."""

    text: str
    answered: Answered


@dataclass(frozen=True)
class Outcome:
    """What came of a leaf.

    Attributes:
        texts: its new texts; None if it had them.
        lost: it needed texts and none could be had.
        priors: of its children; empty if it was not expanded.
        child, child_texts: strategy of the child that was simulated, and its texts; None if none could be had.
        own_scores: the judge's score of the leaf's own reply; empty if the judge was not asked.
        scores: those of the child's reply and the rollout's, in order.
    """

    texts: Texts | None = None
    lost: bool = False
    priors: Mapping[str, float] = field(default_factory=dict)
    child: str = ""
    child_texts: Texts | None = None
    own_scores: Sequence[float | None] = ()
    scores: Sequence[float | None] = ()


# Waits for the result of the first call that it yields; of an empty tuple for ever.
Steps = Generator[tuple[Call, ...], Any, Outcome]


class Iterations:
    """The calls of a search's iterations, for its settings and strategies."""

    def __init__(self, settings: SearchSettings, strategies: Sequence[str]) -> None:
        self.settings, self.strategies = settings, tuple(strategies)
        self._numbers = count(1)

    def call(self, kind: CallKind, history: Sequence[Turn], strategy: str | None = None, sample: int = 0) -> Call:
        if kind == "judge":  # sees no opening by the supporter
            first = next(index for index, turn in enumerate(history) if turn.speaker == "seeker")
            history = history[first:]
        return Call(kind, tuple(history), strategy, sample, next(self._numbers))

    def leaf(self, tree: Tree, number: int, purpose: int, stops: Callable[[Texts | None], bool]) -> Steps:
        """One iteration from its selected leaf.

        Args:
            purpose: number of the iteration, by which strategies without ratings are drawn.
            stops: told the leaf's new texts, if any, when the talk goes on there; whether the search stops at it.
        """
        node = tree.nodes[number]
        texts = None
        if node.text is None:
            texts = yield from self._texts(tree.history(node.parent), node.strategy or "")
            if texts is None:
                return Outcome(lost=True)
        text, answered = (
            (texts.text, texts.answered) if texts else (node.text or "", Answered(node.answer or "", node.ended))
        )
        replied = with_reply(tree.history(node.parent), text, node.strategy) if node.strategy else tree.start
        judged = node.strategy and (answered.ended or self.settings.judge_own_turn)
        own = [self.call("judge", replied, sample=node.scorings)] if judged else []
        if answered.ended:
            return Outcome(texts, own_scores=[(yield (own[0],))])
        if stops(texts):
            yield ()
        history = with_answer(replied, answered)
        rated = yield from self._rated(history, 0, own)
        found = self.priors(rated)
        child = self.best(found, rated, purpose, 0)
        child_texts, scores = yield from self._simulated(history, child, purpose)
        own_scores = []
        for call in own:
            own_scores.append((yield (call,)))
        return Outcome(texts, False, found, child, child_texts, own_scores, scores)

    def alone(self, tree: Tree, number: int) -> Steps:
        """Texts of a node that the search did not reach, and a rollout from it."""
        node = tree.nodes[number]
        texts, scores = yield from self._simulated(tree.history(node.parent), node.strategy or "", -number)
        return Outcome(texts, lost=texts is None, own_scores=scores)

    def priors(self, ratings: Mapping[str, float] | None) -> dict[str, float]:
        """Priors of the rated strategies; uniform over all strategies without ratings."""
        if ratings is None:
            return dict.fromkeys(self.strategies, 1 / len(self.strategies))
        return priors(ratings, self.settings.rating_scale)

    def best(self, found: Mapping[str, float], rated: Mapping[str, float] | None, *purpose: int) -> str:
        """The most probable strategy, the first of equals; one drawn at random where there are no ratings."""
        names = list(found)
        if rated is None:
            draw = np.random.default_rng(derive_seed(self.settings.seed, "rollout", *purpose))
            return names[int(draw.integers(len(names)))]
        return max(names, key=found.__getitem__)

    def _rated(
        self, history: Sequence[Turn], sample: int, beside: Sequence[Call]
    ) -> Generator[tuple[Call, ...], Any, Mapping[str, float] | None]:
        if self.settings.policy == "random":
            return None
        ratings: Mapping[str, float] | None = yield (self.call("rate", history, sample=sample), *beside)
        return ratings

    def _texts(self, history: Sequence[Turn], strategy: str) -> Generator[tuple[Call, ...], Any, Texts | None]:
        text = yield (self.call("reply", history, strategy),)
        if text is None:
            return None
        answered = yield (self.call("answer", with_reply(history, text, strategy)),)
        return None if answered is None else Texts(text, answered)

    def _simulated(
        self, history: Sequence[Turn], strategy: str, purpose: int
    ) -> Generator[tuple[Call, ...], Any, tuple[Texts | None, list[float | None]]]:
        """Texts of a child and a rollout from it: the texts, None if there are none, and the scores of all its replies.

        A judgement waits for nobody: it is asked for with the call that follows the reply.
        """
        texts: Texts | None = None
        judgements: list[Call] = []
        for number in range(self.settings.rollout_rounds + 1):
            sample = min(number, 1)
            if number > 0:
                rated = yield from self._rated(history, sample, judgements)
                strategy = self.best(self.priors(rated), rated, purpose, number)
            text = yield (self.call("reply", history, strategy, sample), *judgements)
            if text is None:
                break
            history = with_reply(history, text, strategy)
            judgement = self.call("judge", history, sample=sample)
            answered = yield (self.call("answer", history, sample=sample), judgement)
            if number == 0 and answered is None:
                break  # the child is lost, and its judgement with it
            judgements.append(judgement)
            if number == 0:
                texts = Texts(text, answered)
            if answered is None or answered.ended:
                break
            history = with_answer(history, answered)
        scores: list[float | None] = []
        for judgement in judgements:
            scores.append((yield (judgement,)))
        return texts, scores


def with_reply(history: Sequence[Turn], text: str, strategy: str) -> tuple[Turn, ...]:
    """The talk with the supporter's next turn."""
    return (*history, Turn("supporter", Reply(text, (strategy,))))


def with_answer(history: Sequence[Turn], answered: Answered) -> tuple[Turn, ...]:
    """The talk with the seeker's next turn, unless it is empty."""
    return (*history, Turn("seeker", Reply(answered.text))) if answered.text else tuple(history)
