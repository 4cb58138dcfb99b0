"""Searches from many seed dialogues at once, under one limit of calls, and the files of finished trees."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esc_lab.artifacts import READ_ERRORS, write_atomic
from esc_lab.config.search import MCTSConfig
from esc_lab.errors import UserError
from esc_lab.search.iteration import Call
from esc_lab.search.journal import MAKE_ROOM, Journal
from esc_lab.search.mcts import Search
from esc_lab.search.requests import TooLongError
from esc_lab.search.roles import Roles
from esc_lab.search.spending import BudgetError

log = logging.getLogger(__name__)
SYNC_EVERY_S = 1.0


@dataclass
class TreeSearch:
    """The search of one tree, with those who play in it.

    Attributes:
        name: of its files.
        search: the search at its start; afterwards as far as it came.
        roles: who plays in it.
        journal: its finished calls.
        extend: gives the nodes that are to get texts when the search is done (`extend_rejected`).
        finished: the search came to its end.
        too_long: why it is set aside, if a conversation of it exceeds the context of a model.
        unused: answers to calls that were made ahead and that the tree was not made from.
    """

    name: str
    search: Search
    roles: Roles
    journal: Journal
    extend: Callable[[Search], Sequence[int]] | None = None
    finished: bool = False
    too_long: TooLongError | None = None
    unused: int = 0


async def search_trees(
    trees: Sequence[TreeSearch],
    at_once: int,
    on_finish: Callable[[TreeSearch], None] = lambda _: None,
    has_room: Callable[[], bool] = lambda: True,
) -> BudgetError | None:
    """Search until all trees are finished, or set aside as too long for a model, or the budget is spent.

    As long as the answers do not, the trees depend neither on `at_once` nor on how many calls may be under way.

    Args:
        at_once: trees that are searched at the same time.
        on_finish: called when a tree is finished.
        has_room: whether another call could be made at once; calls are made ahead only then.

    Returns:
        The error that says which budget is spent, if that stopped it.

    Raises:
        UserError: an answer cannot be had, or a journal cannot be written. What was answered before is in the journals.
    """
    slots = asyncio.Semaphore(at_once)
    stopped: list[BudgetError] = []

    async def search_tree(tree: TreeSearch) -> None:
        async with slots:
            if tree.finished or stopped:
                return
            try:
                await _make_calls(tree, has_room)
                if tree.extend is not None:
                    tree.search.extend(tree.extend(tree.search))
                    await _make_calls(tree, has_room)
            except BudgetError as error:
                stopped.append(error)
            except TooLongError as error:
                tree.too_long = error
                log.warning("%s is set aside: %s", tree.name, error)
            else:
                tree.finished = True
                on_finish(tree)

    try:
        async with asyncio.TaskGroup() as group:
            syncing = group.create_task(_sync([tree.journal for tree in trees]))
            async with asyncio.TaskGroup() as searches:
                for tree in trees:
                    searches.create_task(search_tree(tree))
            syncing.cancel()
    except BaseExceptionGroup as errors:
        raise _first(errors) from None
    return stopped[0] if stopped else None


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _make_calls(tree: TreeSearch, has_room: Callable[[], bool]) -> None:
    """Make the calls of a search until it is done, and others ahead while it waits."""
    search = tree.search
    under_way: dict[asyncio.Task[tuple[Any, Counter[str]]], Call] = {}
    events: dict[Call, Counter[str]] = {}
    refused: dict[Call, UserError] = {}

    def begin(calls: Sequence[Call]) -> None:
        under_way.update({asyncio.create_task(_find_result(tree.roles, call)): call for call in calls})

    try:
        while True:
            begin(search.ask())
            if search.done:
                return
            await asyncio.sleep(0)  # what is in the journal is answered now
            if not any(task.done() for task in under_way) and not refused and has_room():
                begin(search.ask_ahead())
            done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            # In the order in which they were asked for, although the tree does not depend on it.
            for task in [task for task in under_way if task in done]:
                call = under_way.pop(task)
                if isinstance(error := task.exception(), BudgetError | TooLongError):
                    refused[call] = error
                else:
                    result, events[call] = task.result()
                    search.tell(call, result)
            if needed := next(filter(search.needs, refused), None):
                raise refused[needed]
    except BudgetError:
        # What is being answered is paid for: let it come into the journal.
        await asyncio.gather(*under_way, return_exceptions=True)
        raise
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        tree.unused += sum(call not in search.used for call in events)
        for call in search.used & events.keys():
            tree.roles.counts.update(events[call])


async def _find_result(roles: Roles, call: Call) -> tuple[Any, Counter[str]]:
    """The result of a call, and the events that the roles counted meanwhile."""
    roles = copy(roles)
    roles.counts = Counter()
    return await roles.result(call), roles.counts


async def _sync(journals: Sequence[Journal]) -> None:
    """Have the journals outlive a crash of the machine, once a second, in a thread of its own."""
    while True:
        await asyncio.sleep(SYNC_EVERY_S)
        for journal in journals:
            await asyncio.to_thread(journal.sync)


def save_tree(tree: TreeSearch, directory: Path, settings: str) -> Path:
    """Write a finished tree with the events that its roles counted, and the fingerprint of what it depends on."""
    path = directory / f"{tree.name}.json"
    state = {"grown_with": settings, "counts": dict(tree.roles.counts), **tree.search.state()}
    write_atomic(path, json.dumps(state, ensure_ascii=False), MAKE_ROOM)
    return path


def load_tree(path: Path, fingerprint: str, settings: MCTSConfig) -> tuple[Search, Counter[str]] | None:
    """A finished tree that `save_tree` wrote, and its counts; None if there is none with this fingerprint.

    Raises:
        UserError: the file is no such tree.
    """
    if not path.exists():
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if state["grown_with"] == fingerprint:
            return Search.from_state(state, settings), Counter(state["counts"])
        leaves = state["settings"].get("in_flight", 1)  # no part of the settings any more
    except READ_ERRORS as error:
        fix = "delete the file; the tree is then grown again from its journal"
        raise UserError("not a tree of this version", where=str(path), fix=fix) from error
    if leaves > 1:
        log.warning(
            "%s was grown by an earlier version with %d leaves in flight, which changed the search; it is grown "
            "anew, as with one, from the answers in its journal and new ones", path, leaves,
        )  # fmt: skip
    return None
