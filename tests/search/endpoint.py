"""A chat-completions endpoint on the loopback interface that can be told to be slow and to fail."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Received:
    """A request that came in: its `Authorization` header, its JSON body, and when (by the loop's clock)."""

    authorization: str
    body: dict[str, Any]
    at: float


@dataclass(frozen=True)
class _Response:
    body: bytes
    status: int = 200
    headers: Mapping[str, str] | None = None

    def __bytes__(self) -> bytes:
        fields = {"Content-Type": "application/json", "Content-Length": str(len(self.body)), **(self.headers or {})}
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}", *(f"{k}: {v}" for k, v in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class Endpoint:
    """POST /v1/chat/completions over HTTP/1.1 with keep-alive.

        async with Endpoint(reply) as url: ...     # in the running event loop
        with Endpoint(reply).running() as url: ... # in a thread of its own

    Args:
        reply: content of the completion, from the request's body. Contents that depend on the body alone are the same
            in every run.
        latency_s: how long each answer takes, in seconds.
        faults: what is wrong with the n-th request (from 0), from n and its body; None for nothing:
            `429` (with `retry_after`), `500`, `503` or any other status, which may carry an error code as in
            `400:content_filter`, or a body as in `400 {...}`; `timeout` (no answer until the client gives up);
            `disconnect`; `die` (all connections are lost, and nobody listens any more); `truncated` (the connection is
            lost within the response); `refusal`; `filtered` (finish_reason content_filter);
            `cut_off` (finish_reason length); `empty`, `cut_off empty`;
            `reasoning` (no content beside it);
            `endless` (a body without an end); `drip` (a byte of body every 10 s, for ever); `packed` (64 MiB in 64 KiB
            of gzip); `packed:br` (as if by this); `redirect:307 URL`; `malformed_body` (not JSON); `body:...` (this
            body); `malformed_json` (the content is broken JSON); `unknown_strategy` (the content is JSON that names a
            strategy of no inventory).
            Error messages tell the `Authorization` header, as careless servers do.
        retry_after: headers that go with a 429.
        model: what the endpoint says that the model is called, from the request's body.
        models: entries of `GET /v1/models`; None: there is no such path.
        log_probs: `logprobs` of a completion whose request asks for them, from its body; None: they are not served.

    Attributes:
        requests: all that came in, in their order.
        sent: bytes of bodies without an end.
        most_at_once: highest number of requests that were being answered at the same time.
    """

    def __init__(
        self,
        reply: Callable[[dict[str, Any]], str] = lambda body: "That sounds hard.",
        *,
        latency_s: float = 0.0,
        faults: Callable[[int, dict[str, Any]], str | None] = lambda number, body: None,
        retry_after: Mapping[str, str] | None = None,
        model: Callable[[dict[str, Any]], str] = lambda body: f"{body['model']}-0613",
        log_probs: Callable[[dict[str, Any]], Any] = lambda body: None,
        models: list[dict[str, Any]] | None = None,
    ) -> None:
        self._reply, self._latency_s, self._faults, self._model = reply, latency_s, faults, model
        self._log_probs, self._models, self.port = log_probs, models, 0
        self._retry_after = {"Retry-After": "0.01"} if retry_after is None else retry_after
        self.requests: list[Received] = []
        self.most_at_once = self.sent = 0
        self._at_once = 0
        self._handlers: set[asyncio.Task[None]] = set()
        self._transports: set[asyncio.WriteTransport] = set()

    @property
    def at_once(self) -> int:
        """Requests that are being answered, with the one that a fault is asked for."""
        return self._at_once

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._handlers)

    def settle(self) -> None:
        """Wait until what clients sent before they went away has come in, and its connections are closed."""
        with socket.create_connection(("127.0.0.1", self.port)) as last:  # is accepted after theirs
            last.sendall(b"GET / HTTP/1.1\r\n\r\n")
            last.recv(1)
        while self.connections:
            time.sleep(0.001)

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._server.wait_closed()

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve from a thread of its own; gives the base URL."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        try:
            yield asyncio.run_coroutine_threadsafe(self.__aenter__(), loop).result()
        finally:
            asyncio.run_coroutine_threadsafe(self.__aexit__(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        task.add_done_callback(self._handlers.discard)
        self._transports.add(writer.transport)
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has gone, or the endpoint closes
        finally:
            self._transports.discard(writer.transport)
            writer.close()

    def die(self) -> None:
        """As if the process was killed. `async with` starts it again, at the same port."""
        self._server.close()
        for transport in self._transports:
            transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection stays open."""
        start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        content = await reader.readexactly(int(headers.get("content-length", "0")))
        if start.split()[:2] == ["GET", "/v1/models"] and self._models is not None:
            writer.write(bytes(_Response(json.dumps({"object": "list", "data": self._models}).encode())))
            return True
        if start.split()[:2] != ["POST", PATH]:
            writer.write(bytes(_Response(b"no such path", 404)))
            return True
        received = Received(headers.get("authorization", ""), json.loads(content), asyncio.get_running_loop().time())
        self._at_once += 1
        fault = self._faults(len(self.requests), received.body)
        self.requests.append(received)
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if self._latency_s:
                await asyncio.sleep(self._latency_s)
            if fault == "timeout":
                await reader.read(1)  # ends when the client closes the connection
                return False
        finally:
            self._at_once -= 1
        if fault == "die":
            self.die()
            return False
        if fault == "disconnect":
            writer.transport.abort()
            return False
        if fault in ("endless", "drip"):
            await self._send_without_end(writer, 10.0 if fault == "drip" else 0.0)
        response = bytes(self._response(received, fault))
        writer.write(response[:-5] if fault == "truncated" else response)
        return fault != "truncated"

    async def _send_without_end(self, writer: asyncio.StreamWriter, pause_s: float) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        size = 1 if pause_s else 2**16
        while True:
            writer.write(b"%x\r\n%s\r\n" % (size, b" " * size))
            await writer.drain()  # a ConnectionError when the client has gone
            self.sent += size
            await asyncio.sleep(pause_s)

    def _response(self, received: Received, fault: str | None) -> _Response:
        if fault and fault[:4].endswith(" "):
            return _Response(fault[4:].encode(), int(fault[:3]))
        if fault and fault[0].isdigit():
            status, _, code = fault.partition(":")
            said = f"The server says\n{status} to {received.authorization}."
            error = {"message": said, "type": "error", "param": None, "code": code or None}
            headers = self._retry_after if status == "429" else None
            return _Response(json.dumps({"error": error}).encode(), int(status), headers)
        if fault and fault.startswith("redirect:"):
            status, url = fault.removeprefix("redirect:").split()
            return _Response(b"moved", int(status), {"Location": url})
        if fault and fault.startswith("packed"):
            packed = gzip.compress(bytes(2**26), compresslevel=1)
            return _Response(packed, headers={"Content-Encoding": fault.partition(":")[2] or "gzip"})
        if fault == "malformed_body":
            return _Response(b'{"choices": [')
        if fault and fault.startswith("body:"):
            return _Response(fault.removeprefix("body:").encode(errors="surrogateescape"))
        return _Response(json.dumps(self._completion(received.body, fault)).encode())

    def _completion(self, body: dict[str, Any], fault: str | None) -> dict[str, Any]:
        content: str | None = self._reply(body)
        if fault in ("refusal", "reasoning"):
            content = None
        elif fault in ("empty", "cut_off empty"):
            content = ""
        elif fault == "malformed_json":
            content = '{"strategy": "Affirm'
        elif fault == "unknown_strategy":
            content = json.dumps({"strategy": "Telepathy", "Telepathy": 10})
        read = sum(len(message["content"].split()) for message in body["messages"])
        written = len((content or "").split())
        message = {
            "role": "assistant",
            "content": content,
            **({"reasoning_content": "First, let me think."} if fault == "reasoning" else {}),
            "refusal": "I cannot help with that." if fault == "refusal" else None,
        }
        finish = {"filtered": "content_filter", "cut_off": "length", "cut_off empty": "length"}.get(fault or "", "stop")
        top = self._log_probs(body) if body.get("logprobs") else None
        return {
            "id": "chatcmpl-0",
            "object": "chat.completion",
            "created": 0,
            "model": self._model(body),
            "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": top}],
            "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
        }
