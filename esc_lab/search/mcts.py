"""Monte Carlo tree search over support strategies: `ask` for the calls to make, `tell` their results.

The search of *Chain of Strategy Optimization* (arXiv 2503.05362) without its calls: no I/O, no model, no clock. One
iteration selects a leaf by PUCT, gives it texts if it has none, has the strategies rated there, plays a greedy rollout
from the most probable child, has the child's reply and those of the rollout judged, and backs up the mean reward.

    search = Search(settings, start, strategies)
    while not search.done:
        for call in search.ask():     # may be made at once, in any order
            search.tell(call, ...)    # its result, or None

Several leaves may be in flight. They are finished in the order in which they were selected, whatever the order of the
results, so the tree does not depend on how long any call takes.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from esc_lab.config.search import MCTSConfig
from esc_lab.data.dialogue import Turn
from esc_lab.search.iteration import Call, Exchange, Iterations, Outcome
from esc_lab.search.seed_dialogue import SeedDecision
from esc_lab.search.selection import select
from esc_lab.search.tree import WORST_REWARD, Tree

# Numbers of work that is no iteration.
_PLANTING, _EXTENSION = -1, -2


@dataclass
class _Work:
    """A leaf in flight: its number among the selected ones, and the steps that are left.

    Attributes:
        continues: it has texts, and the conversation goes on after them.
        exchange: its new texts, if it had none.
        waiting: number of the call whose result comes next.
    """

    number: int
    node: int
    steps: Generator[tuple[Call, ...], Any, Any] | None = None
    continues: bool = False
    exchange: Exchange | None = None
    waiting: int = 0
    finished: bool = False
    outcome: Outcome | None = None


class Search:
    """One search.

    Args:
        settings: its constants; preferences are not read.
        start: the turns before the first decision; ends with the seeker.
        strategies: names of the inventory, in its order.
        seed_path: the decisions of the seed dialogue, planted as a path with N = 100 and Q = 1 if
            `settings.seed_path`; empty for none.
        seed_ended: the seed dialogue comes to its end with the last of them.
        seed: seed of the draws: strategies of the policy `random`, and those of rollouts whose rating is missing.

    Attributes:
        tree: as far as it came; of leaves in flight nothing yet.
        done: there is nothing more to ask.
    """

    def __init__(
        self,
        settings: MCTSConfig,
        start: Sequence[Turn],
        strategies: Sequence[str],
        seed_path: Sequence[SeedDecision] = (),
        seed_ended: bool = True,
        seed: int = 0,
    ) -> None:
        self._set_up(settings, Tree(tuple(start)), strategies, seed)
        if seed_path and settings.seed_path:
            self._start(_Work(_PLANTING, 0, self._iterations.plant(self.tree, seed_path, seed_ended)))
        self._settle()

    def _set_up(self, settings: MCTSConfig, tree: Tree, strategies: Sequence[str], seed: int) -> None:
        self.settings, self.tree, self.done = settings, tree, False
        self._iterations = Iterations(settings, strategies, seed)
        self._new: list[Call] = []
        self._open: dict[int, _Work] = {}  # calls under way
        self._results: dict[int, Any] = {}  # of calls, until the work asks for them
        self._queue: list[_Work] = []  # in flight, in the order in which they were selected
        self._begun = 0
        self._ended = tree.count_ended()
        self._stopped = False  # no more leaves are selected
        self._extension: list[int] = []

    def ask(self) -> list[Call]:
        """The calls that became necessary since the last time."""
        calls, self._new = self._new, []
        return calls

    def tell(self, call: Call, result: Any) -> None:
        """Take the result of a call (see `Call.kind`), or None if there is none. Ignored if it is no longer needed."""
        work = self._open.pop(call.number, None)
        if work is None:
            return
        self._results[call.number] = result
        if work.waiting == call.number:
            self._advance(work)
            self._settle()

    def extend(self, numbers: Sequence[int]) -> None:
        """When the search is done: texts and a rollout for unreached nodes. N = 1; nothing is backed up above them."""
        self._extension = list(numbers)
        self._stopped, self.done = True, False
        self._settle()

    def state(self) -> dict[str, Any]:
        """Everything to go on from, as JSON types. Leaves in flight begin anew when it is loaded.

        Raises:
            ValueError: the seed path is not planted yet.
        """
        if any(work.number == _PLANTING for work in self._queue):
            raise ValueError("the seed path is not planted yet")
        return {
            "settings": {**asdict(self.settings), "seed": self._iterations.seed},
            "strategies": list(self._iterations.strategies),
            "tree": self.tree.state(),
            "in_flight": [[work.number, work.node] for work in self._queue],
            "begun": self._begun,
            "stopped": self._stopped,
            "extension": list(self._extension),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], settings: MCTSConfig) -> Search:
        """The search of this `state()`; with the same settings it goes on to the same tree."""
        search = cls.__new__(cls)
        search._set_up(settings, Tree.from_state(state["tree"]), state["strategies"], state["settings"]["seed"])
        search._begun, search._stopped = state["begun"], state["stopped"]
        search._extension = list(state["extension"])
        for number, node in state["in_flight"]:
            search._begin(number, node)
        search._settle()
        return search

    def _begin(self, number: int, node: int) -> None:
        """Put a leaf in flight, or a node of the extension."""
        work = _Work(number, node)
        if number == _EXTENSION:
            work.steps = self._iterations.extend_node(self.tree, node)
        else:
            work.steps = self._iterations.search_leaf(self.tree, node, number, partial(self._note_continuing, work))
        self._start(work)

    def _start(self, work: _Work) -> None:
        self._queue.append(work)
        self._advance(work)

    def _advance(self, work: _Work) -> None:
        """Go on with a piece of work for as long as the results that it waits for are there."""
        assert work.steps is not None
        value = self._results.pop(work.waiting, None)
        while True:
            try:
                wanted = work.steps.send(value)
            except StopIteration as end:
                work.outcome, work.finished = end.value, True
                return
            for call in wanted:
                if call.number not in self._open and call.number not in self._results:
                    self._open[call.number] = work
                    self._new.append(call)
            work.waiting = wanted[0].number if wanted else 0
            if work.waiting not in self._results:
                return
            value = self._results.pop(work.waiting)

    def _note_continuing(self, work: _Work, exchange: Exchange | None) -> bool:
        """Note that the conversation goes on at a leaf; whether the search stops there."""
        work.exchange, work.continues = exchange, True
        return self._stops(work)

    def _stops(self, work: _Work) -> bool:
        """Whether the search stops at a leaf: the conversation goes on there, and a limit was reached before it.

        What is true while earlier leaves are in flight stays true, since the number of ended leaves only grows.
        """
        if not work.continues:
            return False
        settings = self.settings
        enough = work.number >= settings.min_iterations and self._ended >= settings.min_ended
        return enough or self._ended >= settings.max_ended

    def _settle(self) -> None:
        """Finish what has come to the head of the queue, each time putting new leaves in flight."""
        self._fill()
        while self._queue:
            head = self._queue[0]
            if self._stops(head):
                self._stop_at(head)
            elif head.finished:
                self._queue.pop(0)
                if head.outcome is not None:
                    self._finish(head, head.outcome)
                self._ended = self.tree.count_ended()
            else:
                return
            self._fill()
        self.done = True

    def _fill(self) -> None:
        """Put leaves in flight until there are enough of them or none can be selected."""
        while len(self._queue) < self.settings.in_flight:
            if self._extension:
                self._begin(_EXTENSION, self._extension.pop(0))
                continue
            planting = any(work.number == _PLANTING for work in self._queue)
            if self._stopped or planting or self._begun >= self.settings.max_iterations:
                return
            if any(map(self._stops, self._queue)):
                return
            leaf = select(
                self.tree, self.settings, self._iterations.seed, [work.node for work in self._queue], self._begun
            )
            if leaf is None:
                return
            self._begun += 1
            self._begin(self._begun - 1, leaf)

    def _stop_at(self, head: _Work) -> None:
        """End the search. The leaf keeps its texts; nothing else that is in flight counts."""
        self._reach(head.node, head.exchange)
        self._queue, self._new, self._stopped = [], [], True
        self._begun = head.number + 1  # how many were begun after it depends on the time that calls take
        self._open.clear()
        self._results.clear()

    def _finish(self, work: _Work, outcome: Outcome) -> None:
        """Put the outcome of a leaf into the tree."""
        node = self.tree.nodes[work.node]
        self._reach(work.node, outcome.exchange)
        node.lost = outcome.lost
        self._note_score(work.node, outcome.own_scores)
        rewarded = work.node
        if outcome.priors:
            children = self.tree.expand(work.node, outcome.priors)
            rewarded = next(child for child in children if self.tree.nodes[child].strategy == outcome.child)
            self._reach(rewarded, outcome.child_exchange)
            self.tree.nodes[rewarded].lost = outcome.child_exchange is None
            self._note_score(rewarded, outcome.scores)
        judged = [score for score in (*outcome.own_scores, *outcome.scores) if score is not None]
        reward = sum(judged) / len(judged) + WORST_REWARD if judged else None
        if work.number == _EXTENSION:
            if reward is not None:
                node.value, node.visits = reward, 1
            return
        if reward is not None:
            self.tree.back_up(rewarded, reward)
        self.tree.iterations += 1

    def _reach(self, number: int, exchange: Exchange | None) -> None:
        if exchange is not None:
            node = self.tree.nodes[number]
            node.text, node.answer, node.ended = exchange.reply, exchange.seeker.text, exchange.seeker.ended

    def _note_score(self, number: int, scores: Sequence[float | None]) -> None:
        """Note the judge's score of a node's own reply, the first of those that were asked for."""
        if scores:
            node = self.tree.nodes[number]
            node.scorings += 1
            node.turn_score = node.turn_score if scores[0] is None else scores[0]
