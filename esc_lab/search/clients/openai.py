"""Any endpoint with OpenAI's chat completions, through the official SDK: keys, retries, rate limits, refusals.

What may pass is tried again after a wait that grows (exponential backoff with full jitter) and honours `Retry-After`.
The SDK's own retries are off: they do not count what went wrong, ask again for what will not pass (a used-up account),
do not ask again where a response is no chat completion, give up on a call while the endpoint answers others, and let
all others run into the same rate limit. What will not pass (wrong key, unknown model, a request that the endpoint
refuses) stops at once with a `UserError`. Nothing that an endpoint sends is trusted (`connection`, `completions`).
"""

from __future__ import annotations

import asyncio
import base64
import math
import os
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from esc_lab.config import Config
from esc_lab.config.endpoint import is_variable_name, split_login
from esc_lab.config.evaluate import GenerationConfig
from esc_lab.config.search import EndpointConfig, RoleConfig
from esc_lab.errors import UserError
from esc_lab.search.clients.completions import (
    FILTER_CODES,
    LONGEST_WAIT_S,
    Redaction,
    describe_refusal,
    parse_retry_after,
    read_completion,
)
from esc_lab.search.requests import Answer, Request

if TYPE_CHECKING:
    import openai

LONGEST_TIMEOUT_S = 600.0

# How an attempt can fail in a way that may pass: 429; 5xx and 409; no answer in time, and 408; a connection that could
# not be made or was lost; a response that is no chat completion.
Passing = Literal["rate_limited", "server_errors", "timeouts", "connection_errors", "malformed"]


@dataclass(frozen=True)
class Problem:
    """An attempt that failed in a way that may pass; the endpoint asks to wait for `retry_after` seconds."""

    kind: Passing
    text: str
    retry_after: float = 0.0


def build_client(cfg: Config, role: str, shared: dict[str, Any]) -> OpenAIClient:
    """The client of a role at an endpoint; model and URL of the role go before those of `llm.openai`."""
    played, endpoint = getattr(cfg.llm, role), cfg.llm.openai
    endpoint = replace(endpoint, model=played.model or endpoint.model, base_url=played.base_url or endpoint.base_url)
    return OpenAIClient(endpoint, connections=cfg.search.concurrency)


def serve_supporter(cfg: Config, sampling: GenerationConfig) -> Config:
    """The configuration with the model under test, which is at an endpoint (`model=endpoint`), as the supporter.

    `open_calls` with the role `supporter` then asks it, at `llm.supporter.base_url` or that of `llm.openai`.
    """
    supporter = RoleConfig(
        "openai", cfg.model.path, base_url=cfg.llm.supporter.base_url, temperature=sampling.temperature,
        top_p=sampling.top_p, max_tokens=sampling.max_new_tokens,
    )  # fmt: skip
    return replace(cfg, llm=replace(cfg.llm, supporter=supporter))


