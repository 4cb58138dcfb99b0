"""The request cache: answers by content of the request, in one SQLite file that runs share."""

from __future__ import annotations

import errno
import json
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from esc_lab.artifacts import READ_ERRORS
from esc_lab.errors import UserError
from esc_lab.search.requests import Answer

log = logging.getLogger(__name__)


class RequestCache:
    """Answers by `Request.key`, which covers the client, the content, the sampling and the number of the sample.

    Several processes may use one file. Where its disk is full it takes no more answers, with a warning.

    Raises:
        UserError: the file is no such cache, or cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._full = path, False
        self._file = sqlite3.connect(":memory:")  # stays where there is no room for the file
        with self._wrap_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=30, isolation_level=None)
            # A crash of the machine may lose the last answers, never the file; the journals hold them anyway.
            self._file.execute("PRAGMA synchronous=NORMAL")
            with FileLock(f"{path}.lock"):  # the first change to WAL does not wait for other processes
                self._file.execute("PRAGMA journal_mode=WAL")
                self._file.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")

    def get(self, key: str) -> Answer | None:
        with self._wrap_errors():
            row = self._file.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            return Answer.from_json(json.loads(row[0])) if row else None
        return None

    def put(self, key: str, answer: Answer) -> None:
        if self._full:
            return
        with self._wrap_errors():
            text = json.dumps(answer.to_json(), ensure_ascii=False)
            self._file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, text))

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _wrap_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, *READ_ERRORS) as error:
            if self._full or _is_full(error):
                if not self._full:
                    log.warning("%s: the request cache takes no more answers: %s", self.path, error)
                self._full = True
                return
            fix = "make room, delete the file, or use search.cache=false; the journals of the run hold its answers"
            raise UserError(f"the request cache does not work: {error}", where=str(self.path), fix=fix) from error


def _is_full(error: Exception) -> bool:
    """Whether an error is one of a disk without room; SQLite has two words for it, by the file that it writes."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0)
        return code == sqlite3.SQLITE_FULL or code & 0xFF == sqlite3.SQLITE_IOERR
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
