"""What the responses of a chat-completions endpoint mean: an answer, a problem that may pass, or the end."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal

from esc_lab.search.requests import Answer

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


def read_completion(content: bytes, price_in: float = 0.0, price_out: float = 0.0) -> Answer:
    """The answer in the body of a response; prices are US dollars per million tokens.

    Raises:
        ValueError: it is no chat completion.
    """
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


def classify_status(status: int, code: str | None, said: str, retry_after: float) -> Problem | None:
    """The problem that a status other than 2xx stands for, or None where asking again will not help.

    Args:
        status, code: HTTP status, and the error's code in the body if it has one.
        said: the endpoint's message.
        retry_after: seconds.
    """
    if status == 429 and code != "insufficient_quota":
        return Problem("rate_limited", f"too many requests (429): {said}", retry_after)
    if status == 408:
        return Problem("timeouts", f"timeout of the endpoint (408): {said}", retry_after)
    if status == 409 or status >= 500:
        return Problem("server_errors", f"server error ({status}): {said}", retry_after)
    return None


def describe_refusal(status: int, code: str | None, said: str, model: str, key_variable: str) -> tuple[str, str]:
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
