"""The connection to an endpoint: how much it may send, where it may redirect to, and how many calls it gets at once.

Imported when a client connects: it needs the SDK.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator

import aiohttp
import anyio
import httpx2
import openai

log = logging.getLogger(__name__)
# Ways to have no response, or not all of it.
LOST = (openai.APIConnectionError, aiohttp.ClientError)
MAX_BODY_BYTES = 4 * 2**20  # of a response, when it is unpacked


class BodyError(Exception):
    """The body of a response cannot be read: the message says why."""


class RedirectError(Exception):
    """A redirect that is not followed: prompts, and perhaps the key, would go elsewhere."""


def connect(url: str, key: str, login: tuple[str, ...], connections: int) -> openai.AsyncOpenAI:
    """A client of the SDK that neither retries nor times anything, guarded by `guard_response`."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs a line a call
    # With aiohttp a call costs two thirds of the time, and no more with many connections. Servers often close what was
    # idle for 5 s; a connection must not be taken up again just then.
    limits = httpx2.Limits(max_connections=connections, keepalive_expiry=4.0)
    return openai.AsyncOpenAI(
        api_key=key,
        base_url=url,
        max_retries=0,
        timeout=httpx2.Timeout(None),
        # What else it could unpack, brotli or zstd, has no limit on what comes out.
        default_headers={"Accept-Encoding": "gzip"},
        http_client=openai.DefaultAioHttpClient(
            limits=limits,
            auth=(login[0], login[1]) if login else None,
            event_hooks={"response": [guard_response]},
        ),
    )


async def guard_response(response: httpx2.Response) -> None:
    """Have no more of the body read than `MAX_BODY_BYTES`, and follow no redirect to another server.

    Raises:
        RedirectError: the response is a redirect to another server, or one that drops the request's body.
    """
    location = response.headers.get("location") if response.has_redirect_location else None
    if location is not None and not _may_follow(response, location):
        raise RedirectError(f"the endpoint redirects ({response.status_code}) to {location}, which is not followed")
    encoding = response.headers.pop("content-encoding", "identity").strip().lower()
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _LimitedStream(response.stream, encoding)


def _may_follow(response: httpx2.Response, location: str) -> bool:
    """Whether a redirect leads to the same server, or to its encrypted side, and keeps the request as it is."""
    here = response.url
    try:
        there = here.join(location)
    except httpx2.InvalidURL:
        return False
    encrypts = (here.scheme, there.scheme) == ("http", "https") and here.port is there.port is None
    same = here.host == there.host and (encrypts or (here.scheme, here.port) == (there.scheme, there.port))
    return same and response.status_code in (307, 308)


class _LimitedStream(httpx2.AsyncByteStream):
    """A body, unpacked, up to `MAX_BODY_BYTES`; a BodyError beyond, or where it cannot be unpacked."""

    def __init__(self, stream: httpx2.AsyncByteStream, encoding: str) -> None:
        self._stream, self._encoding = stream, encoding

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._encoding not in ("identity", "gzip"):
            raise BodyError("the response is packed in a way that was not asked for")
        unpack = zlib.decompressobj(wbits=31) if self._encoding == "gzip" else None
        read = written = 0
        async for chunk in self._stream:
            read += len(chunk)
            if unpack is not None:
                try:
                    chunk = unpack.decompress(chunk, MAX_BODY_BYTES + 1)
                except zlib.error as error:
                    raise BodyError(f"the response cannot be unpacked: {error}") from None
            written += len(chunk)
            if max(read, written) > MAX_BODY_BYTES:
                raise BodyError(f"the response is longer than {MAX_BODY_BYTES / 2**20:g} MiB")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


class Pace:
    """How many calls an endpoint gets at once: half as many after a timeout, one more after each 16 answers.

    Additive increase and multiplicative decrease (Chiu and Jain 1989): calls that time out where a machine is starved
    would otherwise all be made again, as many at once as before.

    Args:
        most: calls at once, at first and at most.
    """

    def __init__(self, most: int) -> None:
        self.turns = anyio.CapacityLimiter(most)
        self._most, self._share, self._slowed = most, float(most), -1.0

    def quicken(self) -> None:
        """An answer came in time."""
        if self._share < self._most:
            self._share = min(self._most, self._share + 1 / 16)
            self.turns.total_tokens = int(self._share)

    def slow(self, sent: float) -> None:
        """A call timed out that was sent at this time of the loop's clock; it counts if that was after the last one."""
        if sent <= self._slowed:
            return
        self._slowed = asyncio.get_running_loop().time()
        if self._share > 1:
            self._share = max(1.0, self._share / 2)
            self.turns.total_tokens = int(self._share)
            log.info("the endpoint does not answer in time: it gets %d calls at once", int(self._share))
