"""Progress of long loops outside the trainer: a bar on a terminal, elsewhere a line about every tenth of the way."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.progress import track

log = logging.getLogger(__name__)
T = TypeVar("T")


def tracked(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, with progress on standard error or in the log."""
    if sys.stderr.isatty():
        from rich.console import Console

        yield from track(items, what, console=Console(stderr=True))
        return
    for number, item in enumerate(items, start=1):
        yield item
        if number % max(len(items) // 10, 1) == 0 or number == len(items):
            log.info("%s: %d/%d", what, number, len(items))
