"""An event loop with a clock of its own: sleeps take no time, and a loaded machine runs into no timeout."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
TICK_S = 1e-6  # by which the clock goes on with each round of the loop, so that those who wait have their turn
GRACE_S = 0.005  # real time that what was sent over the loopback interface has to arrive


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Time hardly goes on while anything can happen, and jumps to the next timer where nothing can."""

    def __init__(self) -> None:
        self.now = 0.0
        self.threads = 0  # jobs of `asyncio.to_thread` that are not done
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        self.threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._count_down)
        return future

    def _count_down(self, _: Any) -> None:
        self.threads -= 1


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        self._loop.now += TICK_S
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        if timeout is None or self._loop.threads:
            return super().select(None)
        events = super().select(GRACE_S) if len(self.get_map()) > 1 else []  # one is the loop's own
        self._loop.now += 0.0 if events else timeout
        return events


def run(test: Coroutine[Any, Any, T]) -> T:
    """The result of a test that runs on a clock of its own; one that waits for ever fails."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(asyncio.wait_for(test, 1e6))
