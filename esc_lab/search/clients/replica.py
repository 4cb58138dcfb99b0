"""One server of an endpoint: a try of a call, the pace of its calls, and whether it is well.

Imported when a client connects: it needs aiohttp.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import aiohttp

from esc_lab.config.endpoint import split_login
from esc_lab.config.search import EndpointConfig
from esc_lab.errors import UserError
from esc_lab.search.clients.completions import (
    FILTER_CODES,
    Passing,
    Problem,
    Redaction,
    describe_refusal,
    parse_retry_after,
    read_completion,
    read_error,
    read_models,
)
from esc_lab.search.clients.connection import (
    BodyError,
    Connection,
    Pace,
    RedirectError,
    Response,
    UnreachableError,
)
from esc_lab.search.requests import Answer

log = logging.getLogger(__name__)
# In a row, without an answer in between, and a server is down; one that cannot be reached is so at once.
FAILURES_UNTIL_DOWN = 3
LONGEST_PAUSE_S = 60.0
_LISTING_S = 20.0


class Replica:
    """A server with chat completions, for use in one event loop.

    Args:
        base_url: as in `EndpointConfig`, of one server.
        most: calls at once.

    Attributes:
        url: as it may be shown.
        down_until: no call is sent before this time of the loop's clock if another server is well.
        open_at: no call is sent before this time at all: it limits rates.
    """

    def __init__(self, base_url: str | None, key: str, most: int) -> None:
        self.url, login = split_login(base_url)
        encoded = base64.b64encode(":".join(login).encode()).decode()
        self._redaction = Redaction([key, encoded, *login])
        self._connection = Connection(self.url, key or "none", login, most)
        self._pace = Pace(most)
        self.down_until = self.open_at = 0.0
        self._failures, self._pause = 0, 1.0
        self._listed: dict[str, dict[str, int]] | None = None
        self._listing = asyncio.Lock()

    @property
    def load(self) -> int:
        """Calls that it works on or that wait for their turn."""
        turns = self._pace.turns.statistics()
        return turns.borrowed_tokens + turns.tasks_waiting

    async def close(self) -> None:
        await self._connection.close()

    async def attempt(
        self, body: Mapping[str, Any], role: str, endpoint: EndpointConfig, timeout_s: float, *, waits: bool = True
    ) -> Answer | Problem | UserError | None:
        """One try, when it is its turn. Errors are returned, so that none carries what a response says in its context.

        Args:
            waits: the call stays even if the server is down when its turn comes; else it gets None then.
        """
        content = json.dumps(body).encode()
        clock = asyncio.get_running_loop().time
        async with self._pace.turns:
            while (wait := self.open_at - clock()) > 0:
                await asyncio.sleep(wait)
            sent = clock()
            if not waits and sent < self.down_until:
                return None
            try:
                async with asyncio.timeout(None if math.isinf(timeout_s) else timeout_s):
                    outcome = await self._send(content, body, role, endpoint)
            except TimeoutError:
                outcome = Problem("timeouts", f"no answer within {timeout_s:g} s")
            if isinstance(outcome, Problem):
                if outcome.kind == "timeouts":
                    self._pace.slow(sent)
                self._note_failure(outcome.kind)
            else:
                self._failures, self._pause, self.down_until = 0, 1.0, 0.0
                self._pace.quicken()
            return outcome

    def begin_trial(self) -> bool:
        """Whether it was down. If so a call finds out now if it is well again, and others go elsewhere meanwhile."""
        if self._failures < FAILURES_UNTIL_DOWN:
            return False
        self._pause = min(LONGEST_PAUSE_S, 2 * self._pause)
        self.down_until = asyncio.get_running_loop().time() + self._pause
        return True

    def _note_failure(self, kind: Passing) -> None:
        if kind == "rate_limited":
            return
        before = self._failures
        self._failures += FAILURES_UNTIL_DOWN if kind == "unreachable" else 1
        if before < FAILURES_UNTIL_DOWN <= self._failures:
            log.info("%s is down (%s)", self.url, kind.replace("_", " "))
        if self._failures >= FAILURES_UNTIL_DOWN:
            self.down_until = max(self.down_until, asyncio.get_running_loop().time() + self._pause)

    def forget_models(self) -> None:
        self._listed = None

    async def list_models(self) -> dict[str, dict[str, int]] | None:
        """What `/v1/models` says: name -> how the server describes it; empty if it does not say, None if it is down."""
        async with self._listing:
            if self._listed is None:
                try:
                    async with asyncio.timeout(_LISTING_S):
                        response = await self._connection.get("/models")
                    if response.status == 503:  # so servers say while they load their model
                        self._note_failure("unreachable")
                        return None
                    self._listed = read_models(response.body) if response.status == 200 else {}
                except (UnreachableError, TimeoutError):
                    self._note_failure("unreachable")
                    return None
                except (aiohttp.ClientError, ValueError, BodyError, RedirectError):
                    self._listed = {}
            return self._listed

    async def _send(
        self, content: bytes, body: Mapping[str, Any], role: str, endpoint: EndpointConfig
    ) -> Answer | Problem | UserError:
        try:
            response = await self._connection.post("/chat/completions", content)
        except UnreachableError as error:
            return Problem("unreachable", self._one_line(str(error)))
        except aiohttp.ClientError as error:
            return Problem("connection_errors", self._one_line(f"{type(error).__name__} {error}"))
        except ValueError as error:  # of what reads heads: bytes in them that are no text, and the like
            return Problem("malformed", f"the head of the response cannot be read ({type(error).__name__})")
        except BodyError as error:
            return Problem("malformed", str(error))
        except RedirectError as error:
            fix = "set base_url to the address that answers, if you trust it"
            return UserError(self._one_line(str(error)), where=self.url, fix=fix)
        if not 200 <= response.status < 300:
            return self._read_status(response, body, role, endpoint)
        try:
            answer = read_completion(response.body, endpoint.price_in, endpoint.price_out)
        except ValueError:
            said = self._one_line(response.body[:1000].decode(errors="replace"))
            return Problem("malformed", f"the response is no chat completion: {said}")
        # Answers are written down, and an endpoint knows the key.
        hide = self._redaction.hide_whole
        top = tuple(tuple((hide(token), value) for token, value in row) for row in answer.top_logprobs)
        text, model, refusal = map(hide, (answer.text, answer.model, answer.refusal))
        return replace(answer, text=text, model=model, refusal=refusal, top_logprobs=top)

    def _read_status(
        self, response: Response, body: Mapping[str, Any], role: str, endpoint: EndpointConfig
    ) -> Answer | Problem | UserError:
        """What a status other than 2xx stands for."""
        status, (error, said) = response.status, read_error(response.body)
        said, code = self._one_line(said or response.reason), error.get("code")
        if status == 400 and code in FILTER_CODES:
            return Answer(refusal=said, finish_reason="content_filter")
        wait = parse_retry_after(response.headers)
        if status == 429 and code != "insufficient_quota":
            # The limit is that of the account: other calls would only be refused too.
            self.open_at = max(self.open_at, asyncio.get_running_loop().time() + wait)
            return Problem("rate_limited", f"too many requests (429): {said}", wait)
        if status == 408:
            return Problem("timeouts", f"timeout of the endpoint (408): {said}", wait)
        if status == 409 or status >= 500:
            return Problem("server_errors", f"server error ({status}): {said}", wait)
        return describe_refusal(status, error, said, where=self.url, role=role, endpoint=endpoint, body=body)

    def _one_line(self, text: str) -> str:
        """The text without secrets and line breaks, cut where it is long."""
        text = " ".join(self._redaction.hide(text[:10_000]).split())
        return text if len(text) <= 200 else f"{text[:197]}..."
