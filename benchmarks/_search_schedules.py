"""Searches against the loopback endpoint: as esc-lab runs them, and on the published schedule."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

sys.path.append(str(Path(__file__).parents[1]))  # the endpoint is the tests'

from esc_lab.config.search import ROLES, EndpointConfig, LLMConfig, MCTSConfig
from esc_lab.data.corpora import read_dialogues, sample_path
from esc_lab.data.strategies import load_inventory
from esc_lab.prompts import SeekerProfile
from esc_lab.search.builder import TreeSearch, search_trees
from esc_lab.search.calls import Calls
from esc_lab.search.clients.openai import OpenAIClient
from esc_lab.search.event_loop import run_loop
from esc_lab.search.journal import Journal
from esc_lab.search.mcts import Search
from esc_lab.search.requests import Answer, Client, Request
from esc_lab.search.roles import Roles
from esc_lab.search.seed_dialogue import build_seed
from tests.search.endpoint import Endpoint
from tests.search.endpoint_roles import play

INVENTORY = load_inventory("esconv")
ENDING = 1 / 16  # a seeker ends the talk with one of so many answers; the dialogues of ESConv have about as many


def answered(body: dict[str, Any]) -> str:
    """What the endpoint answers."""
    return play(body, ENDING)


Reply: TypeAlias = Callable[[dict[str, Any]], str]


@dataclass
class Measured:
    """What a run took.

    Attributes:
        finished: when each call came back, in seconds from the start.
        tree_ends: when each tree was finished.
        seconds, cpu_seconds: wall clock, and what this process computed.
        journal_seconds: in writing to journals.
    """

    finished: list[float] = field(default_factory=list)
    tree_ends: list[float] = field(default_factory=list)
    iterations: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    journal_seconds: float = 0.0

    def calls_per_s(self, left: int) -> float:
        """Calls a second from the start until only `left` trees go on."""
        end = sorted(self.tree_ends)[-left - 1] if left < len(self.tree_ends) else self.seconds
        return sum(at <= end for at in self.finished) / end


class TimedJournal(Journal):
    """A journal that adds up the time spent in it."""

    seconds = 0.0

    def add(self, key: str, request: Request, answer: Answer, *, cached: bool = False) -> None:
        started = time.perf_counter()
        super().add(key, request, answer, cached=cached)
        self.seconds += time.perf_counter() - started


class AtOnce:
    """A client that answers without waiting."""

    scores = False
    retries: Mapping[str, int] = {}

    def __init__(self) -> None:
        self.identity = {"kind": "at once"}

    async def answer(self, request: Request) -> Answer:
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        return Answer(answered({"messages": messages, "seed": request.seed}), model="at once")

    async def close(self) -> None:
        pass


def _serve(latency_s: float, reply: Reply, url: Any, over: Any) -> None:
    with Endpoint(reply, latency_s=latency_s).running() as address:
        url.put(address)
        over.wait()


@contextmanager
def endpoint(latency_s: float, reply: Reply = answered) -> Iterator[str]:
    """URL of the endpoint, in a process of its own."""
    context = multiprocessing.get_context("fork")
    url, over = context.Queue(), context.Event()
    process = context.Process(target=_serve, args=(latency_s, reply, url, over), daemon=True)
    process.start()
    try:
        yield url.get(timeout=10)
    finally:
        over.set()
        process.join()


def run(client: Client, trees: int, iterations: int, in_flight: int, concurrency: int, workers: int = 0) -> Measured:
    """Grow trees of so many iterations each; with `workers` on the published schedule: a tree each, call by call."""
    return run_loop(_run(client, trees, iterations, in_flight, concurrency, workers))


async def _run(client: Client, trees: int, iterations: int, in_flight: int, concurrency: int, workers: int) -> Measured:
    settings = MCTSConfig(min_iterations=iterations, max_iterations=iterations, max_ended=10**6, in_flight=in_flight)
    measured = Measured()
    calls = Calls(dict.fromkeys(ROLES, client), concurrency)
    with tempfile.TemporaryDirectory() as directory:
        grown = _trees(Path(directory), calls, settings, trees, measured)
        started, computed = time.perf_counter(), time.process_time()
        _note_times(grown, measured, started)

        def ended(_: TreeSearch) -> None:
            measured.tree_ends.append(time.perf_counter() - started)

        if workers:
            await _published(grown, workers, ended)
        else:
            await search_trees(grown, at_once=trees, on_finish=ended)
        measured.seconds = time.perf_counter() - started
        measured.cpu_seconds = time.process_time() - computed
        measured.iterations = sum(tree.search.tree.iterations for tree in grown)
        measured.journal_seconds = sum(getattr(tree.journal, "seconds", 0.0) for tree in grown)
        await calls.close()
        for tree in grown:
            tree.journal.sync()
    return measured


def _trees(directory: Path, calls: Calls, settings: MCTSConfig, number: int, measured: Measured) -> list[TreeSearch]:
    seeds = [build_seed(dialogue) for dialogue in read_dialogues(sample_path())]
    grown = []
    for index in range(number):
        seed = seeds[index % len(seeds)]
        journal = TimedJournal(directory / f"{index}.journal.jsonl", {})

        seeker = SeekerProfile(f"{seed.dialogue.situation} ({index})")  # no two seekers are alike
        played = Roles(INVENTORY, seeker, LLMConfig(), (), partial(calls.send, journal), Counter(), index)
        search = Search(settings, seed.start, INVENTORY.names, seed.path, seed.ended)
        grown.append(TreeSearch(str(index), search, played, journal))
    return grown


def _note_times(grown: Sequence[TreeSearch], measured: Measured, started: float) -> None:
    for tree in grown:
        result = tree.roles.result

        async def timed(call: Any, result: Any = result) -> Any:
            value = await result(call)
            measured.finished.append(time.perf_counter() - started)
            return value

        tree.roles.result = timed  # type: ignore[method-assign]


async def _published(grown: Sequence[TreeSearch], workers: int, ended: Any) -> None:
    slots = asyncio.Semaphore(workers)

    async def one(tree: TreeSearch) -> None:
        async with slots:
            waiting = tree.search.ask()
            while waiting:
                call = waiting.pop(0)
                tree.search.tell(call, await tree.roles.result(call))
                waiting += tree.search.ask()
        ended(tree)

    await asyncio.gather(*(one(tree) for tree in grown))


def openai_client(url: str, connections: int) -> OpenAIClient:
    return OpenAIClient(EndpointConfig(model="loopback", base_url=url), connections=connections)
