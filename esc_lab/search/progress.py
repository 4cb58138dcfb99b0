"""How far calls have brought a search or other work: on standard error and as curves of W&B."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from esc_lab.search.builder import TreeSearch
from esc_lab.search.calls import Calls
from esc_lab.terminal import show_progress
from esc_lab.tracking.run import log_curve

log = logging.getLogger(__name__)
CURVE_EVERY_S = 5.0


class CallProgress:
    """Counts what is done, in how many parts, and the calls, as they come.

    Args:
        what: is done, for the bar.
        total: of that.
        done: how much of the total is done.
        parts: what the work consists of, and how many of these there are.
        finished: how many of them are finished.
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
    ) -> None:
        self._what, self._total, self._done = what, total, done
        self._parts, self._finished, self._calls = parts, finished, calls
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
        log_curve(self.point())
        log.info("%s", self.state())

    async def _show(self) -> None:
        with show_progress(self._what, self._total) as update:
            try:
                while True:
                    update(self._done(), self.state)
                    if time.monotonic() - self._drawn >= CURVE_EVERY_S:
                        self._drawn = time.monotonic()
                        log_curve(self.point())
                    await asyncio.sleep(1)
            finally:
                update(self._done(), self.state)

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
        }


def search_progress(trees: Sequence[TreeSearch], calls: Calls) -> CallProgress:
    """Of a search, by iterations; trees that were finished before count as done."""
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
    )


def _expected_iterations(tree: TreeSearch) -> int:
    """Iterations that a tree takes, about: where the seed has ended the search stops after `min_iterations`."""
    settings = tree.search.settings
    return max(min(settings.min_iterations, settings.max_iterations), 1)
