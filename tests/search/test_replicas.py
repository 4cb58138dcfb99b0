"""Several servers with one model: a tree stays with its server, and where one dies no answer is asked for twice."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from contextlib import AsyncExitStack, suppress
from typing import Any, get_args

import pytest

from esc_lab.config.search import BudgetConfig, EndpointConfig
from esc_lab.errors import UserError
from esc_lab.prompts import Message
from esc_lab.search.calls import Calls
from esc_lab.search.clients.completions import Passing
from esc_lab.search.clients.openai import OpenAIClient
from esc_lab.search.clients.replicas import Replicas
from esc_lab.search.requests import LOST, Answer, Request
from esc_lab.search.spending import BudgetError
from tests.search.endpoint import Endpoint
from tests.search.virtual_time import run as virtual_run

SERVED = [{"id": "m"}]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def server(faults=lambda number, body: None, **options: Any) -> Endpoint:
    return Endpoint(lambda body: str(body["seed"]), faults=faults, **{"models": SERVED, "latency_s": 0.1, **options})


def calls_of(groups: int, each: int) -> list[Request]:
    return [
        Request("judge", (Message("user", "Hi"),), seed=group * each + number, group=f"tree {group}")
        for number in range(each)
        for group in range(groups)
    ]


def client_of(urls: Any, **options: Any) -> OpenAIClient:
    return OpenAIClient(EndpointConfig(model="m", base_url=urls, **options), connections=64)


def ask(requests: list[Request], *servers: Endpoint, **options: Any) -> tuple[list[Answer], OpenAIClient]:
    """The answers to requests that are made at the same time."""

    async def run():
        async with AsyncExitStack() as stack:
            client = client_of([await stack.enter_async_context(one) for one in servers], **options)
            try:
                return await asyncio.gather(*map(client.answer, requests)), client
            finally:
                await client.close()

    answers, client = virtual_run(run())
    assert [answer.text for answer in answers] == [str(request.seed) for request in requests]
    return answers, client


def seeds(one: Endpoint) -> list[int]:
    return [received.body["seed"] for received in one.requests]


def trees(one: Endpoint, each: int) -> set[int]:
    return {seed // each for seed in seeds(one)}


def test_a_tree_stays_with_its_server_and_all_have_some():
    servers = [server() for _ in range(3)]
    _, client = ask(calls_of(12, 8), *servers)
    homes = [trees(one, 8) for one in servers]
    assert sum(map(len, homes)) == 12
    assert max(map(len, homes)) <= 5  # 1.25 times 4
    assert sorted(seed for one in servers for seed in seeds(one)) == list(range(96))
    assert not client.retries


def test_calls_without_a_tree_go_where_fewest_are():
    servers = [server() for _ in range(3)]
    ask([Request("judge", (Message("user", "Hi"),), seed=seed) for seed in range(30)], *servers)
    assert [len(one.requests) for one in servers] == [10, 10, 10]


def test_each_server_has_a_limit_of_its_own():
    servers = [server() for _ in range(2)]
    ask(calls_of(20, 3), *servers, calls_at_once=4)
    assert [one.most_at_once for one in servers] == [4, 4]


def test_clients_of_other_models_share_a_server_and_its_limit():
    async def run():
        async with (
            (one := server(models=[{"id": "m"}, {"id": "adapter"}])) as url,
            (two := server(models=[{"id": "m"}, {"id": "adapter"}])) as other,
        ):
            kept: dict[str, Any] = {}
            clients = [
                OpenAIClient(EndpointConfig(model=model, base_url=[url, other], calls_at_once=3), shared=kept)
                for model in ("m", "adapter")
            ]
            await asyncio.gather(*(client.answer(request) for client in clients for request in calls_of(9, 2)))
            for client in clients:
                await client.close()
            assert {received.body["model"] for received in one.requests} == {"m", "adapter"}
            return one.most_at_once, two.most_at_once

    assert virtual_run(run()) == (3, 3)


class Stub:
    """A server for the choice alone."""

    def __init__(self, url: str) -> None:
        self.url, self.load, self.down_until = url, 0, 0.0

    def begin_trial(self) -> bool:
        return False

    async def list_models(self) -> dict[str, Any]:
        return {"m": {}}


def test_only_trees_of_a_server_that_goes_move_and_they_come_back():
    async def run():
        servers = [Stub(f"http://host{number}/v1") for number in range(5)]
        replicas = Replicas(servers, "m")  # type: ignore[arg-type]

        async def homes() -> dict[str, str]:
            return {f"tree {n}": (await replicas.choose(f"tree {n}"))[0].url for n in range(100)}

        before = await homes()
        servers[2].down_until = asyncio.get_running_loop().time() + 60
        without = await homes()
        servers[2].down_until = 0.0
        return before, without, await homes()

    before, without, after = virtual_run(run())
    assert max(Counter(before.values()).values()) <= 25
    moved = {tree for tree in before if without[tree] != before[tree]}
    assert moved == {tree for tree, url in before.items() if url == "http://host2/v1"}
    assert len({without[tree] for tree in moved}) > 1
    assert after == before


def test_other_processes_choose_alike():
    async def run(names):
        replicas = Replicas([Stub(name) for name in names], "m")  # type: ignore[arg-type]
        return [(await replicas.choose(f"tree {n}"))[0].url for n in range(2)]

    assert virtual_run(run(["a", "b", "c"])) == virtual_run(run(["c", "a", "b"]))


@pytest.mark.parametrize("after", [0, 1, 9])
def test_where_a_server_dies_its_calls_go_elsewhere_and_nothing_answered_is_asked_again(after):
    dying = server(lambda number, body: "die" if number == after else None)
    others = [server(), server()]
    requests = calls_of(12, 8)
    _, client = ask(requests, dying, *others, calls_at_once=4)
    asked = Counter(seed for one in (dying, *others) for seed in seeds(one))
    again = {seed for seed, times in asked.items() if times > 1}
    # Those that it was working on, or that were on their way, may have been answered: they are counted.
    assert len(again) <= client.retries["connection_errors"] <= 4
    assert sum(asked.values()) == len(requests) + len(again)
    assert set(client.retries) <= {"connection_errors", "unreachable"}
    assert client.retries["unreachable"] <= 4


def test_a_server_that_comes_back_has_its_trees_again():
    async def run():
        async with server() as other:
            async with (one := server()) as url:
                client = client_of([url, other])
                await asyncio.gather(*map(client.answer, calls_of(8, 2)))
                homes = trees(one, 2)
                one.die()
            one.requests.clear()
            await asyncio.gather(*map(client.answer, calls_of(8, 2)))
            assert not one.requests
            async with one:
                await asyncio.sleep(120)
                for request in calls_of(8, 2):
                    await client.answer(request)
                await client.close()
                return homes, trees(one, 2), client.retries

    homes, again, retries = virtual_run(run())
    assert homes == again
    assert set(retries) == {"unreachable"}


def test_a_server_that_comes_back_with_another_model_is_refused():
    async def run():
        async with server() as other:
            async with (one := server()) as url:
                client = client_of([url, other])
                await asyncio.gather(*map(client.answer, calls_of(8, 2)))
                one.die()
            await asyncio.gather(*map(client.answer, calls_of(8, 2)))
            one.requests.clear()
            changed = server(models=[{"id": "other"}])
            changed.port = one.port
            async with changed:
                await asyncio.sleep(120)
                answers = [await asyncio.gather(client.answer(one), return_exceptions=True) for one in calls_of(8, 2)]
                refused = [answer for (answer,) in answers if isinstance(answer, UserError)]
                assert refused
                assert all("it does not serve 'm', but other" in str(error) for error in refused)
                await client.close()
                assert not changed.requests

    virtual_run(run())


def test_a_server_that_hangs_is_left_after_three_timeouts():
    hanging, other = server(lambda number, body: "timeout"), server()
    _, client = ask(calls_of(10, 8), hanging, other, calls_at_once=4, timeout=5.0)
    # Once with its four turns, and then to see whether it is well again.
    assert 3 <= client.retries["timeouts"] == len(hanging.requests) <= 8
    assert Counter(seeds(other)) == Counter(range(80))


def test_all_are_down():
    async def run():
        async with server() as one, server() as other:
            urls = [one, other]
        client = client_of(urls, attempts=3)
        try:
            await client.answer(calls_of(1, 1)[0])
        finally:
            await client.close()

    with pytest.raises(UserError, match=r"no answer of 'm' after 3 attempts; .*Connect.*Fix: check the endpoint"):
        virtual_run(run())


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([{"id": "other"}, {"id": "third"}], "it does not serve 'm', but other, third. Fix: serve the same model"),
        ([{"id": "m", "meta": {"n_params": 7}}], r"its 'm' has n_params=7, and that of http://.* has 8\. Fix: "),
        ([{"id": "m", "meta": {"n_params": 9}, "max_model_len": 4}], r"n_params=9, and that of"),
    ],
)
def test_another_model_is_refused(models, said):
    servers = [server(models=[{"id": "m", "meta": {"n_params": 8}}]), server(models=models)]
    with pytest.raises(UserError, match=said):
        ask(calls_of(8, 1), *servers)
    assert not any(one.requests for one in servers)


@pytest.mark.parametrize("models", [None, [], [{"name": "m"}], [3], [{"id": "m", "meta": 3}]])
def test_a_server_that_does_not_list_its_models_is_told(models, caplog):
    ask(calls_of(4, 1), server(), server(models=models))
    assert caplog.text.count("does not list its models") == 1


def test_adapters_are_asked_for_by_name():
    ask(calls_of(4, 1), *[server(models=[{"id": "base"}, {"id": "m", "parent": "base"}]) for _ in range(2)])

    async def run():  # SGLang's way
        async with server(models=[{"id": "m"}]) as one, server(models=[{"id": "m"}]) as other:
            client = OpenAIClient(EndpointConfig(model="m:adapter", base_url=[one, other]))
            answers = [await client.answer(request) for request in calls_of(2, 1)]
            await client.close()
            return answers

    assert len(virtual_run(run())) == 2


def test_one_server_is_not_asked_for_its_models():
    ask(calls_of(2, 1), server(models=[{"id": "other"}]))


def test_answers_do_not_depend_on_where_they_come_from():
    here, there = client_of(["http://a/v1"]), client_of(["http://b/v1", "http://c/v1"])
    assert here.identity == there.identity
    assert "base_url" not in here.identity
    request = calls_of(1, 1)[0]
    assert request.key(here.identity) == Request("judge", request.messages, seed=0).key(there.identity)
    assert client_of("http://a/v1").identity["base_url"] == "http://a/v1"


def test_lost_calls_count_in_the_budget(tmp_path):
    """Each call's first answer is lost: it may have to be paid."""
    seen: set[int] = set()

    def fault(number: int, body: dict[str, Any]) -> str | None:
        first = body["seed"] not in seen
        seen.add(body["seed"])
        return "truncated" if first else None

    async def run():
        async with server(fault) as url:
            calls = Calls({"judge": client_of(url)}, 1, budget=BudgetConfig(calls=10))
            journal = calls.open_journal(tmp_path / "a.journal.jsonl", {})
            with suppress(BudgetError):
                for request in calls_of(1, 20):
                    await calls.send(journal, request)
            await calls.close()
            return calls

    calls = virtual_run(run())
    assert (calls.spent.calls, calls.lost) == (5, 5)


def test_what_may_be_paid_for_is_a_kind_of_problem():
    assert set(LOST) < set(get_args(Passing))


def test_a_group_is_kept_with_its_calls(tmp_path):
    received = defaultdict(set)

    class Keeping:
        scores, retries = False, Counter[str]()
        identity = {"kind": "keeping"}  # noqa: RUF012

        async def answer(self, request: Request) -> Answer:
            received[request.group].add(request.seed)
            return Answer("yes")

        async def close(self) -> None:
            pass

    async def run():
        calls = Calls({"judge": Keeping()}, 4)
        journal = calls.open_journal(tmp_path / "a.journal.jsonl", {})
        for seed in range(4):
            await calls.send(journal, Request("judge", (Message("user", "Hi"),), seed=seed), f"tree {seed % 2}")
        await calls.close()

    asyncio.run(run())
    assert received == {"tree 0": {0, 2}, "tree 1": {1, 3}}
    assert "tree 0" not in json.dumps((tmp_path / "a.journal.jsonl").read_text())
