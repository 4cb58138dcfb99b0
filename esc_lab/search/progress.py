"""What a search shows while it runs: bars on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from esc_lab.search.builder import Growing
from esc_lab.search.calls import Spent
from esc_lab.tracking.run import log_curve

log = logging.getLogger(__name__)
LINE_EVERY_S = 30.0
CURVE_EVERY_S = 5.0


class SearchProgress:
    """Counts iterations, trees and calls as they come.

    Args:
        trees: all trees, finished ones among them.
        spent: what clients have done; read, never changed.
        retries: calls that failed and were made again, by kind.
    """

    def __init__(
        self, trees: Sequence[Growing], spent: Spent, retries: Callable[[], Mapping[str, int]], bars: Progress | None
    ) -> None:
        self._trees, self._spent, self._retries, self._bars = trees, spent, retries, bars
        self._expected = {tree.name: _expected(tree) for tree in trees}
        self._started, self._made, self._shown = time.monotonic(), spent.made, time.monotonic()
        self._drawn = self._started
        if bars:
            self._task = bars.add_task("search", total=sum(self._expected.values()), state="")
        self.change()

    def change(self, _: Growing | None = None) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if self._bars:
            self._bars.update(self._task, completed=self._done(), state=self.state())
        elif now - self._shown >= LINE_EVERY_S:
            self._shown = now
            log.info("iteration %d of about %d; %s", self._done(), sum(self._expected.values()), self.state())
        if now - self._drawn >= CURVE_EVERY_S:
            self._drawn = now
            log_curve(self.point())

    async def keep_showing(self) -> None:
        """Show it every second, also while no call comes back."""
        while True:
            await asyncio.sleep(1)
            self.change()

    def state(self) -> str:
        """Trees, calls a second, tokens and cost in a few words."""
        seconds = max(time.monotonic() - self._started, 1e-6)
        finished = sum(tree.finished for tree in self._trees)
        parts = [
            f"{finished}/{len(self._trees)} trees",
            f"{self._spent.calls} calls",
            f"{(self._spent.made - self._made) / seconds:.1f}/s",
            f"{self._spent.tokens / 1000:.0f}k tokens",
        ]
        parts += [f"${self._spent.cost:.2f}"] if self._spent.cost else []
        parts += [f"{count} {kind.replace('_', ' ')}" for kind, count in self._retries().items() if count]
        return ", ".join(parts)

    def point(self) -> dict[str, float]:
        """How far it is, as a point of W&B's curves."""
        return {
            "progress/iteration": self._done(),
            "progress/finished_trees": sum(tree.finished for tree in self._trees),
            "progress/calls": self._spent.calls,
            "progress/tokens": self._spent.tokens,
            "progress/cost": self._spent.cost,
            "progress/seconds": time.monotonic() - self._started,
            "progress/retries": sum(self._retries().values()),
        }

    def _done(self) -> float:
        return sum(
            self._expected[tree.name] if tree.finished else min(tree.search.tree.iterations, self._expected[tree.name])
            for tree in self._trees
        )


def _expected(tree: Growing) -> int:
    """Iterations that a tree takes, about: where the seed has ended the search stops when there were enough."""
    settings = tree.search.settings
    return max(min(settings.enough_iterations, settings.most_iterations), 1)


@contextmanager
def search_progress(
    trees: Sequence[Growing], spent: Spent, retries: Callable[[], Mapping[str, int]]
) -> Iterator[SearchProgress]:
    """Progress on standard error while the trees grow."""
    if not sys.stderr.isatty():
        yield SearchProgress(trees, spent, retries, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[state]}"), console=Console(stderr=True)) as bars:
        yield SearchProgress(trees, spent, retries, bars)
