"""What a person sees on the terminal: the console of tables, and progress of long loops outside the trainer."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Table

log = logging.getLogger(__name__)
LINE_EVERY_S = 30.0
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


def print_table(
    title: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str = "",
    notes: Sequence[str] = (),
) -> None:
    """A table of plain texts, the first column to the left and the others to the right, and notes below it."""
    screen = console()
    table = Table(title=escape(title), caption=escape(caption), show_header=any(heads))
    for number, head in enumerate(heads):
        table.add_column(escape(head), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    screen.print(table)
    for note in notes:
        screen.print(f"- {note}", highlight=False, markup=False, style="dim")


@contextmanager
def show_progress(what: str, total: float) -> Iterator[Callable[[float, Callable[[], str]], None]]:
    """Progress of work that comes back in no order: a bar on a terminal, elsewhere a log line now and then.

    Yields:
        A function that takes how much is done, and what there is to say beside that.
    """
    shown = time.monotonic()
    if not sys.stderr.isatty():

        def write_line(done: float, state: Callable[[], str]) -> None:
            nonlocal shown
            if time.monotonic() - shown >= LINE_EVERY_S:
                shown = time.monotonic()
                log.info("%s: %g of about %g; %s", what, done, total, state())

        yield write_line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[state]}"), console=Console(stderr=True)) as bars:
        bar = bars.add_task(what, total=total, state="")
        yield lambda done, state: bars.update(bar, completed=done, state=state())
