"""Monte Carlo tree search over support strategies: `ask` for the calls to make, `tell` their results.

The search of *Chain of Strategy Optimization* (arXiv 2503.05362) without its calls: no I/O, no model, no clock. One
iteration selects a leaf by PUCT, gives it texts if it has none, has the strategies rated there, plays a greedy rollout
from the most probable child, has the child's reply and those of the rollout judged, and backs up the mean reward.

    search = Search(settings, start, strategies)
    while not search.done:
        for call in search.ask():     # may be made at once, in any order
            search.tell(call, ...)    # its result, or None

The tree is that of one iteration after another, whatever the order of the results. With `in_flight` above 1,
`ask_ahead` gives calls of the leaves that will probably be selected next, to be made meanwhile: an iteration that comes
to them finds their results; one that was foreseen in vain changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from esc_lab.config.search import MCTSConfig
from esc_lab.data.dialogue import Turn
from esc_lab.search.iteration import Call, Iterations, Outcome, Steps, add_outcome
from esc_lab.search.lookahead import expect_tree
from esc_lab.search.seed_dialogue import SeedDecision
from esc_lab.search.selection import select
from esc_lab.search.tree import Tree

# Numbers of work that is no iteration.
_PLANTING, _EXTENSION = -1, -2


@dataclass
class _Work:
    """A leaf that is worked on: its number among the selected ones, and the steps that are left.

    Attributes:
        ended: leaves that have ended before it.
        outcome: as far as it is known.
        continues: it has texts, and the conversation goes on after them.
        waiting: the call whose result comes next; None before the first.
    """

    number: int
    node: int
    ended: int
    outcome: Outcome = field(default_factory=Outcome)
    steps: Steps = field(init=False)
    continues: bool = False
    waiting: Call | None = None
    finished: bool = False


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
        tree: as far as it came; of the iteration under way nothing yet.
        used: calls whose results the tree was made from, those of the iteration under way included.
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
            work = _Work(_PLANTING, 0, self._ended)
            work.steps = self._iterations.plant(self.tree, seed_path, seed_ended)
            self._start(work)
        self._settle()

    def _set_up(self, settings: MCTSConfig, tree: Tree, strategies: Sequence[str], seed: int) -> None:
        self.settings, self.tree, self.done = settings, tree, False
        self.used: set[Call] = set()
        self._iterations = Iterations(settings, strategies, seed)
        self._new: list[Call] = []
        self._open: set[Call] = set()  # under way
        self._results: dict[Call, Any] = {}
        self._queue: list[_Work] = []  # the iteration under way, or nodes of the extension, in their order
        self._ahead: dict[tuple[Any, ...], _Work] = {}  # leaves that will probably be selected after it
        self._begun = 0
        self._ended = tree.count_ended()
        self._stopped = False  # no more leaves are selected
        self._extension: list[int] = []

    def ask(self) -> list[Call]:
        """The calls that became necessary since the last time, without those that `ask_ahead` gave before."""
        calls, self._new = self._new, []
        return calls

    def ask_ahead(self) -> list[Call]:
        """New calls of the leaves that will probably be selected next, `in_flight` of them with those under way."""
        if len(self._queue) != 1 or self._queue[0].number < 0:
            return []
        needed, self._new = self._new, []
        ahead: dict[tuple[Any, ...], _Work] = {}
        work, tree, busy = self._queue[0], self.tree, 1
        while busy < self.settings.in_flight and work.number + 1 < self.settings.max_iterations:
            tree = expect_tree(tree, work.node, work.outcome)
            number, ended = work.number + 1, work.ended + work.outcome.endings
            leaf = select(tree, self.settings, self._iterations.seed, number)
            if leaf is None:
                break
            # Numbers of expected nodes may change, and with them which one a number means.
            place = (number, tree.nodes[leaf].scorings, *(tree.nodes[step].strategy for step in tree.path(leaf)))
            work = self._ahead.get(place) or self._begin(tree, number, leaf, ended)
            work.node, work.ended = leaf, ended
            ahead[place] = work
            self._advance(work)
            if self._stops(work):
                break
            busy += not work.finished
        self._ahead = ahead
        calls, self._new = self._new, needed
        return calls

    def needs(self, call: Call) -> bool:
        """Whether the tree cannot go on without the result of a call."""
        return call in self.used and call not in self._results

    def tell(self, call: Call, result: Any) -> None:
        """Take the result of a call (see `Call.kind`), or None if there is none."""
        if call not in self._open:
            return
        self._open.remove(call)
        self._results[call] = result
        waiting = [work for work in self._queue if work.waiting == call]
        for work in waiting:
            self._advance(work, self.used)
        if waiting:
            self._settle()

    def extend(self, numbers: Sequence[int]) -> None:
        """When the search is done: texts and a rollout for unreached nodes. N = 1; nothing is backed up above them."""
        self._extension = list(numbers)
        self._stopped, self.done = True, False
        self._settle()

    def state(self) -> dict[str, Any]:
        """Everything to go on from, as JSON types. An iteration under way begins anew when it is loaded.

        Raises:
            ValueError: the seed path is not planted yet.
        """
        if any(work.number == _PLANTING for work in self._queue):
            raise ValueError("the seed path is not planted yet")
        settings = {name: value for name, value in asdict(self.settings).items() if name != "in_flight"}
        return {
            "settings": {**settings, "seed": self._iterations.seed},
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
            search._start(search._begin(search.tree, number, node, search._ended))
        search._settle()
        return search

    def _begin(self, tree: Tree, number: int, node: int, ended: int) -> _Work:
        """Work on a leaf of a tree, or on a node of the extension."""
        work = _Work(number, node, ended)

        def stops() -> bool:
            work.continues = True
            return self._stops(work)

        if number == _EXTENSION:
            work.steps = self._iterations.extend_node(tree, node, work.outcome)
        else:
            work.steps = self._iterations.search_leaf(tree, node, number, work.outcome, stops)
        return work

    def _start(self, work: _Work) -> None:
        self._queue.append(work)
        self._advance(work, self.used)

    def _advance(self, work: _Work, used: set[Call] | None = None) -> None:
        """Go on with a piece of work for as long as the results that it waits for are there."""
        while not work.finished:
            if work.waiting is not None and work.waiting not in self._results:
                return
            try:
                wanted = work.steps.send(None if work.waiting is None else self._results[work.waiting])
            except StopIteration:
                work.finished = True
                return
            work.waiting = wanted[0]
            if used is not None:
                used.add(work.waiting)
            for call in wanted:
                if call not in self._open and call not in self._results:
                    self._open.add(call)
                    self._new.append(call)

    def _stops(self, work: _Work) -> bool:
        """Whether the search stops at a leaf: the conversation goes on there, and a limit was reached before it."""
        if not work.continues:
            return False
        settings = self.settings
        enough = work.number >= settings.min_iterations and work.ended >= settings.min_ended
        return enough or work.ended >= settings.max_ended

    def _settle(self) -> None:
        """Finish what has come to its end, each time beginning what is next."""
        self._fill()
        while self._queue:
            head = self._queue[0]
            if self._stops(head):  # the leaf keeps its texts
                add_outcome(self.tree, head.node, head.outcome)
                self._queue, self._stopped = [], True
            elif head.finished:
                self._finish(self._queue.pop(0))
            else:
                return
            self._fill()
        self.done = True
        self._new, self._ahead = [], {}
        self._open.clear()
        self._results.clear()

    def _fill(self) -> None:
        """Begin the next iteration when there is none, or nodes of the extension."""
        while self._extension and len(self._queue) < self.settings.in_flight:
            self._start(self._begin(self.tree, _EXTENSION, self._extension.pop(0), self._ended))
        if self._queue or self._stopped or self._begun >= self.settings.max_iterations:
            return
        leaf = select(self.tree, self.settings, self._iterations.seed, self._begun)
        if leaf is not None:
            self._begun += 1
            self._start(self._begin(self.tree, self._begun - 1, leaf, self._ended))

    def _finish(self, work: _Work) -> None:
        """Put the outcome of a piece of work into the tree."""
        if work.number != _PLANTING:
            rewarded, reward = add_outcome(self.tree, work.node, work.outcome), work.outcome.reward
            if work.number == _EXTENSION:
                if reward is not None:
                    self.tree.nodes[rewarded].value, self.tree.nodes[rewarded].visits = reward, 1
                return
            if reward is not None:
                self.tree.back_up(rewarded, reward)
            self.tree.iterations += 1
        self._ended = self.tree.count_ended()
