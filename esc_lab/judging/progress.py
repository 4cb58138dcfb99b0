"""What stage `judge` shows while it waits for answers: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from esc_lab.search.calls import BudgetError
from esc_lab.search.progress import LINE_EVERY_S

log = logging.getLogger(__name__)
T = TypeVar("T")


async def finished(work: Sequence[Awaitable[T]], state: Callable[[], str]) -> list[T]:
    """The results of the work, in its order, all of it done at the same time.

    Args:
        work: what is to be done.
        state: what there is to say beside how much is done.

    Raises:
        UserError: the first error. What was under way when a budget was spent is waited for: it is paid for.
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Progress(*columns, TextColumn("{task.fields[state]}"), console=Console(stderr=True))
    bar = bars.add_task("judging", total=len(tasks), state="")
    shown = time.monotonic()
    try:
        if sys.stderr.isatty():
            bars.start()
        for number, next_ in enumerate(asyncio.as_completed(tasks), 1):
            await next_
            bars.update(bar, completed=number, state=state())
            if not bars.live.is_started and time.monotonic() - shown >= LINE_EVERY_S:
                shown = time.monotonic()
                log.info("judging: %d of %d; %s", number, len(tasks), state())
    except BudgetError:
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    finally:
        bars.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in tasks]
