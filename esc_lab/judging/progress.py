"""Progress of the questions to a judge."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from esc_lab.search.calls import BudgetError
from esc_lab.terminal import show_progress

T = TypeVar("T")


async def gather_with_progress(work: Sequence[Awaitable[T]], state: Callable[[], str]) -> list[T]:
    """The results of the work, in its order, all of it done at the same time.

    Args:
        work: what is to be done.
        state: what there is to say beside how much is done.

    Raises:
        UserError: the first error. What was under way when a budget was spent is waited for: it is paid for.
    """
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        with show_progress("judging", len(tasks)) as update:
            for number, task in enumerate(asyncio.as_completed(tasks), 1):
                await task
                update(number, state)
    except BudgetError:
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    finally:
        for open_task in tasks:
            open_task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in tasks]
