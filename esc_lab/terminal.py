"""What a person sees: the console of tables, progress of long loops outside the trainer, and texts of others.

Texts of models, endpoints and files are made safe to show: on the terminal, in a spreadsheet, in Markdown. Rich is
imported where it draws: a command that only shows a configuration does without.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)
LINE_EVERY_S = 30.0
T = TypeVar("T")
_EXPLAINED: ContextVar[set[str] | None] = ContextVar("what was explained", default=None)
# C0 but tab and newline, DEL, C1, and the marks that turn the direction of writing. A terminal obeys the first three.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_NUMBER = re.compile(r"[-+<]?\d")
_MARKDOWN = re.compile(
    r"[\\`*~>|]|<(?=[A-Za-z/!?])|\](?=[(\[:])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=:)//|(?<=\bwww)\.", re.IGNORECASE
)


class PlainFormatter(logging.Formatter):
    """Messages as a terminal may have them: control characters in them are shown, not obeyed."""

    def format(self, record: logging.LogRecord) -> str:
        return show_controls(super().format(record))


class LaunchWords(logging.Filter):
    """Says in words how many jobs of a multirun joblib is to run, and how many at a time."""

    _SAID = re.compile(r"Joblib\.Parallel\(.*\bn_jobs=(-?\d+).*\) is launching (\d+) jobs")

    def filter(self, record: logging.LogRecord) -> bool:
        if match := self._SAID.fullmatch(str(record.msg)):
            at_once, jobs = int(match[1]), int(match[2])
            pace = "one after the other" if at_once == 1 else f"{at_once} at a time" if at_once > 1 else "side by side"
            record.msg = f"{jobs} job{'s' * (jobs != 1)}, {pace}"
        return True


def escape(text: str) -> str:
    """The text as markup of rich that shows it as it is."""
    from rich.markup import escape as escape_markup

    return escape_markup(show_controls(text))


class Countdown:
    """How long work still takes, if the rest goes as fast as what was done since this was made.

    Args:
        done: how much was done before.
    """

    def __init__(self, done: float = 0.0) -> None:
        self._started, self._before = time.monotonic(), done

    def left(self, done: float, total: float) -> str:
        """`, about 40 s left`; nothing while less than a tenth is done, which says too little, and at the end."""
        own = done - self._before
        if own <= 0 or done < total / 10 or done >= total:
            return ""
        return _tell_left((time.monotonic() - self._started) * (total - done) / own)


class StepCountdown:
    """How long steps of several kinds still take: each as long as those of its kind did, else as steps on average."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def add(self, kind: str, seconds: float) -> None:
        """What a step took."""
        self._seconds.setdefault(kind, []).append(seconds)

    def left(self, kinds: Sequence[str]) -> str:
        """`, about 9 min left` if steps of these kinds are to come; nothing while none was timed."""
        known = {kind: sum(seconds) / len(seconds) for kind, seconds in self._seconds.items()}
        if not known:
            return ""
        average = sum(known.values()) / len(known)
        return _tell_left(sum(known.get(kind, average) for kind in kinds))


def _tell_left(seconds: float) -> str:
    return f", about {seconds:.0f} s left" if seconds < 100 else f", about {seconds / 60:.0f} min left"


def track_progress(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, with progress: a bar on a terminal, elsewhere a log line about every tenth of the way."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, what, console=Console(stderr=True))
        return
    countdown = Countdown()
    for number, item in enumerate(items, start=1):
        yield item
        if number % max(len(items) // 10, 1) == 0 or number == len(items):
            log.info("%s: %d/%d%s", what, number, len(items), countdown.left(number, len(items)))


def console() -> Console:
    """Standard output; as wide as a table needs where it is not a terminal, so that logs are not cut."""
    from rich.console import Console

    screen = Console()
    return screen if screen.is_terminal else Console(width=160)


@contextmanager
def explain_once() -> Iterator[None]:
    """Within the block tables say what a column means the first time alone, those of blocks inside it too."""
    outer = _EXPLAINED.get()
    token = _EXPLAINED.set(set() if outer is None else outer)
    try:
        yield
    finally:
        _EXPLAINED.reset(token)


def find_numbers(rows: Sequence[Sequence[str]], columns: int) -> list[bool]:
    """Of each column whether it holds numbers, which stand to the right; the first one names the row."""
    return [column > 0 and any(_NUMBER.match(row[column]) for row in rows) for column in range(columns)]


def print_table(
    title: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str = "",
    notes: Sequence[str] = (),
    meanings: Sequence[str] = (),
    marked: int = 0,
) -> None:
    """A table of plain texts, numbers to the right, and below it what there is to say of it.

    Args:
        meanings: what its columns are; left out where a table before has said so (`explain_once`).
        marked: how many of its first rows are to catch the eye.
    """
    from rich.table import Table

    screen = console()
    # Wide enough for its title in one line.
    width = min(len(title) + 2, screen.width)
    table = Table(title=escape(title), caption=escape(caption), show_header=any(heads), min_width=width)
    rows = list(rows)
    for head, numbers in zip(heads, find_numbers(rows, len(heads)), strict=True):
        table.add_column(escape(head), justify="right" if numbers else "left", overflow="fold")
    for number, row in enumerate(rows):
        table.add_row(*map(escape, row), style="bold red" if number < marked else None)
    screen.print(table)
    explained = _EXPLAINED.get()
    told = [note for note in meanings if explained is None or note not in explained]
    above = ["columns: as said above."] if len(told) < len(meanings) else []
    if explained is not None:
        explained.update(meanings)
    for note in [*notes, *told, *above]:
        screen.print(f"- {show_controls(note)}", highlight=False, markup=False, style="dim")


@contextmanager
def show_progress(what: str, total: float) -> Iterator[Callable[[float, Callable[[], str]], None]]:
    """Progress of work that comes back in no order: a bar on a terminal, elsewhere a log line now and then.

    Yields:
        A function that takes how much is done, and what there is to say beside that.
    """
    shown, countdown = time.monotonic(), Countdown()
    if not sys.stderr.isatty():

        def write_line(done: float, state: Callable[[], str]) -> None:
            nonlocal shown
            if time.monotonic() - shown >= LINE_EVERY_S:
                shown = time.monotonic()
                log.info("%s: %g of about %g%s; %s", what, done, total, countdown.left(done, total), state())

        yield write_line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[state]}"), console=Console(stderr=True)) as bars:
        bar = bars.add_task(what, total=total, state="")
        yield lambda done, state: bars.update(bar, completed=done, state=state())


def show_controls(text: str) -> str:
    r"""The text with control characters as escapes, so that no terminal obeys them.

    >>> show_controls("\x1b[2Jgone\n")
    '\\x1b[2Jgone\n'
    """
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def escape_markdown(text: str) -> str:
    """The text as Markdown that shows it in one line: no markup, table cell, HTML or link comes of it.

    >>> escape_markdown("<b>*max_tokens*</b> | http://a.b")
    '\\\\<b\\\\>\\\\*max_tokens\\\\*\\\\</b\\\\> \\\\| http:\\\\//a.b'
    """
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(show_controls(text).split()))


def to_cell(value: object) -> object:
    """A value for a CSV cell: no spreadsheet takes a text for a formula.

    >>> to_cell("=1+1"), to_cell("-"), to_cell(-1.5), to_cell("-1.5")
    ("'=1+1", "'-", -1.5, '-1.5')
    """
    if not isinstance(value, str):
        return value
    text = show_controls(value)
    return f"'{text}" if text.lstrip(" \t\n\"'")[:1] in tuple("=+-@") and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
