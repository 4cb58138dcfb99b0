"""SIGTERM as the end of a run: stages end like after an error, with files and logs closed, and with status 143."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TERMINATED = 128 + signal.SIGTERM  # the status of a process that SIGTERM ended

_held = 0  # blocks that SIGTERM waits for
_waiting = False  # a SIGTERM that came in one of them


@contextmanager
def end_on_sigterm(before: Callable[[], None] = lambda: None) -> Iterator[None]:
    """In this block SIGTERM raises SystemExit with status 143, and a second one does nothing: the end is under way.

    Python drops what is raised in a destructor or a callback of a weak reference, which imports have many of: there the
    signal is sent once more, for when they are left. Only the main thread of a process hears signals.

    Args:
        before: is called before that.
    """

    def end(number: int, frame: FrameType | None) -> None:
        global _waiting
        if _held:
            _waiting = True
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        before()
        raise stop

    def repeat_where_dropped(dropped: Any) -> None:
        if dropped.exc_value is not stop:
            hook(dropped)
            return
        signal.signal(signal.SIGTERM, end)
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop, hook = SystemExit(TERMINATED), sys.unraisablehook
    earlier: Any = signal.signal(signal.SIGTERM, end)
    sys.unraisablehook = repeat_where_dropped
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if earlier is None else earlier)
        sys.unraisablehook = hook


@contextmanager
def hold_sigterm() -> Iterator[None]:
    """SIGTERM ends the process at the end of this block, or where `sigterm_waits` is asked."""
    global _held, _waiting
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        if not _held and _waiting:
            _waiting = False
            raise SystemExit(TERMINATED)


def sigterm_waits() -> bool:
    """Whether SIGTERM has come in a block that holds it."""
    return _waiting
