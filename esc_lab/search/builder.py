"""Grows many trees at once, under one limit of calls, from journals that an interrupted search left."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from esc_lab.artifacts import write_atomic
from esc_lab.errors import UserError
from esc_lab.search.calls import BudgetError, Calls
from esc_lab.search.iteration import Call
from esc_lab.search.journal import Journal
from esc_lab.search.mcts import Search
from esc_lab.search.roles import Roles

SYNC_EVERY_S = 1.0
T = TypeVar("T")


@dataclass
class Growing:
    """A tree to grow.

    Attributes:
        name: of its files.
        search: the search at its start; afterwards as far as it came.
        roles: who plays in it.
        journal: its finished calls.
        extend: nodes that are to get texts when the search is done (`extend_rejected`).
        finished: the search came to its end.
    """

    name: str
    search: Search
    roles: Roles
    journal: Journal
    extend: Callable[[Search], Sequence[int]] | None = None
    finished: bool = False


def run(search: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` for a search: with uvloop where it is installed, and without collecting what was there before.

    Garbage collections that look through all modules and models each time cost a tenth of the calls a second.
    """
    gc.collect()
    gc.freeze()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(search)
    finally:
        gc.unfreeze()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def grow(
    trees: Sequence[Growing],
    calls: Calls,
    at_once: int,
    on_change: Callable[[Growing], None] = lambda _: None,
    on_finish: Callable[[Growing], None] = lambda _: None,
) -> BudgetError | None:
    """Grow trees until all are finished or the budget is spent.

    As long as the answers do not, the trees depend neither on `at_once` nor on how many calls may be under way.

    Args:
        at_once: trees that are grown at the same time.
        on_change: called when a call of a tree has come back.
        on_finish: called when a tree is finished.

    Returns:
        The error that says which budget is spent, if that stopped it.

    Raises:
        UserError: an answer cannot be had, or a journal cannot be written. What was answered before is in the journals.
    """
    slots = asyncio.Semaphore(at_once)
    stopped: list[BudgetError] = []

    async def one(tree: Growing) -> None:
        async with slots:
            if tree.finished or stopped:
                return
            try:
                await _grow(tree, calls, on_change)
            except BudgetError as error:
                stopped.append(error)
            else:
                tree.finished = True
                on_finish(tree)

    try:
        async with asyncio.TaskGroup() as group:
            syncing = group.create_task(_sync([tree.journal for tree in trees]))
            async with asyncio.TaskGroup() as growing:
                for tree in trees:
                    growing.create_task(one(tree))
            syncing.cancel()
    except BaseExceptionGroup as errors:
        raise _first(errors) from None
    return stopped[0] if stopped else None


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _grow(tree: Growing, calls: Calls, on_change: Callable[[Growing], None]) -> None:
    await _run(tree, on_change)
    if tree.extend is not None:
        tree.search.extend(tree.extend(tree.search))
        await _run(tree, on_change)


async def _run(tree: Growing, on_change: Callable[[Growing], None]) -> None:
    """Make the calls of a search until it is done."""
    search = tree.search
    under_way: dict[asyncio.Task[Any], Call] = {}
    try:
        while True:
            for call in search.ask():
                under_way[asyncio.create_task(tree.roles.result(call))] = call
            if search.done:
                return
            done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            # In the order in which they were asked for, although the tree does not depend on it.
            for task in [task for task in under_way if task in done]:
                search.tell(under_way.pop(task), task.result())
            on_change(tree)
    except BudgetError:
        # What is being answered is paid for: let it come into the journal.
        await asyncio.gather(*under_way, return_exceptions=True)
        raise
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _sync(journals: Sequence[Journal]) -> None:
    """Have the journals outlive a crash of the machine, once a second, in a thread of its own."""
    while True:
        await asyncio.sleep(SYNC_EVERY_S)
        for journal in journals:
            await asyncio.to_thread(journal.sync)


def save(tree: Growing, directory: Path, fingerprint: str) -> Path:
    """Write a finished tree with what its roles' answers counted, and the fingerprint of what it was grown with."""
    path = directory / f"{tree.name}.json"
    state = {"grown_with": fingerprint, "counts": dict(tree.roles.counts), **tree.search.state()}
    write_atomic(path, json.dumps(state, ensure_ascii=False))
    return path


def load(directory: Path, name: str, fingerprint: str) -> tuple[Search, Counter[str]] | None:
    """A finished tree that `save` wrote, and its counts; None if there is none that was grown in the same way.

    Raises:
        UserError: the file is no such tree.
    """
    path = directory / f"{name}.json"
    if not path.exists():
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        same = state.pop("grown_with") == fingerprint
        return (Search.of(state), Counter(state["counts"])) if same else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fix = "delete the file; the tree is then grown again from its journal"
        raise UserError("not a tree of this version", where=str(path), fix=fix) from error
