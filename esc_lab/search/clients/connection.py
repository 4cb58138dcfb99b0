"""The connection to an endpoint: how much it may send, where it may redirect to, and how many calls it gets at once.

Imported when a client connects: it needs aiohttp.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.request import getproxies, proxy_bypass

import aiohttp
import anyio
from yarl import URL

log = logging.getLogger(__name__)
MAX_BODY_BYTES = 4 * 2**20  # of a response, when it is unpacked
# A server that is there takes a connection at once, however long it then works on the call.
CONNECT_S = 15.0
_MAX_REDIRECTS = 20


class BodyError(Exception):
    """The body of a response cannot be read: the message says why."""


class RedirectError(Exception):
    """A redirect that is not followed: prompts, and perhaps the key, would go elsewhere."""


class UnreachableError(Exception):
    """There is no connection, so nothing was sent."""


@dataclass(frozen=True)
class Response:
    """What came back, whatever its status; the body is unpacked."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """Connections to one server, which neither retry nor time anything but the way to it.

    Args:
        url: up to `/v1`.
        login: user and password, which are sent in place of the key.
        most: connections at once.
    """

    def __init__(self, url: str, key: str, login: tuple[str, ...], most: int) -> None:
        credentials = f"Basic {base64.b64encode(':'.join(login).encode()).decode()}" if login else f"Bearer {key}"
        # What else could be unpacked, brotli or zstd, has no limit on what comes out.
        self._headers = {"Authorization": credentials, "Accept-Encoding": "gzip", "Content-Type": "application/json"}
        self._url, self._most = url, most
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: bytes) -> Response:
        """Send a body of JSON.

        Raises:
            UnreachableError: nothing was sent.
            aiohttp.ClientError, ValueError: no response, not all of it, or none that can be read.
            BodyError: the body is too long, or cannot be unpacked.
            RedirectError: the response is a redirect to another server, or one that drops the request's body.
        """
        return await self._request("POST", path, body)

    async def get(self, path: str) -> Response:
        """As `post`, without a body."""
        return await self._request("GET", path, None)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _request(self, method: str, path: str, body: bytes | None) -> Response:
        url = URL(self._url + path)
        if self._session is None:
            self._session = self._open(url)
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                pending = await self._session.request(method, url, data=body, allow_redirects=False)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                raise UnreachableError(f"{type(_first_cause(error)).__name__} {_first_cause(error)}") from None
            async with pending as response:
                location = response.headers.get("location") if 300 <= response.status < 400 else None
                if location is None:
                    return Response(response.status, _phrase(response), response.headers, await _read(response))
                there = _follow(url, response.status, location)
                if there is None:
                    what = f"the endpoint redirects ({response.status}) to {location}, which is not followed"
                    raise RedirectError(what)
                url = there
        raise aiohttp.ClientPayloadError("the endpoint redirects too often")

    def _open(self, url: URL) -> aiohttp.ClientSession:
        """A session of the running loop, through the proxy that the environment names, if any."""
        proxies = {} if proxy_bypass(url.host or "") else getproxies()
        # Servers often close what was idle for 5 s; a connection must not be taken up again just then.
        connector = aiohttp.TCPConnector(limit=self._most, keepalive_timeout=4.0)
        return aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=proxies.get(url.scheme) or proxies.get("all"),
        )


def _phrase(response: aiohttp.ClientResponse) -> str:
    try:
        return response.reason or HTTPStatus(response.status).phrase
    except ValueError:
        return ""


def _follow(here: URL, status: int, location: str) -> URL | None:
    """Where a redirect leads, if to the same server, or to its encrypted side, with the request as it is."""
    try:
        there = here.join(URL(location))
        default = here.is_default_port() and there.is_default_port()
        encrypts = (here.scheme, there.scheme) == ("http", "https") and default
        same = here.host == there.host and (encrypts or (here.scheme, here.port) == (there.scheme, there.port))
    except ValueError:
        return None
    return there if same and status in (307, 308) else None


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """A body, unpacked, up to `MAX_BODY_BYTES`; a BodyError beyond, or where it cannot be unpacked."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise BodyError("the response is packed in a way that was not asked for")
    unpack = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
    chunks, read, written = list[bytes](), 0, 0
    async for chunk in response.content.iter_any():
        read += len(chunk)
        if unpack is not None:
            try:
                chunk = unpack.decompress(chunk, MAX_BODY_BYTES + 1)
            except zlib.error as error:
                raise BodyError(f"the response cannot be unpacked: {error}") from None
        written += len(chunk)
        if max(read, written) > MAX_BODY_BYTES:
            raise BodyError(f"the response is longer than {MAX_BODY_BYTES / 2**20:g} MiB")
        chunks.append(chunk)
    return b"".join(chunks)


def _first_cause(error: BaseException) -> BaseException:
    """What the system said."""
    while isinstance(cause := error.__cause__ or getattr(error, "os_error", None), BaseException):
        error = cause
    return error


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
