"""The journals of many pieces of work, of which only those that are worked on hold their answers in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from esc_lab.config import Config
from esc_lab.runs.layout import JOURNAL_SUFFIX
from esc_lab.search.calls import Calls
from esc_lab.search.journal import Journal, take_over_journals


class WorkJournals:
    """Takes over the journals of the run that `cfg.resume` names, and counts all that was spent before as spent, so
    that the budget is not begun anew for what comes late.

    Args:
        directory: of the journals, in the run directory.
        configs: name of each journal, without ending -> what its calls depend on.

    Raises:
        UserError: a journal is of another configuration, or cannot be read.
    """

    def __init__(self, cfg: Config, calls: Calls, directory: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
        self._calls, self._directory, self._configs = calls, directory, configs
        take_over_journals(cfg, directory, configs)
        self._earlier: dict[str, Journal] = {}
        for name in configs:
            if self._path(name).exists():
                self._earlier[name] = calls.open_journal(self._path(name), configs[name])
                self._earlier[name].release()

    @asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[Journal]:
        """The journal, with its answers in memory until the end of the block."""
        journal = self._earlier.pop(name, None)
        if journal is None:  # its first line is synced, and other work goes on meanwhile
            journal = await asyncio.to_thread(Journal, self._path(name), self._configs[name])
            self._calls.take_journal(journal)
        else:
            journal.recall()
        try:
            yield journal
        finally:
            await asyncio.to_thread(journal.release)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}{JOURNAL_SUFFIX}"
