"""Any endpoint with OpenAI's chat completions, on one server or several: keys, retries, rate limits, refusals.

What may pass is tried again after a wait that grows (exponential backoff with full jitter) and honours `Retry-After`.
What will not pass (wrong key, unknown model, a request that the endpoint refuses) stops at once with a `UserError`.
Nothing that an endpoint sends is trusted (`connection`, `completions`). The protocol is spoken here, over aiohttp: the
official SDK takes more than half of the time of a call, repeats calls without counting what went wrong, and gives up
on a call while the endpoint answers others.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

from esc_lab.config import Config
from esc_lab.config.endpoint import is_variable_name, named_url
from esc_lab.config.evaluate import GenerationConfig
from esc_lab.config.search import EndpointConfig, RoleConfig
from esc_lab.errors import UserError
from esc_lab.search.clients.completions import CONTINUED, LONGEST_WAIT_S
from esc_lab.search.clients.llama_server import LlamaServer, find_gguf
from esc_lab.search.clients.replicas import Replicas
from esc_lab.search.requests import Answer, Request

LONGEST_TIMEOUT_S = 600.0
# Of an answer to a question: the option, after a space; where the server does not go on with a lead, that perhaps too.
_OPTION_TOKENS = {"continued": 4, "asked": 16}
_ALTERNATIVES = 20


def build_client(cfg: Config, role: str, shared: dict[str, Any]) -> OpenAIClient:
    """The client of a role at an endpoint; model and URL of the role go before those of `llm.openai`.

    Clients of the same server share its connections and limits.
    """
    played, endpoint = getattr(cfg.llm, role), cfg.llm.openai
    endpoint = replace(endpoint, model=played.model or endpoint.model, base_url=played.base_url or endpoint.base_url)
    server: LlamaServer | None = None
    if endpoint.serve:
        file = find_gguf(endpoint.serve, cfg.llm.local.model)
        size = (endpoint.slots, endpoint.context_tokens, endpoint.threads or os.cpu_count() or 1)
        server = shared[f"llama.cpp {file}"] = shared.get(f"llama.cpp {file}") or LlamaServer(file, *size)
    return OpenAIClient(endpoint, connections=cfg.search.concurrency, shared=shared, server=server)


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
            calls at once until it answers in time again. Of several URLs a call goes to another one where its own is
            down (`Replicas`); a try that could not be sent is none while another is well.
        connections: most calls at once to a server whose `endpoint` does not say; more wait for their turn, without
            being timed.
        backoff_s: longest wait before the second attempt; doubles with each further one, up to 60 s.
        shared: servers that other clients have too.
        server: which was started for this run, in place of `base_url`; it is stopped with the client.

    Raises:
        UserError: aiohttp is not installed, there is no usable key, or `base_url` is no URL.
    """

    def __init__(
        self,
        endpoint: EndpointConfig,
        *,
        connections: int = 64,
        backoff_s: float = 0.5,
        shared: dict[str, Any] | None = None,
        server: LlamaServer | None = None,
    ) -> None:
        if server:  # its port is another one in each run: a list of URLs is no part of the identity
            endpoint = replace(endpoint, base_url=[server.url])
        urls: Sequence[str | None] = endpoint.base_url if isinstance(endpoint.base_url, list) else [endpoint.base_url]
        key = _key(endpoint.key_variable, needed=not (urls[0] or os.environ.get("OPENAI_BASE_URL")))
        settings = {name: getattr(endpoint, name) for name in ("model", "structured", "seeds", "token_limit")}
        if endpoint.extra_body:
            settings["extra_body"] = dict(endpoint.extra_body)
        if endpoint.ratings != "written":
            settings["ratings"] = endpoint.ratings
        if server:
            settings["served"] = server.fingerprint
        url = named_url(endpoint.base_url)
        self.identity: Mapping[str, Any] = {"kind": "openai", **({"base_url": url} if url else {}), **settings}
        self.scores = endpoint.ratings != "written"
        self.retries: Counter[str] = Counter()
        self._endpoint, self._backoff_s, self._server = endpoint, backoff_s, server
        most, kept = endpoint.calls_at_once or connections, {} if shared is None else shared
        names = [f"server {endpoint.key_variable} {most} {url}" for url in urls]
        make = _import_replica()
        for name, url in zip(names, urls, strict=True):
            kept[name] = kept.get(name) or make(url, key, most)
        self._replicas = Replicas([kept[name] for name in names], endpoint.model or "")
        self._answered = 0

    async def answer(self, request: Request) -> Answer:
        body = self._body(request)
        failures = tries = timeouts = 0
        answered = self._answered
        while True:
            server, waits = await self._replicas.choose(request.group)
            timeout_s = min(self._endpoint.timeout * 2**timeouts, max(self._endpoint.timeout, LONGEST_TIMEOUT_S))
            outcome = await server.attempt(body, request.role, self._endpoint, timeout_s, waits=waits)
            if isinstance(outcome, Answer):
                self._answered += 1
                return self._check_served(outcome, request, server.url)
            if isinstance(outcome, UserError):
                raise outcome
            if outcome is None:
                continue
            self.retries[outcome.kind] += 1
            if outcome.kind == "unreachable" and self._replicas.has_other(server):
                continue
            tries += 1
            timeouts += outcome.kind == "timeouts"
            failures += outcome.kind != "rate_limited" or self._answered == answered
            answered = self._answered
            if failures >= self._endpoint.attempts:
                what = f"no answer of '{self._endpoint.model}' after {tries} attempts; the last problem: {outcome.text}"
                raise UserError(what, where=server.url, fix="check the endpoint, then go on with resume")
            longest = min(LONGEST_WAIT_S, self._backoff_s * 2 ** min(tries - 1, 30))
            await asyncio.sleep(min(LONGEST_WAIT_S, outcome.retry_after + random.uniform(0, longest)))

    async def close(self) -> None:
        for server in self._replicas.servers:
            await server.close()
        if self._server:
            self._server.stop()

    def _body(self, request: Request) -> dict[str, Any]:
        """Only fields that other servers know too: some, such as `transformers serve`, refuse those they do not."""
        endpoint = self._endpoint
        body: dict[str, Any] = {
            "model": endpoint.model or "",
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            endpoint.token_limit: request.max_tokens,
        }
        drawn = {"temperature": request.temperature, "top_p": request.top_p}
        if request.questions:
            body |= self._question_fields(body["messages"], request)
            # Some servers tell the probabilities that they draw by; at 0 nothing is drawn.
            drawn = {"temperature": None if request.temperature is None else 0.0}
        elif request.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        body |= {field: value for field, value in drawn.items() if value is not None}
        if endpoint.seeds:
            body["seed"] = request.seed
        if endpoint.structured and request.schema is not None and not request.questions:
            schema = {"name": request.role, "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body | endpoint.extra_body

    def _question_fields(self, messages: Sequence[Mapping[str, str]], request: Request) -> dict[str, Any]:
        """What asks for the alternatives to the first tokens after the lead of a request's one question.

        The lead goes without its last space, which templates strip and tokenizers join with what follows.
        """
        [question] = request.questions
        lead, ratings = question.lead.rstrip(), self._endpoint.ratings
        fields: dict[str, Any] = {self._endpoint.token_limit: _OPTION_TOKENS[ratings], "logprobs": True}
        fields["top_logprobs"] = _ALTERNATIVES
        if lead and ratings == "continued":
            fields |= {"messages": [*messages, {"role": "assistant", "content": lead}], **CONTINUED}
        elif lead:
            *others, last = messages
            fields["messages"] = [*others, {**last, "content": f"{last['content']}\n\n{lead}"}]
        return fields

    def _check_served(self, answer: Answer, request: Request, url: str) -> Answer:
        if request.questions and answer.text and not answer.top_logprobs:
            fix = "llm.openai.ratings=written has ratings written, or choose a server that does"
            raise UserError("the endpoint serves no log-probabilities (top_logprobs)", where=url, fix=fix)
        return answer


def _import_replica() -> Any:
    try:
        return import_module("esc_lab.search.clients.replica").Replica
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
