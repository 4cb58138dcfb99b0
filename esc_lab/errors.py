"""The one exception that users are meant to see."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Something the user can mend: bad input, a wrong setting, a missing file.

    `run.py` prints it as one line and exits with status 1; the traceback is shown with `hydra.verbose=true`.

    Args:
        message: what is wrong, with the offending value.
        where: file, record or config key that it concerns.
        fix: what to do about it.
    """

    def __init__(self, message: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.message, self.where, self.fix = message, where, fix
        text = f"{where}: {message}" if where else message
        stop = "" if text.endswith(("?", ".")) else "."
        super().__init__(f"{text}{stop} Fix: {fix}" if fix else text)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, or nothing if none is as alike as `cutoff`."""
    options = list(known)
    by_lower = {option.lower(): option for option in options}
    match = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=cutoff)
    return f"; did you mean '{by_lower[match[0]]}'?" if match else ""


def list_names(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """The names, of more than `most` the first ones and how many others there are.

    >>> list_names(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    return separator.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
