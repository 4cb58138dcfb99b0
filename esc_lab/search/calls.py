"""What lies between the roles and their clients: journal, cache, one limit for all calls, and the budget."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from esc_lab.errors import UserError
from esc_lab.search.cache import RequestCache
from esc_lab.search.journal import Journal
from esc_lab.search.requests import Answer, Client, Request


class BudgetError(UserError):
    """The budget is spent. What was found so far is kept."""


@dataclass(frozen=True)
class Budget:
    """Limits of what clients may do in a run, its earlier parts included; None = no limit. `cost` is in US dollars."""

    calls: int | None = None
    tokens: int | None = None
    cost: float | None = None


@dataclass
class Spent:
    """What clients did.

    Attributes:
        calls, prompt_tokens, completion_tokens, cost: of all answers of the run.
        made: those that this process made.
        from_journal, from_cache: answers that were there already.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    made: int = 0
    from_journal: int = 0
    from_cache: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def add_journal(self, journal: Journal) -> None:
        """Count what an earlier part of the run spent."""
        for key, answer in journal.answers.items():
            if key not in journal.cached:
                self.add(answer)

    def add(self, answer: Answer) -> None:
        self.calls += 1
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        self.cost += answer.cost


@dataclass
class _UnderWay:
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
        cache: shared by runs; None = no cache.
    """

    def __init__(
        self,
        clients: Mapping[str, Client],
        concurrency: int,
        cache: RequestCache | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.clients, self.cache, self.budget = clients, cache, budget or Budget()
        self.spent = Spent()
        self._fatal: UserError | None = None  # of a client: there is no use in asking for more
        self._slots = asyncio.Semaphore(concurrency)
        self._under_way: dict[str, _UnderWay] = {}

    async def send(self, journal: Journal, request: Request) -> Answer:
        """The answer of a request of a tree.

        Raises:
            BudgetError: it would have to be made, and the budget is spent.
            UserError: it cannot be had.
        """
        client = self.clients[request.role]
        if request.temperature == 0 or request.questions:  # nothing is drawn
            request = replace(request, sample=0, seed=0)
        key = request.key(client.identity)
        answer = journal.answers.get(key)
        if answer is not None:
            self.spent.from_journal += 1
        else:
            answer = self.cache.get(key) if self.cache else None
            self.spent.from_cache += answer is not None
            if answer is None:
                answer = await self._shared(key, journal, client, request)
            # One that was made for this tree is there already; one that was made for another costs nothing again.
            journal.add(key, request, answer, cached=True)
        return answer

    async def _shared(self, key: str, journal: Journal, client: Client, request: Request) -> Answer:
        """One call for all that ask for the same at the same time. One that nobody waits for any more is not begun."""
        under_way = self._under_way.get(key)
        if under_way is None:
            under_way = self._under_way[key] = _UnderWay()
            under_way.task = asyncio.create_task(self._made(under_way, key, journal, client, request))
            # An error concerns those that wait; asyncio is not to complain where nobody does.
            under_way.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        assert under_way.task is not None
        under_way.waiting += 1
        try:
            return await asyncio.shield(under_way.task)
        finally:
            under_way.waiting -= 1
            if not under_way.waiting and not under_way.begun:
                under_way.task.cancel()
                self._forget(key, under_way)  # at once, so that nobody else begins to wait for it

    async def _made(self, under_way: _UnderWay, key: str, journal: Journal, client: Client, request: Request) -> Answer:
        """Make a call. A begun one comes into the journal even if nobody waits for it any more: it is paid for."""
        try:
            async with self._slots:
                if self._fatal:
                    raise self._fatal
                self._check_budget()
                under_way.begun = True
                answer = _encodable(await self._answer(client, request))
        finally:
            self._forget(key, under_way)
        self.spent.add(answer)
        self.spent.made += 1
        journal.add(key, request, answer)
        if self.cache:
            self.cache.put(key, answer)
        return answer

    async def _answer(self, client: Client, request: Request) -> Answer:
        try:
            return await client.answer(request)
        except UserError as error:
            self._fatal = error
            raise

    def _forget(self, key: str, under_way: _UnderWay) -> None:
        if self._under_way.get(key) is under_way:
            del self._under_way[key]

    def _check_budget(self) -> None:
        limits = {
            "calls": (self.spent.calls, self.budget.calls),
            "tokens": (self.spent.tokens, self.budget.tokens),
            "cost": (self.spent.cost, self.budget.cost),
        }
        for name, (spent, most) in limits.items():
            if most is not None and spent >= most:
                fix = f"a larger search.budget.{name}, with resume=<run directory>"
                raise BudgetError(f"the budget of {most:g} {name} is spent", where=f"search.budget.{name}", fix=fix)

    async def close(self) -> None:
        """Give up what is under way and close all clients."""
        tasks = [under_way.task for under_way in self._under_way.values() if under_way.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in {id(client): client for client in self.clients.values()}.values():
            await client.close()
        if self.cache:
            self.cache.close()


def _encodable(answer: Answer) -> Answer:
    """Half surrogate pairs, which no file, hash or tokenizer takes, become question marks."""
    try:
        f"{answer.text}{answer.refusal}{answer.model}".encode()
    except UnicodeEncodeError:
        text, refusal, model = (
            part.encode(errors="replace").decode() for part in (answer.text, answer.refusal, answer.model)
        )
        return replace(answer, text=text, refusal=refusal, model=model)
    return answer
