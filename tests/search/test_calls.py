"""What lies between roles and clients: where an answer comes from, how many calls are made, and when they stop."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from esc_lab.config.search import ROLES, BudgetConfig
from esc_lab.errors import UserError
from esc_lab.prompts import Message
from esc_lab.search.cache import RequestCache
from esc_lab.search.calls import Calls
from esc_lab.search.journal import Journal
from esc_lab.search.requests import Answer, Question, Request, TooLongError
from esc_lab.search.spending import BudgetError
from tests.search.virtual_time import run

ANSWER = Answer(model="m-1", prompt_tokens=10, completion_tokens=5, cost=0.5)


class Playing:
    """A client that takes some time; `hold` makes its answers wait."""

    scores = False
    retries: Mapping[str, int] = {}

    def __init__(self, answer: Answer = ANSWER) -> None:
        self.identity: Mapping[str, Any] = {"model": "m"}
        self.requests: list[Request] = []
        self.at_once = self.most_at_once = self.finished = self.cancelled = self.closed = 0
        self.hold = asyncio.Event()
        self.hold.set()
        self.error: Exception | None = None
        self.template = answer
        self._delays = random.Random(0)

    async def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self._delays.random() * 0.002)
            await self.hold.wait()
            if self.error:
                raise self.error
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_once -= 1
        self.finished += 1
        return replace(self.template, text=self.template.text or f"{request.messages[-1].content} {request.sample}")

    async def close(self) -> None:
        self.closed += 1


def ask(content: str = "How are you?", **fields: Any) -> Request:
    return Request("seeker", (Message("user", content),), **fields)


async def ticks(number: int = 3) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.fixture
def journal(tmp_path: Path):
    journal = Journal(tmp_path / "one", {})
    yield journal
    journal.sync()


@pytest.fixture
def other(tmp_path: Path):
    journal = Journal(tmp_path / "other", {})
    yield journal
    journal.sync()


def reopen(calls: Calls, *journals: Journal) -> Calls:
    """The calls with journals of an earlier part of the run."""
    for journal in journals:
        journal.sync()
        calls.open_journal(journal.path, {})
    return calls


def kept(journal: Journal) -> dict[str, Answer]:
    """What another process reads in the file of a journal."""
    again = Journal(journal.path, {})
    again.sync()
    return again.answers


def test_the_journal_comes_before_the_cache_and_the_cache_before_the_client(tmp_path: Path, journal, other) -> None:
    async def test() -> None:
        client = Playing()
        calls = Calls({"seeker": client}, 4, RequestCache(tmp_path / "requests.sqlite"))
        made = await calls.send(journal, ask())
        assert (made.text, len(client.requests)) == ("How are you? 0", 1)
        assert calls.cache is not None
        key = ask().key(client.identity)
        assert calls.cache.get(key) == journal.answers[key] == kept(journal)[key] == made
        calls.cache.put(key, Answer("cached", model="m-2"))
        assert await calls.send(journal, ask()) == made  # from its journal
        assert (await calls.send(other, ask())).text == "cached"
        assert (other.cached, journal.cached) == ({key}, set())
        assert (await calls.send(other, ask(sample=1))).text == "How are you? 1"
        spent = calls.spent
        assert (spent.made, spent.calls, spent.from_journal, spent.from_cache) == (2, 2, 1, 1)
        assert (spent.prompt_tokens, spent.completion_tokens, spent.tokens, spent.cost) == (20, 10, 30, 1.0)
        assert (journal.models, other.models) == ({"seeker": {"m-1"}}, {"seeker": {"m-1", "m-2"}})
        await calls.close()
        again = reopen(Calls({"seeker": client}, 4, budget=BudgetConfig(calls=2)), journal, other)
        assert (again.spent.calls, again.spent.tokens, again.spent.cost, again.spent.made) == (2, 30, 1.0, 0)

    run(test())


def test_clients_of_roles_and_what_else_makes_requests_differ(journal) -> None:
    async def test() -> None:
        seeker, judge = Playing(), Playing()
        judge.identity = {"model": "another"}
        calls = Calls({"seeker": seeker, "supporter": seeker, "judge": judge}, 4)
        different = [
            ask(),
            ask("How is it?"),
            ask(sample=1),
            ask(seed=1),
            ask(temperature=0.5),
            ask(top_p=0.5),
            ask(max_tokens=5),
            ask(schema={"type": "object"}),
            ask(questions=(Question("end", "", ("yes", "no")),)),
            ask(questions=(Question("end", "", ("yes", "maybe")),)),
            replace(ask(), role="supporter"),
            replace(ask(), role="judge"),
            replace(ask(), messages=(Message("system", "How are you?"),)),
            replace(ask(), messages=(Message("user", "How are you?"), Message("user", "How are you?"))),
        ]
        for _ in range(2):
            for request in different:
                await calls.send(journal, request)
        assert len(seeker.requests) + len(judge.requests) == len(different) == len(journal.answers)
        assert judge.requests == [replace(ask(), role="judge")]
        await calls.close()
        assert (seeker.closed, judge.closed) == (1, 1)

    run(test())


def test_nothing_is_drawn_at_temperature_0_and_for_questions(journal) -> None:
    async def test() -> None:
        client = Playing()
        calls = Calls({"seeker": client}, 4)
        for sample in range(3):
            await calls.send(journal, ask(temperature=0.0, sample=sample, seed=sample + 7))
            await calls.send(journal, ask(questions=(Question("end", "", ("yes", "no")),), sample=sample, seed=sample))
        assert [(request.sample, request.seed) for request in client.requests] == [(0, 0), (0, 0)]
        for sample in range(3):
            await calls.send(journal, ask(temperature=0.1, sample=sample, seed=sample + 7))
        assert [(request.sample, request.seed) for request in client.requests[2:]] == [(0, 7), (1, 8), (2, 9)]

    run(test())


def test_equal_requests_under_way_are_one_call(journal, other) -> None:
    async def test() -> None:
        client = Playing()
        calls = Calls({"seeker": client}, 4)
        trees = [journal, other, journal, other, journal]
        answers = await asyncio.gather(*(calls.send(tree, ask()) for tree in trees))
        assert len(client.requests) == calls.spent.calls == calls.spent.made == 1
        assert len(set(answers)) == 1
        assert list(kept(journal).values()) == list(kept(other).values()) == answers[:1]
        paid_later = reopen(Calls({"seeker": client}, 4), journal, other)
        assert paid_later.spent.calls == 1  # one of the two trees paid

    run(test())


@pytest.mark.parametrize("who", ["first", "second"])
def test_one_of_two_that_wait_may_go(journal, other, who: str) -> None:
    async def test() -> None:
        client = Playing()
        client.hold.clear()
        calls = Calls({"seeker": client}, 4)
        waiting = {"first": asyncio.create_task(calls.send(journal, ask()))}
        await ticks()
        waiting["second"] = asyncio.create_task(calls.send(other, ask()))
        await ticks()
        waiting.pop(who).cancel()
        await ticks()
        client.hold.set()
        (stays,) = waiting.values()
        assert (await stays).text == "How are you? 0"
        assert (len(client.requests), client.cancelled) == (1, 0)
        assert len(kept(journal)) == 1  # it is paid for, so it is kept
        assert len(kept(other)) == (who == "first")

    run(test())


def test_a_call_that_has_begun_is_kept_though_nobody_waits_any_more(tmp_path: Path, journal) -> None:
    async def test() -> None:
        client = Playing()
        client.hold.clear()
        calls = Calls({"seeker": client}, 4, RequestCache(tmp_path / "requests.sqlite"))
        waiting = asyncio.create_task(calls.send(journal, ask()))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await ticks()
        client.hold.set()
        await asyncio.sleep(0.01)
        assert (client.finished, calls.spent.calls) == (1, 1)
        assert [answer.text for answer in kept(journal).values()] == ["How are you? 0"]
        await calls.send(journal, ask())
        assert client.finished == 1

    run(test())


def test_a_call_that_nobody_waits_for_is_not_begun(journal) -> None:
    async def test() -> None:
        client = Playing()
        client.hold.clear()
        calls = Calls({"seeker": client}, 1)
        first = asyncio.create_task(calls.send(journal, ask("first")))
        await asyncio.sleep(0.01)
        gone = [asyncio.create_task(calls.send(journal, ask("gone"))) for _ in range(3)]
        stays = asyncio.create_task(calls.send(journal, ask("stays")))
        await ticks()
        for task in gone:
            task.cancel()
        client.hold.set()
        assert [(await task).text for task in (first, stays)] == ["first 0", "stays 0"]
        await ticks()
        assert [request.messages[0].content for request in client.requests] == ["first", "stays"]
        assert all(task.cancelled() for task in gone)
        assert (await calls.send(journal, ask("gone"))).text == "gone 0"

    run(test())


@pytest.mark.parametrize("wait", range(6))
def test_who_asks_while_the_only_other_one_goes_gets_an_answer(journal, wait: int) -> None:
    """Whatever happened to the call that the other one waited for when the second asks."""

    async def test() -> None:
        client = Playing()
        client.hold.clear()
        calls = Calls({"seeker": client}, 1)
        slot = asyncio.create_task(calls.send(journal, ask("first")))
        await asyncio.sleep(0.01)
        gone = asyncio.create_task(calls.send(journal, ask("both")))
        await ticks()
        gone.cancel()
        await ticks(wait)
        stays = asyncio.create_task(calls.send(journal, ask("both")))
        await ticks()
        client.hold.set()
        assert (await stays).text == "both 0"
        await slot
        assert [request.messages[0].content for request in client.requests] == ["first", "both"]

    run(test())


@pytest.mark.parametrize("concurrency", [1, 3, 16])
def test_the_limit_of_calls_at_once_is_kept_and_reached(journal, concurrency: int) -> None:
    async def test() -> None:
        client = Playing()
        calls = Calls(dict.fromkeys(ROLES, client), concurrency)
        asked = [replace(ask(str(number)), role=ROLES[number % 4]) for number in range(60)]
        tasks = [asyncio.create_task(calls.send(journal, request)) for request in asked]
        for task in tasks[::7]:  # others come and go
            await asyncio.sleep(0.001)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert client.most_at_once == concurrency
        await calls.close()

    run(test())


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize(
    ("budget", "calls_in_budget", "name"),
    [
        (BudgetConfig(calls=10), 10, "calls"),
        (BudgetConfig(calls=0), 0, "calls"),
        (BudgetConfig(tokens=100), 7, "tokens"),  # 15 each
        (BudgetConfig(tokens=105), 7, "tokens"),
        (BudgetConfig(cost=3.2), 7, "cost"),  # 0.5 each
        (BudgetConfig(calls=20, tokens=10_000, cost=2.0), 4, "cost"),
    ],
)
def test_the_budget(
    tmp_path: Path, journal, concurrency: int, budget: BudgetConfig, calls_in_budget: int, name: str
) -> None:
    async def test() -> None:
        client = Playing()
        calls = Calls({"seeker": client}, concurrency, RequestCache(tmp_path / "requests.sqlite"), budget)
        asked = [ask(str(number)) for number in range(40)]
        found = await asyncio.gather(*(calls.send(journal, request) for request in asked), return_exceptions=True)
        answered = [answer for answer in found if isinstance(answer, Answer)]
        errors = [error for error in found if isinstance(error, BudgetError)]
        assert len(answered) + len(errors) == 40
        # What a call takes is known when it is answered, but that it is one call when it is begun.
        over = 0 if name == "calls" else concurrency - 1
        assert calls_in_budget <= len(answered) <= calls_in_budget + over
        assert len(answered) == len(client.requests) == len(kept(journal)) == calls.spent.calls
        limit = getattr(budget, name)
        assert str(errors[0]) == (
            f"search.budget.{name}: the budget of {limit:g} {name} is spent. "
            f"Fix: a larger search.budget.{name}, with resume=<run directory>"
        )
        # What is there costs nothing.
        for request, answer in zip(asked, found, strict=True):
            if isinstance(answer, Answer):
                assert await calls.send(journal, request) == answer

    run(test())


def test_the_budget_covers_earlier_parts_of_the_run(journal) -> None:
    async def test() -> None:
        client = Playing()
        first = Calls({"seeker": client}, 1)
        for number in range(3):
            await first.send(journal, ask(str(number)))
        calls = reopen(Calls({"seeker": client}, 1, budget=BudgetConfig(calls=4)), journal)
        assert await calls.send(journal, ask("3"))
        with pytest.raises(BudgetError):
            await calls.send(journal, ask("4"))

    run(test())


def test_an_error_of_the_client_reaches_all_that_wait_and_nothing_more_is_asked(journal, other) -> None:
    async def test() -> None:
        client = Playing()
        client.error = UserError("the endpoint is gone")
        calls = Calls({"seeker": client}, 2)
        found = await asyncio.gather(*(calls.send(tree, ask()) for tree in (journal, other)), return_exceptions=True)
        assert found == [client.error] * 2
        assert (kept(journal), calls.spent.calls) == ({}, 0)
        asked = len(client.requests)
        with pytest.raises(UserError, match="the endpoint is gone"):
            await calls.send(journal, ask(sample=1))
        assert len(client.requests) == asked

    run(test())


def test_an_error_that_nobody_waits_for_is_no_noise(journal, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        client = Playing()
        client.hold.clear()
        client.error = UserError("the endpoint is gone")
        calls = Calls({"seeker": client}, 2)
        waiting = asyncio.create_task(calls.send(journal, ask()))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await ticks()
        client.hold.set()
        await ticks()
        gc.collect()
        assert client.at_once == 0

    run(test())
    assert not caplog.records


def test_a_journal_that_cannot_be_written_lets_nobody_see_the_answer(tmp_path: Path) -> None:
    async def test() -> None:
        calls = Calls({"seeker": Playing()}, 2)
        journal = Journal(tmp_path / "journal", {})
        journal.path.unlink()
        journal.path.mkdir()
        with pytest.raises(UserError, match="cannot write"):
            await calls.send(journal, ask())

    run(test())


def test_closing_cancels_what_is_under_way_and_closes_each_client_once(tmp_path: Path, journal) -> None:
    async def test() -> None:
        client = Playing()
        client.hold.clear()
        cache = RequestCache(tmp_path / "requests.sqlite")
        calls = Calls(dict.fromkeys(ROLES, client), 2, cache)
        waiting = [asyncio.create_task(calls.send(journal, ask(str(number)))) for number in range(5)]
        await asyncio.sleep(0.01)
        await calls.close()
        assert (client.cancelled, client.closed, client.finished) == (2, 1, 0)
        assert all(isinstance(found, BaseException) for found in await asyncio.gather(*waiting, return_exceptions=True))
        with pytest.raises(UserError, match="closed database"):
            cache.get("a")

    run(test())


def test_half_a_surrogate_pair_reaches_no_file(tmp_path: Path, journal) -> None:
    async def test() -> None:
        client = Playing(Answer("a \ud83d b", model="\udfff", refusal="\ud800", finish_reason="\ud800"))
        calls = Calls({"seeker": client}, 2, RequestCache(tmp_path / "requests.sqlite"))
        answer = await calls.send(journal, ask())
        assert answer == Answer("a ? b", model="?", refusal="?", finish_reason="?")
        assert list(kept(journal).values()) == [answer]
        client.template = whole = Answer("\U0001f600 \x00 <|im_end|>", model="é")
        assert await calls.send(journal, ask("again")) == whole == list(kept(journal).values())[1]

    run(test())


def test_what_is_too_long_is_written_down_and_sent_again_only_where_there_may_be_room(journal, other) -> None:
    async def test() -> None:
        client = Playing()
        client.error = TooLongError("9 tokens of 8")
        calls = Calls({"seeker": client}, 4)
        refused = await asyncio.gather(*(calls.send(of, ask()) for of in (journal, other)), return_exceptions=True)
        assert [type(error) for error in refused] == [TooLongError] * 2
        assert (len(client.requests), calls.spent.calls) == (1, 0)
        client.error = None
        for of in (journal, other):
            again = reopen(Calls({"seeker": client}, 4), of)
            with pytest.raises(TooLongError, match="9 tokens of 8"):
                await again.send(again.journals[0], ask())
        assert len(client.requests) == 1
        again.retry_too_long = True
        assert (await again.send(again.journals[0], ask())).text == "How are you? 0"
        last = reopen(Calls({"seeker": client}, 4), other)
        assert (await last.send(last.journals[0], ask())).text == "How are you? 0"
        assert len(client.requests) == 2

    run(test())
