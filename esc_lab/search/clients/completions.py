"""What the responses of an endpoint say: completions, refusals, errors that pass and that do not."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import quote

from esc_lab.config.search import EndpointConfig
from esc_lab.errors import UserError
from esc_lab.search.requests import Answer, TooLongError, TopLogProbs

# Error codes of endpoints whose filter stopped the prompt before any model read it.
FILTER_CODES = ("content_filter", "content_policy_violation")
LONGEST_WAIT_S = 60.0
# More tokens than any model reads or writes at once: a count above it is no count.
_MAX_TOKENS = 10**9
_TOO_LONG = re.compile(r"context[ _](?:length|size|window)|maximum context|prompt is too long", re.IGNORECASE)
# What has vLLM, SGLang and llama.cpp go on with a last message of the assistant.
CONTINUED = {"continue_final_message": True, "add_generation_prompt": False}
# So many of a completion's first tokens are kept with their alternatives: a label is shorter.
_LABEL_TOKENS, _MAX_ALTERNATIVES = 16, 20
_TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")

# How an attempt can fail in a way that may pass: 429; 5xx and 409; no answer in time, and 408; a connection that was
# lost; one that could not be made, so that nothing was sent; a response that is no chat completion.
Passing = Literal["rate_limited", "server_errors", "timeouts", "connection_errors", "unreachable", "malformed"]


@dataclass(frozen=True)
class Problem:
    """An attempt that failed in a way that may pass; the endpoint asks to wait for `retry_after` seconds."""

    kind: Passing
    text: str
    retry_after: float = 0.0


def read_completion(content: bytes, price_in: float, price_out: float) -> Answer:
    """The answer in the body of a response, at prices in US dollars per million tokens; ValueError if there is none."""
    try:
        data = json.loads(content)
        choice = data["choices"][0]
        message, usage = choice["message"], data.get("usage") or {}
        text, refusal = _text(message.get("content")), _text(message.get("refusal"))
        read, written = (_count(usage.get(f"{name}_tokens")) for name in ("prompt", "completion"))
        finish_reason, model = (str(part or "") for part in (choice.get("finish_reason"), data.get("model")))
        top = _top_logprobs(choice.get("logprobs"))
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError("no chat completion") from error
    if finish_reason == "content_filter":
        refusal = refusal or "stopped by the endpoint's content filter"
    return Answer(
        text="" if refusal else text,
        model=model[:200],
        prompt_tokens=read,
        completion_tokens=written,
        cost=(read * price_in + written * price_out) / 1e6,
        refusal=refusal,
        finish_reason=finish_reason[:40],
        top_logprobs=() if refusal else top,
    )


def _text(content: Any) -> str:
    """A content, also one in parts, of which those of text count; TypeError if it is none."""
    if isinstance(content, list):
        return "".join(_text(part["text"]) for part in content if part.get("type") == "text")
    if not isinstance(content or "", str):
        raise TypeError("no text")
    return content or ""


def _top_logprobs(served: Any) -> TopLogProbs:
    """The first tokens and their alternatives, as far as they are served; ValueError or TypeError if it is neither."""

    def read(entry: Any) -> tuple[str, float]:
        token, value = entry["token"], float(entry["logprob"])
        if not isinstance(token, str) or math.isnan(value):
            raise TypeError("no log-probability of a token")
        # Probabilities may come a little above 1, and as 0; JSON has no infinite number.
        return token[:200].encode(errors="replace").decode(), min(max(value, -1e4), 0.0)

    rows = []
    for entry in (served.get("content") or ())[:_LABEL_TOKENS] if served else ():
        written, others = read(entry), [read(other) for other in (entry.get("top_logprobs") or ())[:_MAX_ALTERNATIVES]]
        rows.append((written, *(other for other in others if other[0] != written[0])))
    return tuple(rows) if any(len(row) > 1 for row in rows) else ()


def read_error(content: bytes) -> tuple[dict[str, Any], str]:
    """What a status other than 2xx says of itself: its fields, such as `code` and `param`, and its message."""
    try:
        data = json.loads(content)
        error = data.get("error", data) if isinstance(data, dict) else data
        if isinstance(error, dict):
            return error, str(error.get("message") or error)
    except RecursionError:
        return {}, "(nested too deep)"
    except ValueError:
        pass
    return {}, content[:10_000].decode(errors="replace")


# What tells models of one name apart, where a server lists it (llama.cpp, vLLM).
_SIZES = ("n_params", "n_vocab", "n_embd", "size", "max_model_len")


def read_models(content: bytes) -> dict[str, dict[str, int]]:
    """Name -> sizes, as far as they are told, of the models that a server lists; ValueError if it is no list."""
    try:
        models = json.loads(content)["data"]
        found = {}
        for model in models:
            told = {**(model.get("meta") or {}), "max_model_len": model.get("max_model_len")}
            found[str(model["id"])] = {name: told[name] for name in _SIZES if isinstance(told.get(name), int)}
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("no list of models") from error
    return found


def _count(value: Any) -> int:
    """A number of tokens; ValueError, TypeError or OverflowError if it is none."""
    count = int(value or 0)
    if not 0 <= count <= _MAX_TOKENS:
        raise ValueError(f"{count} tokens")
    return count


def describe_refusal(
    status: int,
    error: Mapping[str, Any],
    said: str,
    *,
    where: str,
    role: str,
    endpoint: EndpointConfig,
    body: Mapping[str, Any],
) -> UserError:
    """What a status says that will not pass, and what to do about it.

    Args:
        error: its `code` and `param`, as far as it has them.
        said: its message, as it may be shown.
        body: the request that was refused.
    """
    model, code = endpoint.model, error.get("code")
    if status == 401:  # without the message: endpoints quote parts of the key in it
        fix = f"set {endpoint.key_variable} to a key of this endpoint"
        return UserError("the endpoint does not accept the key (401)", where=where, fix=fix)
    if status == 403:
        fix = f"check what the key in {endpoint.key_variable} may do"
        return UserError(f"no permission (403): {said}", where=where, fix=fix)
    if status == 404:
        what = f"no model '{model}', or no endpoint at this URL (404): {said}"
        return UserError(what, where=where, fix="check model and base_url")
    if status in (402, 429):
        what = f"the account is used up ({status}): {said}"
        return UserError(what, where=where, fix="top it up, then go on with resume")
    if code == "context_length_exceeded" or _TOO_LONG.search(said):
        what = f"the conversation is too long for '{model}' ({status}): {said}"
        return TooLongError(what, where=where, fix="choose a model with a longer context")
    field = _find_field(error.get("param"), said, body)
    what = f"the endpoint refuses {f'the field {field}' if field else 'the request'} ({status}): {said}"
    return UserError(what, where=where, fix=_setting(field, role, endpoint))


def _find_field(param: Any, said: str, body: Mapping[str, Any]) -> str | None:
    """The field of the request that an error is about: the one it names as such, or else in its message."""
    for text in (str(param or ""), said):
        named = [field for field in body if re.search(rf"(?<!\w){re.escape(field)}(?!\w)", text)]
        # Messages say much: that a `model` does not take a field, or what else to use for it.
        telling = [field for field in named if field not in ("model", "messages")]
        if telling or (named and text == param):
            return min(telling or named, key=lambda field: text.index(field))
    return None


def _setting(field: str | None, role: str, endpoint: EndpointConfig) -> str:
    """Which setting leaves a field out or changes it."""
    if field in endpoint.extra_body:
        return f"take {field} out of llm.openai.extra_body, or change it there"
    if field in CONTINUED:
        return "llm.openai.ratings=asked leaves it out"
    if field in ("temperature", "top_p"):
        return f"llm.{role}.{field}=null leaves it out"
    if field in _TOKEN_LIMITS:
        other = next(name for name in _TOKEN_LIMITS if name != field)
        return f"llm.openai.token_limit={other}, or another llm.{role}.max_tokens"
    settings = {"seed": "llm.openai.seeds=false leaves it out", "model": "check llm.openai.model"}
    settings["response_format"] = "llm.openai.structured=false leaves it out"
    without = "llm.openai.ratings=written" if endpoint.ratings != "written" else "evaluate.generation.top_logprobs=0"
    settings |= dict.fromkeys(("logprobs", "top_logprobs"), f"{without} leaves it out")
    every = "llm.<role>.temperature, llm.<role>.top_p, llm.openai.structured, seeds, token_limit and extra_body"
    return settings.get(str(field), f"change what it names; {every} say which fields are sent")


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
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, min(LONGEST_WAIT_S, wait))


class Redaction:
    """Hides secrets in what an endpoint says.

    A secret of fewer than 8 characters may be an ordinary word (`none`, `token`, `test`), so it is hidden only where it
    stands as a credential: alone, after a scheme (`Bearer`), a colon, an equals sign, or a word for it.
    """

    def __init__(self, secrets: list[str]) -> None:
        forms = {form for secret in secrets if secret for form in (secret, quote(secret, safe=""))}
        longest_first = sorted(forms, key=len, reverse=True)
        whole = [re.escape(form) for form in longest_first if len(form) >= 8]
        words = [re.escape(form) for form in longest_first if len(form) < 8]
        self._whole = re.compile("|".join(whole) or "(?!)")
        before = r"(?:\b(?:bearer|basic|key|token|password|passwd|secret|user)\s|[:=]\s?)[\"'`]?"
        self._word = re.compile(rf"((?i:{before}))(?:{'|'.join(words)})(?!\w)" if words else "(?!)()")

    def hide(self, text: str) -> str:
        return self._word.sub(r"\1***", self.hide_whole(text))

    def hide_whole(self, text: str) -> str:
        """Without those that may be ordinary words: for texts that are used, not only shown."""
        return self._whole.sub("***", text)
