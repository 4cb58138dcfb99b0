"""The OpenAI-compatible client against a real server on the loopback interface that fails in every known way."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import math
import socket
import subprocess
import sys
import time
import traceback
import urllib.request
from contextlib import suppress
from dataclasses import replace
from email.utils import formatdate
from typing import get_args
from urllib.error import HTTPError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esc_lab.config.search import EndpointConfig
from esc_lab.errors import UserError
from esc_lab.prompts import Message
from esc_lab.search.clients.completions import Passing, Redaction, parse_retry_after
from esc_lab.search.clients.connection import Pace
from esc_lab.search.clients.openai import OpenAIClient
from esc_lab.search.requests import Answer, Request, TooLongError
from tests.search.endpoint import Endpoint
from tests.search.virtual_time import run as virtual_run

KEY = "sk-recognisable-0123456789"
SCHEMA = {"type": "object", "properties": {"rating": {"type": "integer"}}, "required": ["rating"]}
REQUEST = Request(
    role="judge",
    messages=(Message("system", "You judge replies."), Message("user", "How good is it?")),
    schema=SCHEMA,
    max_tokens=32,
    temperature=0.7,
    top_p=0.9,
    seed=2**62 + 1,
)
PASSING = {
    "429": "rate_limited",
    "500": "server_errors",
    "503": "server_errors",
    "409": "server_errors",
    "408": "timeouts",
    "timeout": "timeouts",
    "disconnect": "connection_errors",
    "truncated": "connection_errors",
    "malformed_body": "malformed",
}
FATAL = {
    "401": "key",
    "403": "KEY_OF_TEST",
    "404": "gpt-test",
    "400": "The server says 400",
    "422": "The server says 422",
    "413": "The server says 413",
    "402": "used up",
    "429:insufficient_quota": "used up",
    "400:context_length_exceeded": "longer context",
}


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KEY_OF_TEST", KEY)


def client_of(url: str | None, *, connections: int = 64, backoff_s: float = 0.5, **options) -> OpenAIClient:
    options = {"model": "gpt-test", "base_url": url, "key_variable": "KEY_OF_TEST", **options}
    return OpenAIClient(EndpointConfig(**options), connections=connections, backoff_s=backoff_s)


def ask(*faults: str | None, request: Request = REQUEST, calls: int = 1, options=None, **server):
    """Answers of calls that are made one after another; the n-th request that comes in meets the n-th fault."""

    def fault(number: int, body: dict) -> str | None:
        return faults[number] if number < len(faults) else None

    async def run():
        async with (endpoint := Endpoint(faults=fault, **server)) as url:
            client = client_of(url, **(options or {}))
            try:
                return [await client.answer(request) for _ in range(calls)], client, endpoint
            finally:
                await client.close()

    return virtual_run(run())


def error_of(*faults: str | None, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        ask(*faults, **options)
    return caught.value


def counted(client: OpenAIClient) -> dict[str, int]:
    return dict(client.retries)


def test_request_on_the_wire():
    _, _, endpoint = ask()
    (received,) = endpoint.requests
    assert received.authorization == f"Bearer {KEY}"
    assert received.body == {
        "model": "gpt-test",
        "messages": [
            {"role": "system", "content": "You judge replies."},
            {"role": "user", "content": "How good is it?"},
        ],
        "max_tokens": 32,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 2**62 + 1,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "judge", "strict": True, "schema": SCHEMA},
        },
    }


def test_fields_that_can_be_left_out():
    options = {"structured": False, "seeds": False, "token_limit": "max_completion_tokens"}
    _, _, endpoint = ask(options=options)
    body = endpoint.requests[0].body
    assert set(body) == {"model", "messages", "max_completion_tokens", "temperature", "top_p"}
    assert body["max_completion_tokens"] == 32


def test_temperature_and_top_p_can_be_left_out():
    _, _, endpoint = ask(request=replace(REQUEST, temperature=None, top_p=None))
    assert {"temperature", "top_p"} & set(endpoint.requests[0].body) == set()


def test_fields_that_are_added():
    extra = {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}
    _, client, endpoint = ask(options={"extra_body": extra})
    assert {name: endpoint.requests[0].body[name] for name in extra} == extra
    assert client.identity["extra_body"] == extra


def test_answer_carries_text_model_tokens_and_cost():
    answers, client, _ = ask(options={"price_in": 0.15, "price_out": 0.6}, reply=lambda body: "Three words here.")
    cost = (7 * 0.15 + 3 * 0.6) / 1_000_000
    assert answers == [
        Answer(text="Three words here.", model="gpt-test-0613", prompt_tokens=7, completion_tokens=3, cost=cost,
               finish_reason="stop")
    ]  # fmt: skip
    assert counted(client) == {}


def test_answer_without_usage_and_model():
    (answer,), _, _ = ask('body:{"choices": [{"message": {"content": "yes"}}]}')
    assert answer == Answer(text="yes")


@pytest.mark.parametrize(
    ("fault", "refusal"),
    [
        ("refusal", "I cannot help with that."),
        ("filtered", "stopped by the endpoint's content filter"),
        ("400:content_filter", "The server says 400 to Bearer ***."),
    ],
)
def test_refusals_are_answers(fault, refusal):
    (answer,), client, _ = ask(fault)
    assert (answer.text, answer.refusal) == ("", refusal)
    assert answer.finish_reason == ("stop" if fault == "refusal" else "content_filter")
    assert counted(client) == {}


def test_why_a_completion_ends():
    answers, _, _ = ask(None, "cut_off", "reasoning", calls=3)
    assert [(answer.text, answer.finish_reason) for answer in answers] == [
        ("That sounds hard.", "stop"),
        ("That sounds hard.", "length"),
        ("", "stop"),
    ]
    assert [answer.is_cut_off(32) for answer in answers] == [False, True, False]
    assert Answer("yes", completion_tokens=32).is_cut_off(32)


def test_content_in_parts():
    parts = [{"type": "text", "text": "That sounds "}, {"type": "image"}, {"type": "text", "text": "hard."}]
    (answer,), _, _ = ask("body:" + json.dumps({"choices": [{"message": {"content": parts}}]}))
    assert answer.text == "That sounds hard."


def test_contents_are_not_judged_here():
    answers, _, _ = ask("empty", "malformed_json", "unknown_strategy", calls=3)
    assert [answer.text for answer in answers] == [
        "",
        '{"strategy": "Affirm',
        '{"strategy": "Telepathy", "Telepathy": 10}',
    ]


def test_bodies_that_are_no_completion():
    bodies = (
        "null",
        "[]",
        '"text"',
        '{"choices": []}',
        '{"choices": [{"message": null}]}',
        '{"choices": [{"message": {"content": ["a"]}}]}',
        '{"choices": [{"message": {"content": "a"}}], "usage": 3}',
        '{"error": {"message": "upstream is down"}}',
        *(
            f'{{"choices": [{{"message": {{"content": "a"}}}}], "usage": {{"prompt_tokens": {count}}}}}'
            for count in ("1e999", "-1e999", "NaN", "-3", "9" * 30, "9" * 5000, '"many"', "[1]")
        ),
        '{"a":' * 100_000,
        "[" * 1_000_000,
        '{"choices": [{"message": {"content": ' + "[" * 400 + "]" * 400 + "}}]}",
        "<html>",
        "\udcff",
    )
    (answer,), client, _ = ask(*(f"body:{body}" for body in bodies), options={"attempts": 40})
    assert answer.text == "That sounds hard."
    assert counted(client) == {"malformed": len(bodies)}


@pytest.mark.parametrize(("fault", "kind"), PASSING.items())
def test_passing_problems_are_tried_again_and_counted(fault, kind):
    (answer,), client, endpoint = ask(fault, fault)
    assert answer.text == "That sounds hard."
    assert counted(client) == {kind: 2}
    assert [received.body for received in endpoint.requests] == [endpoint.requests[0].body] * 3


@pytest.mark.parametrize(("fault", "said"), [("endless", "longer than 4 MiB"), ("packed", "longer than 4 MiB"),
                                             ("packed:br", "packed in a way")])  # fmt: skip
def test_a_body_is_read_up_to_a_limit(fault, said):
    async def run():
        async with (endpoint := Endpoint(faults=lambda number, body: fault)) as url:
            client = client_of(url, attempts=2)
            with pytest.raises(UserError, match=f"after 2 attempts; the last problem: the response is {said}"):
                await client.answer(REQUEST)
            await client.close()
            assert counted(client) == {"malformed": 2}
            return endpoint.sent

    # What is on its way when the client hangs up is in the buffers of both ends.
    assert virtual_run(run()) < 2 * 32 * 2**20


BODY = b'{"choices": [{"message": {"content": "yes"}}]}'
HEADS = [
    b"\x00\xff\r\n\r\n",
    b"HTTP/1.1 200 \xff\xfe\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nX-\xff: \xff\x00\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999999\r\n\r\n{",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: \xff\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 503 \xff\r\nRetry-After: \xff\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"A: " + b"b" * 100_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"".join(b"A%d: b\r\n" % number for number in range(20_000)) + b"\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
]


@pytest.mark.parametrize("head", HEADS, ids=range(len(HEADS)))
def test_heads_that_are_hostile_are_counted(head):
    async def run():
        responses = iter([head])

        async def serve(reader, writer):
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await reader.readuntil(b"\r\n\r\n")
                good = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
                writer.write(next(responses, good))
                await writer.drain()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            client = client_of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
            answer = await client.answer(REQUEST)
            await client.close()
            return answer, client

    answer, client = virtual_run(run())
    assert answer.text == "yes"
    assert client.retries.total() == 1


@pytest.mark.parametrize("spared", ["", "endpoint.invalid"])
def test_a_proxy_of_the_environment_is_used_unless_it_is_not_for_this_host(spared, monkeypatch):
    async def run():
        heads = []

        async def serve(reader, writer):
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY))

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            monkeypatch.setenv("no_proxy", spared)
            client = client_of("http://endpoint.invalid/v1", attempts=1)
            with suppress(UserError):
                assert (await client.answer(REQUEST)).text == "yes"
            await client.close()
            return [head.split(b" ")[1] for head in heads]

    assert virtual_run(run()) == ([] if spared else [b"http://endpoint.invalid/v1/chat/completions"])


def test_a_packed_body_is_unpacked():
    async def run():
        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            body = gzip.compress(b'{"choices": [{"message": {"content": "yes"}}]}')
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            client = client_of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
            answer = await client.answer(REQUEST)
            await client.close()
            return answer

    assert virtual_run(run()).text == "yes"


def test_a_body_that_drips_is_given_up():
    (answer,), client, _ = ask("drip", options={"timeout": 25.0})
    assert answer.text == "That sounds hard."
    assert counted(client) == {"timeouts": 1}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_leads_to_another_server(status):
    async def run():
        async with (
            (other := Endpoint()) as elsewhere,
            (endpoint := Endpoint(faults=lambda number, body: f"redirect:{status} {elsewhere}/{KEY}")) as url,
        ):
            client = client_of(url)
            with pytest.raises(UserError, match=rf"the endpoint redirects \({status}\) to .*not followed") as caught:
                await client.answer(REQUEST)
            await client.close()
            assert "Fix: set base_url to the address that answers" in str(caught.value)
            assert KEY not in str(caught.value)
            return len(endpoint.requests), len(other.requests)

    assert virtual_run(run()) == (1, 0)


@pytest.mark.parametrize("location", ["//evil.example/v1", "https://127.0.0.1:1/v1", "http://[", "file:///etc/passwd"])
def test_odd_redirects_are_refused(location):
    assert "which is not followed" in str(error_of(f"redirect:308 {location}"))


def test_a_redirect_on_the_same_server_is_followed():
    (answer,), client, endpoint = ask("redirect:308 /v1/chat/completions")
    assert answer.text == "That sounds hard."
    assert endpoint.requests[1].body == endpoint.requests[0].body
    _, client, _ = ask(*["redirect:307 /v1/chat/completions"] * 30)
    assert counted(client) == {"connection_errors": 1}


@pytest.mark.parametrize("fault", ["429", "503", "timeout", "disconnect", "malformed_body"])
def test_attempts_are_used_up(fault):
    async def run():
        async with Endpoint(faults=lambda number, body: fault) as url:
            client = client_of(url, attempts=2)
            with pytest.raises(UserError, match=r"after 2 attempts; the last problem: .") as caught:
                await client.answer(REQUEST)
            await client.close()
            assert url in str(caught.value)
            assert counted(client) == {PASSING[fault]: 2}

    virtual_run(run())


def test_nobody_listens():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        client = client_of(url, attempts=2)

        async def run():
            try:
                await client.answer(REQUEST)
            finally:
                await client.close()

        with pytest.raises(UserError, match="2 attempts; the last problem: ConnectionRefusedError") as caught:
            virtual_run(run())
    assert url in str(caught.value)
    assert "resume" in str(caught.value)
    assert counted(client) == {"unreachable": 2}


@pytest.mark.parametrize(("fault", "said"), FATAL.items())
def test_what_will_not_pass_stops_at_once(fault, said):
    async def run():
        async with (endpoint := Endpoint(faults=lambda number, body: fault)) as url:
            client = client_of(url)
            with pytest.raises(UserError) as caught:
                await client.answer(REQUEST)
            await client.close()
            assert said in str(caught.value)
            assert "\n" not in str(caught.value)
            assert url in str(caught.value)
            assert len(endpoint.requests) == 1

    virtual_run(run())


@pytest.mark.parametrize(
    ("field", "said", "setting"),
    [
        ("temperature", "'temperature' is not supported with this model.", "llm.judge.temperature=null leaves it out"),
        ("top_p", "the model does not take top_p", "llm.judge.top_p=null leaves it out"),
        ("seed", "Extra inputs are not permitted: seed", "llm.openai.seeds=false"),
        ("response_format", "response_format is not supported", "llm.openai.structured=false"),
        ("max_tokens", "Use 'max_completion_tokens' instead.", "llm.openai.token_limit=max_completion_tokens"),
        ("reasoning_effort", "unknown field", "take reasoning_effort out of llm.openai.extra_body"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_refused_field_names_its_setting(field, said, setting, named):
    said = said if named or field in said else f"{field}: {said}"
    body = json.dumps({"error": {"message": said, "param": field if named else None, "code": None}})
    options = {"extra_body": {"reasoning_effort": "low"}}
    error = error_of(f"400 {body}", options=options)
    assert f"the endpoint refuses the field {field} (400): {said}" in str(error)
    assert setting in str(error)


def test_a_refused_request_without_a_field():
    text = str(error_of("422"))
    assert "refuses the request (422)" in text
    assert "extra_body say which fields are sent" in text


@pytest.mark.parametrize("said", ["This model's maximum context length is 8192 tokens", "prompt is too long: 9 tokens",
                                  "the request exceeds the available context size"])  # fmt: skip
def test_a_conversation_that_is_too_long(said):
    body = json.dumps({"error": {"message": said, "type": "invalid_request_error"}})
    assert isinstance(error_of(f"400 {body}"), TooLongError)


def test_errors_that_are_hostile():
    deep = "[" * 900 + "]" * 900
    error = error_of(f'400 {{"error": {{"message": {deep}, "code": {{"a": 1}}, "param": [2]}}}}')
    assert "refuses the request (400)" in str(error)
    assert len(str(error)) < 600


@pytest.mark.parametrize("secret", ["none", "token", "test"])
def test_a_short_key_is_hidden_and_ordinary_words_are_not(secret):
    hide = Redaction([secret]).hide
    words = f"{secret}, the {secret} of a {secret}ed model"
    assert hide(words) == words
    for shown in (f"Bearer {secret}", f"api key: {secret}.", f"key={secret}&a", f"key '{secret}'", f":{secret}@host"):
        assert secret not in hide(shown.replace("token", "tok") if secret != "token" else shown), shown
    assert Redaction([secret]).hide_whole(f"key: {secret}") == f"key: {secret}"


def test_an_answer_that_tells_the_key():
    body = {"choices": [{"message": {"content": f"Yes, {KEY}."}, "finish_reason": "stop"}], "model": KEY}
    (answer,), _, _ = ask("body:" + json.dumps(body))
    assert answer == Answer("Yes, ***.", model="***", finish_reason="stop")


def test_wrong_key_names_the_variable():
    assert "KEY_OF_TEST" in str(error_of("401"))


def test_url_without_v1():
    async def run():
        async with Endpoint() as url:
            client = client_of(url.removesuffix("/v1"))
            with pytest.raises(UserError, match=r"no endpoint at this URL \(404\).*Fix: check model and base_url"):
                await client.answer(REQUEST)
            await client.close()

    virtual_run(run())


def test_long_messages_are_cut():
    error = error_of(*['body:{"error": "' + "very\\nlong " * 100 + '"}'] * 2, options={"attempts": 2})
    assert len(str(error)) < 400
    assert "..." in str(error)


def test_the_key_is_never_shown(caplog, capfd):
    faults = [None, "refusal", "400:content_filter", *PASSING, *FATAL]
    shown, errors = [], []

    async def run():
        fault: str | None
        async with Endpoint(faults=lambda number, body: fault) as url:
            client = client_of(url, attempts=2)
            for name in ("", "aiohttp", "asyncio"):
                caplog.set_level(logging.DEBUG, logger=name)
            shown.extend([repr(client), json.dumps(dict(client.identity))])
            for kind in faults:
                fault = kind
                try:
                    shown.append(repr(await client.answer(REQUEST)))
                except UserError as error:
                    errors.append(error)
            await client.close()

    virtual_run(run())
    assert len(errors) == len(PASSING) + len(FATAL)
    for error in errors:
        assert error.__context__ is None
        shown += [str(error), repr(error), *traceback.format_exception(error)]
    captured = capfd.readouterr()
    for text in (*shown, caplog.text, captured.out, captured.err):
        assert KEY not in text


def test_no_key(monkeypatch):
    monkeypatch.delenv("KEY_OF_TEST")
    with pytest.raises(UserError, match="environment variable KEY_OF_TEST"):
        client_of(None)
    _, _, endpoint = ask()
    assert endpoint.requests[0].authorization == "Bearer none"


@pytest.mark.parametrize("variable", ["sk-abc", "gsk_abc1", "A=B", "", "A" * 65])
def test_a_key_in_place_of_its_variable(variable):
    with pytest.raises(UserError, match="key_variable is no name") as caught:
        client_of("http://127.0.0.1:9/v1", key_variable=variable)
    assert not variable or variable not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-a\nb", "sk-ä"])
def test_unusable_key(monkeypatch, key):
    monkeypatch.setenv("KEY_OF_TEST", key)
    with pytest.raises(UserError, match="KEY_OF_TEST") as caught:
        client_of("http://127.0.0.1:9/v1")
    assert key not in str(caught.value)


def test_default_endpoints(monkeypatch):
    def url() -> str:
        return client_of(None).identity["base_url"]

    assert url() == "https://api.openai.com/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert url() == "http://127.0.0.1:9/v1"


@pytest.mark.parametrize("fault", [None, "401", "400", "500", "disconnect"])
def test_login_in_the_url_is_sent_and_not_shown(fault, caplog):
    async def run():
        async with (endpoint := Endpoint(faults=lambda number, body: fault)) as url:
            client = client_of(url.replace("//", "//user:p%40ssword@"), attempts=1)
            caplog.set_level(logging.DEBUG)
            caplog.set_level(logging.DEBUG, logger="aiohttp")
            shown = [str(client.identity)]
            try:
                await client.answer(REQUEST)
            except UserError as error:
                shown += traceback.format_exception(error)
            await client.close()
            assert client.identity["base_url"] == url
            assert endpoint.requests[0].authorization == "Basic dXNlcjpwQHNzd29yZA=="
            return "\n".join(shown)

    shown = virtual_run(run()) + caplog.text
    for secret in ("p%40ssword", "p@ssword", "dXNlcjpwQHNzd29yZA=="):
        assert secret not in shown


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000/v1",
        "localhost/v1",
        "ftp://host/v1",
        "http://",
        "http://host:port/v1",
        "http://host:99999/v1",
        "http://a host/v1",
        "http://user:secret@/v1",
        "http://host/v1?key=secret",
    ],
)
def test_what_is_no_url(url):
    with pytest.raises(UserError, match="base_url is no URL") as caught:
        client_of(url)
    assert "secret" not in str(caught.value)


def test_identity_holds_what_answers_depend_on():
    client = client_of("http://127.0.0.1:9/v1/", attempts=3, price_in=1.0, connections=2)
    assert client.identity == {
        "kind": "openai",
        "base_url": "http://127.0.0.1:9/v1",
        "model": "gpt-test",
        "structured": True,
        "seeds": True,
        "token_limit": "max_tokens",
    }
    assert json.loads(json.dumps(client.identity)) == client.identity
    assert not client.scores


@pytest.mark.parametrize("headers", [{"Retry-After": "0.3"}, {"retry-after-ms": "300", "Retry-After": "60"}])
def test_rate_limit_pauses_all_calls(headers):
    async def run():
        limited = asyncio.Event()

        def fault(number: int, body: dict) -> str | None:
            if number == 0:
                limited.set()
            return "429" if number == 0 else None

        async with (endpoint := Endpoint(faults=fault, retry_after=headers)) as url:
            client = client_of(url)
            first = asyncio.create_task(client.answer(REQUEST))
            await limited.wait()
            while not client.retries["rate_limited"]:
                await asyncio.sleep(0.001)
            others = [client.answer(REQUEST) for _ in range(3)]
            await asyncio.gather(first, *others)
            await client.close()
            return [received.at for received in endpoint.requests]

    first, *others = virtual_run(run())
    assert len(others) == 4
    assert min(others) - first >= 0.299


def test_busy_endpoint_is_no_failing_endpoint():
    """A call is refused more often than it has attempts, while others are answered."""
    other = Request("seeker", (Message("user", "Hello"),))

    async def run():
        refused = 0

        def fault(number: int, body: dict) -> str | None:
            nonlocal refused
            if body["seed"] == REQUEST.seed and refused < 20:
                refused += 1
                return "429"
            return None

        async def go_on():
            while True:
                await client.answer(other)

        async with Endpoint(faults=fault, retry_after={}) as url:
            client = client_of(url, backoff_s=1e-9)
            others = [asyncio.create_task(go_on()) for _ in range(4)]
            answer = await client.answer(REQUEST)
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await client.close()
            return answer, client

    answer, client = virtual_run(run())
    assert answer.text == "That sounds hard."
    assert counted(client) == {"rate_limited": 20}


def test_a_call_that_timed_out_gets_more_time():
    """Each answer takes 100 s: with the same 60 s for every try none would ever come."""

    async def run():
        async with (endpoint := Endpoint(latency_s=100.0)) as url:
            client = client_of(url, backoff_s=1e-9)
            answer = await client.answer(REQUEST)
            await client.close()
            return answer, client, len(endpoint.requests)

    answer, client, requests = virtual_run(run())
    assert answer.text == "That sounds hard."
    assert counted(client) == {"timeouts": 1}
    assert requests == 2


def test_a_starved_endpoint_gets_fewer_calls_at_once():
    """It answers in time only up to two calls at once; sixteen as before would time out again and again."""

    def fault(number: int, body: dict) -> str | None:
        return "timeout" if endpoint.at_once > 2 else None

    endpoint = Endpoint(faults=fault, latency_s=0.5)

    async def run():
        async with endpoint as url:
            client = client_of(url, connections=16, timeout=1.0, backoff_s=1e-9)
            await asyncio.gather(*(client.answer(REQUEST) for _ in range(16)))
            slow = len(endpoint.requests)
            await asyncio.gather(*(client.answer(REQUEST) for _ in range(200)))
            await client.close()
            return slow, client

    slow, client = virtual_run(run())
    assert 16 < slow < 16 * 4
    assert counted(client)["timeouts"] < 100


def test_pace():
    async def run():
        clock = asyncio.get_running_loop().time
        pace = Pace(16)
        first = clock()
        await asyncio.sleep(1)
        for _ in range(10):  # sent together, they are one sign of being too many
            pace.slow(first)
        shares = [pace.turns.total_tokens]
        for _ in range(6):
            await asyncio.sleep(1)
            pace.slow(clock())
            shares.append(pace.turns.total_tokens)
        rounds = []
        for _ in range(3):
            for _ in range(16):
                pace.quicken()
            rounds.append(pace.turns.total_tokens)
        for _ in range(1000):
            pace.quicken()
        return shares, rounds, pace.turns.total_tokens

    shares, rounds, most = virtual_run(run())
    assert shares == [8, 4, 2, 1, 1, 1, 1]
    assert rounds == [2, 3, 4]
    assert most == 16


def test_connections_are_limited_and_waiting_for_one_is_not_timed():
    async def run():
        async with (endpoint := Endpoint(latency_s=0.05)) as url:
            client = client_of(url, connections=4, timeout=0.15)
            await asyncio.gather(*(client.answer(REQUEST) for _ in range(24)))
            open_before = endpoint.connections
            await client.close()
            while endpoint.connections:
                await asyncio.sleep(0.001)
            return open_before, endpoint.most_at_once, len(endpoint.requests), client

    open_before, most, requests, client = virtual_run(run())
    assert (open_before, most, requests) == (4, 4, 24)
    assert counted(client) == {}


def test_client_goes_on_after_a_call_was_cancelled():
    async def run():
        fault = lambda number, body: "timeout" if number == 0 else None  # noqa: E731
        async with (endpoint := Endpoint(faults=fault)) as url:
            client = client_of(url, connections=1)
            call = asyncio.create_task(client.answer(REQUEST))
            while not endpoint.requests:
                await asyncio.sleep(0.001)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            answer = await client.answer(REQUEST)
            await client.close()
            return answer

    assert virtual_run(run()).text == "That sounds hard."


def test_three_of_ten_requests_fail_in_every_way():
    kinds = [*PASSING, "refusal", "empty", "malformed_json", "unknown_strategy", "filtered", "400:content_filter"]

    async def run():
        def fault(number: int, body: dict) -> str | None:
            return kinds[number * 3 // 10 % len(kinds)] if number * 3 % 10 < 3 else None

        async with (endpoint := Endpoint(faults=fault, reply=lambda body: str(body["seed"]))) as url:
            client = client_of(url, connections=16)
            requests = [Request("seeker", (Message("user", "Hello"),), seed=seed) for seed in range(120)]
            answers = await asyncio.gather(*(client.answer(request) for request in requests))
            await client.close()
            return answers, client, endpoint

    answers, client, endpoint = virtual_run(run())
    right = sum(answer.text == str(seed) for seed, answer in enumerate(answers))
    odd = sum(bool(answer.refusal) or answer.text in ("", '{"strategy": "Affirm') for answer in answers)
    odd += sum("Telepathy" in answer.text for answer in answers)
    assert right + odd == 120
    assert len(endpoint.requests) == 120 + client.retries.total()
    assert set(counted(client)) == set(get_args(Passing)) - {"unreachable"}


@given(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from(["retry-after", "retry-after-ms"]))
def test_waits_are_capped(seconds, header):
    wait = parse_retry_after({header: str(seconds)})
    assert 0 <= wait <= 60
    if not math.isnan(seconds):
        asked = seconds if header == "retry-after" else seconds / 1000
        assert wait == min(max(asked, 0), 60)


def test_wait_until_a_date(monkeypatch):
    now = 1_700_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    assert parse_retry_after({"retry-after": formatdate(now + 30, usegmt=True)}) == 30
    assert parse_retry_after({"retry-after": formatdate(now - 30, usegmt=True)}) == 0
    assert parse_retry_after({"retry-after": "soon"}) == 0
    assert parse_retry_after({}) == 0


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    for name in ("connection", "replica"):
        monkeypatch.delitem(sys.modules, f"esc_lab.search.clients.{name}", raising=False)
    with pytest.raises(UserError, match=r"'aiohttp' is not installed. Fix: pip install 'esc-lab\[openai\]'"):
        client_of("http://127.0.0.1:9/v1")


def test_importing_the_module_does_not_import_aiohttp():
    code = "import sys, esc_lab.search.clients.openai; print({'aiohttp', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_endpoint_in_a_thread():
    with Endpoint(reply=lambda body: body["model"]).running() as url:
        data = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello"}]}).encode()
        with urllib.request.urlopen(f"{url}/chat/completions", data) as response:
            assert json.load(response)["choices"][0]["message"]["content"] == "m"
        with pytest.raises(HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/models")
