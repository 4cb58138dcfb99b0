"""Any endpoint with OpenAI's chat completions, through the official SDK: keys, retries, rate limits, refusals.

What may pass is tried again after a wait that grows (exponential backoff with full jitter) and honours `Retry-After`.
The SDK's own retries are off: they do not count what went wrong, ask again for what will not pass (a used-up account),
do not ask again where a response is no chat completion, give up on a call while the endpoint answers others, and let
all others run into the same rate limit. What will not pass (wrong key, unknown model, a request that the endpoint
refuses) stops at once with a `UserError`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from esc_lab.config import Config
from esc_lab.config.endpoint import split_login
from esc_lab.config.search import EndpointConfig
from esc_lab.errors import UserError
from esc_lab.search.requests import Answer, Request

if TYPE_CHECKING:
    import openai

# Error codes of endpoints whose filter stopped the prompt before any model read it.
_FILTER_CODES = ("content_filter", "content_policy_violation")
LONGEST_WAIT_S = 60.0

# How an attempt can fail in a way that may pass: 429; 5xx and 409; no answer in time, and 408; a connection that could
# not be made or was lost; a response that is no chat completion.
Passing = Literal["rate_limited", "server_errors", "timeouts", "connection_errors", "malformed"]


@dataclass(frozen=True)
class Problem:
    """An attempt that failed in a way that may pass; the endpoint asks to wait for `retry_after` seconds."""

    kind: Passing
    text: str
    retry_after: float = 0.0


def build_client(cfg: Config, role: str) -> OpenAIClient:
    """The client of a role at an endpoint; model and URL of the role go before those of `llm.openai`."""
    played, endpoint = getattr(cfg.llm, role), cfg.llm.openai
    endpoint = replace(endpoint, model=played.model or endpoint.model, base_url=played.base_url or endpoint.base_url)
    return OpenAIClient(endpoint, connections=cfg.search.concurrency)


class OpenAIClient:
    """A client of an OpenAI-compatible endpoint, for use in one event loop.

    Args:
        endpoint: names the model, and the URL up to `/v1`: None for that of `OPENAI_BASE_URL`, else OpenAI's own. A
            login in it (`http://user:password@host/v1`) is sent in place of the key and never shown. Other servers
            than OpenAI's may do without a key. A 429 counts as one of the `attempts` only if no other call of this
            client was answered since the last try: the endpoint is well then, and the call only waits for its turn.
        connections: most connections at once; more calls wait for a free one, without being timed.
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
        self.identity: Mapping[str, Any] = {"kind": "openai", "base_url": self._url, **settings}
        self.retries: Counter[str] = Counter()
        self._endpoint, self._model, self._backoff_s = endpoint, endpoint.model or "", backoff_s
        encoded = base64.b64encode(":".join(login).encode()).decode()
        self._secrets = [secret for secret in (key, encoded, *login) if secret]
        self._client = _connect(self._url, key or "none", login, endpoint.timeout, connections)
        self._answered = 0
        self._open_at = 0.0  # no call is sent before this time of the event loop's clock

    async def answer(self, request: Request) -> Answer:
        body = self._body(request)
        failures = tries = 0
        answered = self._answered
        while True:
            while (wait := self._open_at - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(wait)
            outcome = await self._attempt(body)
            if isinstance(outcome, Answer):
                self._answered += 1
                return outcome
            if isinstance(outcome, UserError):
                raise outcome
            self.retries[outcome.kind] += 1
            tries += 1
            failures += outcome.kind != "rate_limited" or self._answered == answered
            answered = self._answered
            if failures >= self._endpoint.attempts:
                what = f"no answer of '{self._model}' after {tries} attempts; the last problem: {outcome.text}"
                raise UserError(what, where=self._url, fix="check the endpoint, then go on with resume")
            longest = min(LONGEST_WAIT_S, self._backoff_s * 2 ** min(tries - 1, 30))
            await asyncio.sleep(min(LONGEST_WAIT_S, outcome.retry_after + random.uniform(0, longest)))

    async def close(self) -> None:
        await self._client.close()

    def _body(self, request: Request) -> dict[str, Any]:
        """Only fields that other servers know too: some, such as `transformers serve`, refuse those they do not."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            self._endpoint.token_limit: request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
        }
        if self._endpoint.seeds:
            body["seed"] = request.seed
        if self._endpoint.structured and request.schema is not None:
            schema = {"name": request.role, "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    async def _attempt(self, body: Mapping[str, Any]) -> Answer | Problem | UserError:
        """One try. Errors are returned, so that none carries the SDK's, which quotes what the endpoint said."""
        import aiohttp
        import httpx2
        import openai

        try:
            # `chat.completions.create` sends the same, after 2 ms of walking through the types of all messages.
            response = await self._client.post("/chat/completions", body=body, cast_to=httpx2.Response)
        except openai.APIStatusError as error:
            return self._read_error(error)
        except (openai.APIConnectionError, aiohttp.ClientError) as error:
            cause = _first_cause(error)
            if isinstance(cause, TimeoutError):
                return Problem("timeouts", f"no answer within {self._endpoint.timeout:g} s")
            return Problem("connection_errors", self._one_line(f"{type(cause).__name__} {cause}"))
        try:
            return _read_completion(response.content, self._endpoint.price_in, self._endpoint.price_out)
        except ValueError:
            said = self._one_line(response.content.decode(errors="replace"))
            return Problem("malformed", f"the response is no chat completion: {said}")

    def _read_error(self, error: openai.APIStatusError) -> Answer | Problem | UserError:
        """What a status other than 2xx stands for."""
        status, code, body = error.status_code, error.code, error.body
        said = self._one_line(str(body.get("message") or body) if isinstance(body, dict) else error.message)
        if status == 400 and code in _FILTER_CODES:
            return Answer(refusal=said)
        wait = parse_retry_after(error.response.headers)
        if status == 429 and code != "insufficient_quota":
            # The limit is that of the account: other calls would only be refused too.
            self._open_at = max(self._open_at, asyncio.get_running_loop().time() + wait)
            return Problem("rate_limited", f"too many requests (429): {said}", wait)
        if status == 408:
            return Problem("timeouts", f"timeout of the endpoint (408): {said}", wait)
        if status == 409 or status >= 500:
            return Problem("server_errors", f"server error ({status}): {said}", wait)
        message, fix = _describe_refusal(status, code, said, self._model, self._endpoint.key_variable)
        return UserError(message, where=self._url, fix=fix)

    def _one_line(self, text: str, longest: int = 200) -> str:
        """The text without secrets and line breaks, cut where it is long."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = " ".join(text.split())
        return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _connect(url: str, key: str, login: tuple[str, ...], timeout_s: float, connections: int) -> openai.AsyncOpenAI:
    try:
        import aiohttp  # noqa: F401
        import httpx2
        import openai
    except ImportError as error:
        raise UserError(f"package '{error.name}' is not installed", fix="pip install -e .[openai]") from error
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs a line a call
    # With aiohttp a call costs two thirds of the time, and no more with many connections. Servers often close what was
    # idle for 5 s; a connection must not be taken up again just then.
    limits = httpx2.Limits(max_connections=connections, keepalive_expiry=4.0)
    return openai.AsyncOpenAI(
        api_key=key,
        base_url=url,
        max_retries=0,
        timeout=httpx2.Timeout(timeout_s, pool=None),
        http_client=openai.DefaultAioHttpClient(limits=limits, auth=(login[0], login[1]) if login else None),
    )


def _key(variable: str, *, needed: bool) -> str:
    key = os.environ.get(variable, "").strip()
    if needed and not key:
        fix = f"export {variable}=..., or set base_url to a server that needs no key"
        raise UserError(f"the environment variable {variable}, which holds the key, is not set", fix=fix)
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the key in {variable} holds characters that no key has", fix="copy the key again")
    return key


def _read_completion(content: bytes, price_in: float, price_out: float) -> Answer:
    """The answer in the body of a response, at prices in US dollars per million tokens; ValueError if there is none."""
    try:
        data = json.loads(content)
        choice = data["choices"][0]
        message, usage = choice["message"], data.get("usage") or {}
        text, refusal = message.get("content") or "", message.get("refusal") or ""
        read, written = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        # JSON lets half of a surrogate pair through, which no file takes.
        text, refusal = (str.encode(part, errors="replace").decode() for part in (text, refusal))
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("no chat completion") from error
    if choice.get("finish_reason") == "content_filter":
        refusal = refusal or "stopped by the endpoint's content filter"
    return Answer(
        text="" if refusal else text,
        model=str(data.get("model") or ""),
        prompt_tokens=read,
        completion_tokens=written,
        cost=(read * price_in + written * price_out) / 1e6,
        refusal=refusal,
    )


def _describe_refusal(status: int, code: str | None, said: str, model: str, key_variable: str) -> tuple[str, str]:
    """What a status says that will not pass, and what to do about it."""
    if status == 401:  # without the message: endpoints quote parts of the key in it
        return "the endpoint does not accept the key (401)", f"set {key_variable} to a key of this endpoint"
    if status == 403:
        return f"no permission (403): {said}", f"check what the key in {key_variable} may do"
    if status == 404:
        return f"no model '{model}', or no endpoint at this URL (404): {said}", "check model and base_url"
    if status in (402, 429):
        return f"the account is used up ({status}): {said}", "top it up, then go on with resume"
    if code == "context_length_exceeded" or "context length" in said.lower():
        return f"the conversation is too long for '{model}' ({status}): {said}", "choose a model with a longer context"
    fix = "change what it names; `structured`, `seeds` and `token_limit` say which fields are sent"
    return f"the endpoint refuses the request ({status}): {said}", fix


def parse_retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that `retry-after-ms`, or `retry-after` as seconds or a date, ask to wait, in [0, 60]; 0 for none.

    >>> parse_retry_after({"retry-after": "2.5"})
    2.5
    >>> parse_retry_after({"retry-after-ms": "20"})
    0.02
    """
    text = headers.get("retry-after", "0")
    try:
        wait = float(headers["retry-after-ms"]) / 1000 if "retry-after-ms" in headers else float(text)
    except ValueError:
        try:
            wait = parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, min(LONGEST_WAIT_S, wait))


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None and not isinstance(error, TimeoutError):
        error = error.__cause__
    return error
