"""How far calls have brought a search or other work: on standard error and as curves of W&B."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from statistics import fmean

from esc_lab.config.search import PreferenceConfig
from esc_lab.search.builder import TreeSearch
from esc_lab.search.calls import Calls
from esc_lab.search.preferences import find_preferences
from esc_lab.search.tree import Tree
from esc_lab.terminal import show_progress
from esc_lab.tracking.run import CURVE_EVERY_S, current_run, log_curve

log = logging.getLogger(__name__)
_LOOK_EVERY_S = 1.0


class CallProgress:
    """Counts what is done, in how many parts, and the calls, as they come.

    Args:
        what: is done, for the bar.
        total: of that.
        done: how much of the total is done.
        parts: what the work consists of, and how many of these there are.
        finished: how many of them are finished.
        measure: what is measured of the work so far, by name.
    """

    def __init__(
        self,
        what: str,
        total: int,
        done: Callable[[], int],
        *,
        parts: tuple[str, int],
        finished: Callable[[], int],
        calls: Calls,
        measure: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._what, self._total, self._done = what, total, done
        self._parts, self._finished, self._calls, self._measure = parts, finished, calls, measure
        self._started = self._drawn = time.monotonic()
        self._made_before = calls.spent.made

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """Show it in this block every second, also while no call comes back; at its end log how far it is."""
        showing = asyncio.create_task(self._show())
        try:
            yield
        finally:
            showing.cancel()
        self._log_point()
        log.info("%s", self.state())

    async def _show(self) -> None:
        with show_progress(self._what, self._total) as update:
            try:
                while True:
                    update(self._done(), self.state)
                    # Answers that a journal has are no progress: a run that is resumed begins where it was.
                    waits = self._calls.spent.made == self._made_before
                    if not waits and time.monotonic() - self._drawn >= CURVE_EVERY_S:
                        self._drawn = time.monotonic()
                        self._log_point()
                    await asyncio.sleep(_LOOK_EVERY_S)
            finally:
                update(self._done(), self.state)

    def _log_point(self) -> None:
        if current_run():  # or nobody looks at what is measured
            log_curve(self.point())

    def state(self) -> str:
        """Finished parts, calls a second, tokens and cost in a few words."""
        spent, seconds = self._calls.spent, max(time.monotonic() - self._started, 1e-6)
        rate = (spent.made - self._made_before) / seconds
        name, count = self._parts
        parts = [f"{self._finished()}/{count} {name}", spent.text(), f"{rate:.1f} calls/s"]
        parts += [f"{count} {kind.replace('_', ' ')}" for kind, count in self._calls.retries.items() if count]
        return ", ".join(parts)

    def point(self) -> dict[str, float]:
        """How far it is, as a point of W&B's curves."""
        spent = self._calls.spent
        return {
            "progress/iteration": self._done(),
            f"progress/finished_{self._parts[0]}": self._finished(),
            "progress/calls": spent.calls,
            "progress/tokens": spent.tokens,
            "progress/cost": spent.cost,
            "progress/seconds": time.monotonic() - self._started,
            "progress/retries": sum(self._calls.retries.values()),
            **{f"progress/{name}": value for name, value in self._measure().items()},
        }


def search_progress(trees: Sequence[TreeSearch], calls: Calls, rule: PreferenceConfig) -> CallProgress:
    """Of a search, by iterations, with the pairs that the rule would find by now; trees that were finished before count
    as done.
    """
    expected = {tree.name: _expected_iterations(tree) for tree in trees}

    def done() -> int:
        return sum(
            expected[tree.name] if tree.finished else min(tree.search.tree.iterations, expected[tree.name])
            for tree in trees
        )

    return CallProgress(
        "search: iterations",
        sum(expected.values()),
        done,
        parts=("trees", len(trees)),
        finished=lambda: sum(tree.finished for tree in trees),
        calls=calls,
        measure=TreesSoFar([tree.search.tree for tree in trees], rule).measure,
    )


class TreesSoFar:
    """What trees hold while they grow. A tree is looked through again only if it has grown."""

    def __init__(self, trees: Sequence[Tree], rule: PreferenceConfig) -> None:
        self._trees, self._rule = trees, rule
        self._known: dict[int, tuple[int, int, int, list[float]]] = {}  # iterations, pairs, ended leaves, values

    def measure(self) -> dict[str, float]:
        """`pairs` of a preferred and a rejected reply, `ended_leaves`, judged `decisions` and the mean of their Q."""
        for number, tree in enumerate(self._trees):
            if tree.iterations and self._known.get(number, (0,))[0] != tree.iterations:
                pairs = sum(map(len, find_preferences(tree, self._rule).rejected.values()))
                judged = (node.judgement[1] for node in tree.nodes[1:])
                values = [value for value in judged if value is not None]
                self._known[number] = (tree.iterations, pairs, tree.count_ended(), values)
        values = [value for *_, of_tree in self._known.values() for value in of_tree]
        found = {
            "pairs": sum(pairs for _, pairs, _, _ in self._known.values()),
            "ended_leaves": sum(ended for _, _, ended, _ in self._known.values()),
            "decisions": len(values),
        }
        return found | ({"mean_q": fmean(values)} if values else {})


def _expected_iterations(tree: TreeSearch) -> int:
    """Iterations that a tree takes, about: where the seed has ended the search stops after `min_iterations`."""
    settings = tree.search.settings
    return max(min(settings.min_iterations, settings.max_iterations), 1)