class OpenAIClient:
    """A client of an OpenAI-compatible endpoint, for use in one event loop.

    Args:
        endpoint: names the model, and the URL up to `/v1`: None for that of `OPENAI_BASE_URL`, else OpenAI's own. A
            login in it (`http://user:password@host/v1`) is sent in place of the key and never shown. Other servers
            than OpenAI's may do without a key. A 429 counts as one of the `attempts` only if no other call of this
            client was answered since the last try: the endpoint is well then, and the call only waits for its turn.
            A call that timed out gets twice the time at its next try, up to 10 minutes, and the endpoint gets fewer
            calls at once until it answers in time again.
        connections: most calls at once; more wait for their turn, without being timed.
        backoff_s: longest wait before the second attempt; doubles with each further one, up to 60 s.

    Raises:
        UserError: the SDK is not installed, there is no usable key, or `base_url` is no URL.
    """

    scores = False

    def __init__(self, endpoint: EndpointConfig, *, connections: int = 64, backoff_s: float = 0.5) -> None:
        url = endpoint.base_url or os.environ.get("OPENAI_BASE_URL")
        self._url, login = split_login(endpoint.base_url)
        key = _key(endpoint.key_variable, needed=url is None)
        settings = {name: getattr(endpoint, name) for name in ("model", "structured", "seeds", "token_limit")}
        if endpoint.extra_body:
            settings["extra_body"] = dict(endpoint.extra_body)
        self.identity: Mapping[str, Any] = {"kind": "openai", "base_url": self._url, **settings}
        self.retries: Counter[str] = Counter()
        self._endpoint, self._backoff_s = endpoint, backoff_s
        encoded = base64.b64encode(":".join(login).encode()).decode()
        self._redaction = Redaction([key, encoded, *login])
        self._connection = _import_connection()
        self._client = self._connection.connect(self._url, key or "none", login, connections)
        self._pace = self._connection.Pace(connections)
        self._answered = 0
        self._open_at = 0.0  # no call is sent before this time of the event loop's clock

    async def answer(self, request: Request) -> Answer:
        body = self._body(request)
        failures = tries = timeouts = 0
        answered = self._answered
        while True:
            while (wait := self._open_at - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(wait)
            longest = max(self._endpoint.timeout, LONGEST_TIMEOUT_S)
            outcome = await self._attempt(body, request.role, min(self._endpoint.timeout * 2**timeouts, longest))
            if isinstance(outcome, Answer):
                self._answered += 1
                return outcome
            if isinstance(outcome, UserError):
                raise outcome
            self.retries[outcome.kind] += 1
            tries += 1
            timeouts += outcome.kind == "timeouts"
            failures += outcome.kind != "rate_limited" or self._answered == answered
            answered = self._answered
            if failures >= self._endpoint.attempts:
                what = f"no answer of '{self._endpoint.model}' after {tries} attempts; the last problem: {outcome.text}"
                raise UserError(what, where=self._url, fix="check the endpoint, then go on with resume")
            longest = min(LONGEST_WAIT_S, self._backoff_s * 2 ** min(tries - 1, 30))
            await asyncio.sleep(min(LONGEST_WAIT_S, outcome.retry_after + random.uniform(0, longest)))

    async def close(self) -> None:
        await self._client.close()

    def _body(self, request: Request) -> dict[str, Any]:
        """Only fields that other servers know too: some, such as `transformers serve`, refuse those they do not."""
        body: dict[str, Any] = {
            "model": self._endpoint.model or "",
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            self._endpoint.token_limit: request.max_tokens,
        }
        drawn = {"temperature": request.temperature, "top_p": request.top_p}
        body |= {field: value for field, value in drawn.items() if value is not None}
        if self._endpoint.seeds:
            body["seed"] = request.seed
        if request.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        if self._endpoint.structured and request.schema is not None:
            schema = {"name": request.role, "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body | self._endpoint.extra_body

    async def _attempt(self, body: Mapping[str, Any], role: str, timeout_s: float) -> Answer | Problem | UserError:
        """One try, when it is its turn. Errors are returned, so that none carries the SDK's, which quotes responses."""
        async with self._pace.turns:
            sent = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(None if math.isinf(timeout_s) else timeout_s):
                    outcome = await self._send(body, role)
            except TimeoutError:
                outcome = Problem("timeouts", f"no answer within {timeout_s:g} s")
            if isinstance(outcome, Answer):
                self._pace.quicken()
            elif isinstance(outcome, Problem) and outcome.kind == "timeouts":
                self._pace.slow(sent)
            return outcome

    async def _send(self, body: Mapping[str, Any], role: str) -> Answer | Problem | UserError:
        import httpx2
        import openai

        connection = self._connection
        try:
            # `chat.completions.create` sends the same, after 2 ms of walking through the types of all messages.
            response = await self._client.post("/chat/completions", body=body, cast_to=httpx2.Response)
        except openai.APIStatusError as error:
            return self._read_error(error, body, role)
        except connection.LOST as error:
            cause = _first_cause(error)
            kind: Passing = "timeouts" if isinstance(cause, TimeoutError) else "connection_errors"
            return Problem(kind, self._one_line(f"{type(cause).__name__} {cause}"))
        except ValueError as error:  # of what reads heads: bytes in them that are no text, and the like
            return Problem("malformed", f"the head of the response cannot be read ({type(error).__name__})")
        except connection.BodyError as error:
            return Problem("malformed", str(error))
        except connection.RedirectError as error:
            fix = "set base_url to the address that answers, if you trust it"
            return UserError(self._one_line(str(error)), where=self._url, fix=fix)
        try:
            answer = read_completion(response.content, self._endpoint.price_in, self._endpoint.price_out)
        except ValueError:
            said = self._one_line(response.content[:1000].decode(errors="replace"))
            return Problem("malformed", f"the response is no chat completion: {said}")
        # Answers are written down, and an endpoint knows the key.
        hide = self._redaction.hide_whole
        top = tuple(tuple((hide(token), value) for token, value in row) for row in answer.top_logprobs)
        text, model, refusal = map(hide, (answer.text, answer.model, answer.refusal))
        return replace(answer, text=text, model=model, refusal=refusal, top_logprobs=top)

    def _read_error(
        self, error: openai.APIStatusError, body: Mapping[str, Any], role: str
    ) -> Answer | Problem | UserError:
        """What a status other than 2xx stands for."""
        status, code, said = error.status_code, error.code, self._one_line(_message(error))
        if status == 400 and code in FILTER_CODES:
            return Answer(refusal=said, finish_reason="content_filter")
        wait = parse_retry_after(error.response.headers)
        if status == 429 and code != "insufficient_quota":
            # The limit is that of the account: other calls would only be refused too.
            self._open_at = max(self._open_at, asyncio.get_running_loop().time() + wait)
            return Problem("rate_limited", f"too many requests (429): {said}", wait)
        if status == 408:
            return Problem("timeouts", f"timeout of the endpoint (408): {said}", wait)
        if status == 409 or status >= 500:
            return Problem("server_errors", f"server error ({status}): {said}", wait)
        about = {"code": code, "param": error.param}
        return describe_refusal(status, about, said, where=self._url, role=role, endpoint=self._endpoint, body=body)

    def _one_line(self, text: str) -> str:
        """The text without secrets and line breaks, cut where it is long."""
        text = " ".join(self._redaction.hide(text[:10_000]).split())
        return text if len(text) <= 200 else f"{text[:197]}..."


def _import_connection() -> Any:
    try:
        return import_module("esc_lab.search.clients.connection")
    except ImportError as error:
        raise UserError(f"package '{error.name}' is not installed", fix="pip install 'esc-lab[openai]'") from error


def _key(variable: str, *, needed: bool) -> str:
    if not is_variable_name(variable):  # it may be the key itself, so it is not shown
        raise UserError(
            "key_variable is no name of an environment variable", fix="name the variable that holds the key"
        )
    key = os.environ.get(variable, "").strip()
    if needed and not key:
        fix = f"export {variable}=..., or set base_url to a server that needs no key"
        raise UserError(f"the environment variable {variable}, which holds the key, is not set", fix=fix)
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the key in {variable} holds characters that no key has", fix="copy the key again")
    return key


def _message(error: openai.APIStatusError) -> str:
    """What an error says, as far as it can be told."""
    try:
        return str(error.body.get("message") or error.body) if isinstance(error.body, dict) else str(error.message)
    except RecursionError:
        return "(nested too deep)"


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None and not isinstance(error, TimeoutError):
        error = error.__cause__
    return error
