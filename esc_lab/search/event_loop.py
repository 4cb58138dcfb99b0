"""The event loop that calls run in."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` with uvloop where it is installed, and without collecting what was there before.

    Garbage collections that look through all modules and models each time cost a tenth of the calls a second. Where
    somebody has set apart already what is there, it stays so: there is no way to give back a part of it.
    """
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    frozen = gc.get_freeze_count() > 0
    if not frozen:
        gc.collect()
        gc.freeze()
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(work)
    finally:
        if not frozen:
            gc.unfreeze()
