"""What many pieces of work, each with calls of its own, came to and what they took, also under a spent budget."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from esc_lab.search.calls import Calls
from esc_lab.search.progress import CallProgress
from esc_lab.search.spending import BudgetError

T = TypeVar("T")
# What became of answers of a role, by the event that `Roles` counts; the words follow "seeker: ".
EVENTS = {
    "cut_off": "answers that end at the token limit",
    "unusable": "answers that cannot be used",
    "refused": "of these refused by the model",
    "filtered": "of these held back by the endpoint",
    "empty": "of these without words",
    "other_side": "of these words of the other side",
    "meta": "of these about the roles",
    "partly": "results of which only a part could be read",
    "missing": "results without any usable answer",
    "too_long": "prompts that exceed the model's context",
}


@dataclass
class WorkResult(Generic[T]):
    """The results, and what they took.

    Attributes:
        finished: results, in the order of the work.
        unfinished: how many there are not, since the budget is spent.
        stopped: says which budget.
        counts: events of the answers (see `Roles`).
    """

    calls: Calls
    finished: list[T] = field(default_factory=list)
    unfinished: int = 0
    stopped: BudgetError | None = None
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def metrics(self, stage: str, kind: str) -> dict[str, float]:
        """What they took, flat, under `STAGE/`; `kind` is the plural of what is made."""
        metrics = self.calls.describe(self.seconds) | {f"unfinished_{kind}": self.unfinished} | self.counts
        return {f"{stage}/{name}": float(value) for name, value in metrics.items()}

    def rows(self, kind: str) -> list[tuple[str, str]]:
        """What there is not and what became of answers, in words; without what did not occur."""
        counted = [(name.rpartition("/"), count) for name, count in self.counts.items() if count]
        rows = [
            (f"{role}: {words}", f"{count}")
            for event, words in EVENTS.items()
            for (role, _, counted_event), count in sorted(counted)
            if counted_event == event
        ]
        lacking = [(f"{kind} not made, since the budget is spent", f"{self.unfinished}")] if self.unfinished else []
        return [*lacking, *rows]

    async def collect(self, work: Iterable[Coroutine[Any, Any, T]], progress: CallProgress) -> None:
        """Do all the work at once; what fails by anything but a spent budget is raised at the end."""
        started = time.time()
        async with progress.shown():
            results = await asyncio.gather(*work, return_exceptions=True)
            for result in results:
                if isinstance(result, BudgetError):
                    self.stopped = self.stopped or result
                    self.unfinished += 1
                elif isinstance(result, BaseException):
                    raise result
                else:
                    self.finished.append(result)
        self.seconds = time.time() - started
