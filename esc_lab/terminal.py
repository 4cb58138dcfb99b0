"""What a person sees on the terminal: the console of tables, and progress of long loops outside the trainer."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

log = logging.getLogger(__name__)
T = TypeVar("T")


def track_progress(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, with progress: a bar on a terminal, elsewhere a log line about every tenth of the way."""
    if sys.stderr.isatty():
        yield from track(items, what, console=Console(stderr=True))
        return
    for number, item in enumerate(items, start=1):
        yield item
        if number % max(len(items) // 10, 1) == 0 or number == len(items):
            log.info("%s: %d/%d", what, number, len(items))


def console() -> Console:
    """Standard output; as wide as a table needs where it is not a terminal, so that logs are not cut."""
    found = Console()
    return found if found.is_terminal else Console(width=160)
