"""What lies between the roles and their clients: journal, cache, one limit for all calls, and the budget."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from esc_lab.config import Config
from esc_lab.config.search import BudgetConfig, RoleConfig
from esc_lab.errors import UserError
from esc_lab.search.answer_watch import AnswerWatch
from esc_lab.search.cache import RequestCache
from esc_lab.search.event_loop import run_loop
from esc_lab.search.journal import Journal
from esc_lab.search.option_probabilities import answer_questions
from esc_lab.search.requests import LOST, Answer, Client, Request, TooLongError
from esc_lab.search.spending import BudgetError, Spent

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class _SharedCall:
    """A call under way, how many wait for it, and whether the client has it already."""

    task: asyncio.Task[Answer] | None = None
    waiting: int = 0
    begun: bool = False


class Calls:
    """Makes the calls of all trees.

    An answer comes from the tree's journal, else from the cache, else from the role's client; a request that is under
    way already is not sent again. Whatever the source, it is in the tree's journal before anybody sees it.

    Args:
        clients: by role.
        concurrency: calls that clients may be working on at once.
        uncached: roles that the cache neither answers for nor learns from.

    Attributes:
        retry_too_long: a conversation that exceeded the context of its model in an earlier part of the run is sent
            again: there may be room now.
        spent: what clients did in this run, its earlier parts included.
        watch: of the answers of all trees, for their roles.
    """

    def __init__(
        self,
        clients: Mapping[str, Client],
        concurrency: int,
        cache: RequestCache | None = None,
        budget: BudgetConfig | None = None,
        uncached: frozenset[str] = frozenset(),
    ) -> None:
        self.clients, self.cache, self.budget = clients, cache, budget or BudgetConfig()
        self.uncached, self.retry_too_long = uncached, False
        self.spent, self.watch = Spent(), AnswerWatch()
        self.journals: list[Journal] = []
        self._fatal: UserError | None = None  # of a client: there is no use in asking for more
        self._slots = asyncio.Semaphore(concurrency)
        self._under_way: dict[str, _SharedCall] = {}

    @property
    def scoring(self) -> dict[str, Any]:
        """Roles whose clients answer questions with log-probabilities, and how those that were trained are asked.

        The latter is what `restore_trained_prompts` takes; None for a role that is asked in the search's own words.
        """
        return {role: client.identity.get("asked") for role, client in self.clients.items() if client.scores}

    def has_room(self) -> bool:
        """Whether a client would begin another call at once."""
        return not self._slots.locked()

    def describe(self, seconds: float) -> dict[str, float]:
        """What all calls took, for metrics; `seconds` is how long this process took."""
        spent = self.spent
        return {
            "seconds": seconds,
            "calls": spent.calls,
            "calls_per_s": spent.made / seconds,
            "prompt_tokens": spent.prompt_tokens,
            "completion_tokens": spent.completion_tokens,
            "cost": spent.cost,
            "from_cache": spent.from_cache,
            **({"lost_calls": self.lost} if self.lost else {}),
            **{f"retries/{kind}": count for kind, count in self.retries.items()},
        }

    @property
    def retries(self) -> Counter[str]:
        """Attempts of clients that failed in a way that may pass, by kind."""
        return sum((Counter(client.retries) for client in self._distinct_clients()), Counter())

    @property
    def lost(self) -> int:
        """Calls of this process that may have been answered, of which no answer came that can be used."""
        return sum(self.retries[kind] for kind in LOST)

    @property
    def dates(self) -> tuple[str, str]:
        """Dates of the first and the last call in the journals; empty without calls."""
        dates = sorted(time[:10] for journal in self.journals for time in (journal.first, journal.last) if time)
        return (dates[0], dates[-1]) if dates else ("", "")

    def models(self, role: str) -> list[str]:
        """The models that played a role, as their clients named them."""
        return sorted({name for journal in self.journals for name in journal.models.get(role, ())})

    def run(self, work: Coroutine[Any, Any, T], run_dir: str) -> T:
        """Run work that sends calls, then close. If it fails, the log says how to go on from the answers so far."""

        async def close_after() -> T:
            try:
                return await work
            finally:
                await self.close()

        try:
            return run_loop(close_after())
        except (UserError, KeyboardInterrupt, SystemExit):
            if self.spent.calls:
                log.info("%d answers are kept; resume=%s goes on from here", self.spent.calls, run_dir)
            raise

    def open_journal(self, path: Path, config: Mapping[str, Any]) -> Journal:
        """A journal (see `Journal`) whose calls count as spent. It is synced when this is closed."""
        return self.take_journal(Journal(path, config))

    def take_journal(self, journal: Journal) -> Journal:
        """The journal; as `open_journal`, of one that was opened elsewhere."""
        self.journals.append(journal)
        for key, answer in journal.answers.items():
            if key not in journal.cached:
                self.spent.add(answer)
        return journal

    async def send(self, journal: Journal, request: Request, group: str = "") -> Answer:
        """The answer of a request of a tree.

        Args:
            group: see `Request`.

        Raises:
            BudgetError: it would have to be made, and the budget is spent.
            TooLongError: the conversation exceeds the context of the model.
            UserError: it cannot be had.
        """
        request = replace(request, group=group) if group else request
        ratings = self.clients[request.role].identity.get("ratings") if request.questions else None
        if ratings is None:
            return await self._send(journal, request)
        return await answer_questions(partial(self._send, journal), request, continues=ratings == "continued")

    async def _send(self, journal: Journal, request: Request) -> Answer:
        client = self.clients[request.role]
        if request.temperature == 0 or request.questions:  # nothing is drawn
            request = replace(request, sample=0, seed=0)
        key = request.key(client.identity)
        if key in journal.answers:
            self.spent.from_journal += 1
            return journal.answers[key]
        if key in journal.too_long and not self.retry_too_long:
            fix = "start anew without resume= if there is room now"
            raise TooLongError(journal.too_long[key], where=str(journal.path), fix=fix)
        cache = None if request.role in self.uncached else self.cache
        answer = cache.get(key) if cache else None
        self.spent.from_cache += answer is not None
        if answer is None:
            try:
                answer = await self._join(key, journal, client, request)
            except TooLongError as error:
                journal.add_too_long(key, request, error.message)
                raise
        # One that was made for this tree is there already; one that was made for another costs nothing again.
        journal.add(key, request, answer, cached=True)
        return answer

    async def _join(self, key: str, journal: Journal, client: Client, request: Request) -> Answer:
        """One call for all that ask for the same at the same time. One that nobody waits for any more is not begun."""
        call = self._under_way.get(key)
        if call is None:
            call = self._under_way[key] = _SharedCall()
            call.task = asyncio.create_task(self._make(call, key, journal, client, request))
            # An error concerns those that wait; asyncio is not to complain where nobody does.
            call.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        assert call.task is not None
        call.waiting += 1
        try:
            return await asyncio.shield(call.task)
        finally:
            call.waiting -= 1
            if not call.waiting and not call.begun:
                call.task.cancel()
                self._forget(key, call)  # at once, so that nobody else begins to wait for it

    async def _make(self, call: _SharedCall, key: str, journal: Journal, client: Client, request: Request) -> Answer:
        """Make a call. A begun one comes into the journal even if nobody waits for it any more: it is paid for."""
        try:
            async with self._slots:
                if self._fatal:
                    raise self._fatal
                unanswered = sum(other.begun for other in self._under_way.values())
                self.spent.check(self.budget, self.lost + unanswered)
                call.begun = True
                answer = _replace_surrogates(await client.answer(request))
        except (BudgetError, TooLongError):
            raise
        except UserError as error:
            self._fatal = error
            raise
        finally:
            self._forget(key, call)
        self.spent.add(answer)
        self.spent.made += 1
        journal.add(key, request, answer)
        if self.cache and request.role not in self.uncached:
            self.cache.put(key, answer)
        return answer

    def _forget(self, key: str, call: _SharedCall) -> None:
        if self._under_way.get(key) is call:
            del self._under_way[key]

    async def close(self) -> None:
        """Give up what is under way, close all clients, and have the journals outlive a crash of the machine."""
        tasks = [call.task for call in self._under_way.values() if call.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            for client in self._distinct_clients():
                await client.close()
            if self.cache:
                self.cache.close()
        finally:
            for journal in self.journals:
                journal.sync()

    def _distinct_clients(self) -> list[Client]:
        return list({id(client): client for client in self.clients.values()}.values())


def open_calls(cfg: Config, roles: Sequence[str], configs: Mapping[str, Config] = MappingProxyType({})) -> Calls:
    """Calls to clients of these roles, with the request cache and the budget of the search.

    `llm.<role>.client` names a module of `esc_lab.search.clients`; its `build_client(cfg, role, shared)` gives the
    client. Roles that are played in the same way share one; what else clients share, such as a model, they keep in the
    dictionary `shared`.

    Args:
        configs: by role, where a role is played with other settings than those of `cfg`.

    Raises:
        UserError: a model cannot be loaded, there is no key, or a recording or the cache cannot be read.
    """
    clients: dict[str, Client] = {}
    built: dict[tuple[object, ...], Client] = {}
    shared: dict[str, Any] = {}
    for role in roles:
        of_role = configs.get(role, cfg)
        played: RoleConfig = getattr(of_role.llm, role)
        own = (played.recording, role) if played.client == "replay" or played.checkpoint else ()  # not for other roles
        key = (id(of_role), played.client, played.model, played.checkpoint, str(played.base_url), *own)
        if key not in built:
            built[key] = import_module(f"esc_lab.search.clients.{played.client}").build_client(of_role, role, shared)
        clients[role] = built[key]
    cache = RequestCache(Path(cfg.cache_dir) / "requests.sqlite") if cfg.search.cache else None
    # A recording answers by itself: one that lacks an answer is the wrong one, whatever others have been answered.
    uncached = frozenset(role for role in roles if getattr(cfg.llm, role).client == "replay")
    return Calls(clients, cfg.search.concurrency, cache, cfg.search.budget, uncached)


async def gather_all(
    questions: Sequence[Awaitable[T]], on_answer: Callable[[int], None] = lambda number: None
) -> list[T]:
    """The answers to all questions, in their order, all asked at the same time.

    Args:
        on_answer: is told how many there are, after each.

    Raises:
        UserError: the first error. What was under way when a budget was spent is waited for: it is paid for.
    """
    tasks = [asyncio.ensure_future(question) for question in questions]
    try:
        for number, task in enumerate(asyncio.as_completed(tasks), 1):
            await task
            on_answer(number)
    except BudgetError:
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    finally:
        for open_task in tasks:
            open_task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in tasks]


def _replace_surrogates(answer: Answer) -> Answer:
    """Half surrogate pairs, which JSON lets through and no file, hash or tokenizer takes, become question marks."""
    texts: dict[str, Any] = {name: value for name, value in vars(answer).items() if isinstance(value, str)}
    return replace(answer, **{name: text.encode(errors="replace").decode() for name, text in texts.items()})
