"""How far a search is: iterations, trees, calls, on standard error and as curves of W&B."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from esc_lab.search.builder import TreeSearch
from esc_lab.search.calls import Calls
from esc_lab.terminal import show_progress
from esc_lab.tracking.run import log_curve

CURVE_EVERY_S = 5.0


class SearchProgress:
    """Counts iterations, trees and calls as they come; trees that were finished before count as done."""

    def __init__(self, trees: Sequence[TreeSearch], calls: Calls) -> None:
        self._trees, self._calls = trees, calls
        self._expected = {tree.name: _expected_iterations(tree) for tree in trees}
        self._started = self._drawn = time.monotonic()
        self._made_before = calls.spent.made

    async def show(self) -> None:
        """Show it every second, also while no call comes back; until cancelled."""
        with show_progress("search: iterations", sum(self._expected.values())) as update:
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
        """Trees, calls a second, tokens and cost in a few words."""
        spent, seconds = self._calls.spent, max(time.monotonic() - self._started, 1e-6)
        rate = (spent.made - self._made_before) / seconds
        parts = [f"{self._finished()}/{len(self._trees)} trees", spent.text(), f"{rate:.1f} calls/s"]
        parts += [f"{count} {kind.replace('_', ' ')}" for kind, count in self._calls.retries.items() if count]
        return ", ".join(parts)

    def point(self) -> dict[str, float]:
        """How far it is, as a point of W&B's curves."""
        spent = self._calls.spent
        return {
            "progress/iteration": self._done(),
            "progress/finished_trees": self._finished(),
            "progress/calls": spent.calls,
            "progress/tokens": spent.tokens,
            "progress/cost": spent.cost,
            "progress/seconds": time.monotonic() - self._started,
            "progress/retries": sum(self._calls.retries.values()),
        }

    def _finished(self) -> int:
        return sum(tree.finished for tree in self._trees)

    def _done(self) -> int:
        return sum(
            self._expected[tree.name] if tree.finished else min(tree.search.tree.iterations, self._expected[tree.name])
            for tree in self._trees
        )


def _expected_iterations(tree: TreeSearch) -> int:
    """Iterations that a tree takes, about: where the seed has ended the search stops after `min_iterations`."""
    settings = tree.search.settings
    return max(min(settings.min_iterations, settings.max_iterations), 1)
