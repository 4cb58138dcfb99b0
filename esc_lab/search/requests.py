"""What roles send to clients and what comes back: plain data, the same for every client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, TypeAlias

from esc_lab.artifacts import fingerprint
from esc_lab.errors import UserError
from esc_lab.prompts import Message

# Kinds of `Client.retries` after which the call may have been answered, and so paid for.
LOST = ("timeouts", "connection_errors", "malformed")
# Of each of the first tokens of a completion: it and its most probable alternatives, each with its log-probability.
TopLogProbs: TypeAlias = tuple[tuple[tuple[str, float], ...], ...]


class TooLongError(UserError):
    """A conversation exceeds the context of a model: others can still be answered."""


@dataclass(frozen=True)
class Question:
    """A rating that is read off probabilities: which of `options` a model writes after `lead`.

    `name` says what is rated: a strategy, an axis of the judge ...
    """

    name: str
    lead: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """One call of a model.

    Attributes:
        messages: the chat so far; ends with a user message.
        questions: with them a client that scores returns log-probabilities of their options instead of text.
        no_repeat: the reply has no run of so many tokens that was there already; 0 = any. Only for models loaded here.
        lead: what the reply begins with, which is given and no part of the answer: the label of a trained supporter.
        schema: JSON schema of the reply, for endpoints that can hold a model to it; None for plain text.
        temperature: 0 is greedy; it and `top_p` are None where the endpoint is to choose.
        sample: number of this draw, of that `seed`, among calls with the same content.
        top_logprobs: alternatives to each token that are asked for beside the text, of endpoints; 0 = none.
        group: requests with the same one begin alike, and go to the same of several servers. No answer depends on it.
    """

    role: str
    messages: tuple[Message, ...]
    questions: tuple[Question, ...] = ()
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 256
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    sample: int = 0
    seed: int = 0
    lead: str = ""
    no_repeat: int = 0
    top_logprobs: int = 0
    group: str = ""

    def key(self, client: Mapping[str, Any]) -> str:
        """Content hash of this request to a client of that identity: key of the journal and the cache."""
        fields = {**vars(self), "client": dict(client)}
        fields["messages"] = [(message.role, message.content) for message in self.messages]
        fields["questions"] = [(question.lead, question.options) for question in self.questions]
        del fields["group"]
        for name in ("lead", "no_repeat", "top_logprobs"):  # journals of older versions know of none
            if not fields[name]:
                del fields[name]
        return fingerprint(fields)


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        text: the completion; empty if the model refused or wrote nothing.
        log_probs: for each question the log-probability of each option, normalised over the options; empty if the
            client answered in text, and for a question of whose options an endpoint tells nothing.
        model: as the endpoint names it.
        cost: in US dollars, 0 where none is known.
        refusal: why the model refused, if it said so.
        finish_reason: why the completion ends, as the endpoint says: `stop`, `length`, `content_filter` ...
        top_logprobs: of its first tokens, where they were asked for and the endpoint serves them.
    """

    text: str = ""
    log_probs: tuple[tuple[float, ...], ...] = ()
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    refusal: str = ""
    finish_reason: str = ""
    top_logprobs: TopLogProbs = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Answer:
        """The answer whose `to_json` came back from JSON. A KeyError, TypeError or ValueError if it is none."""
        rows = tuple(tuple(row) for row in data["log_probs"])
        top = tuple(tuple((token, value) for token, value in row) for row in data.get("top_logprobs", ()))
        answer = cls(**{**data, "log_probs": rows, "top_logprobs": top})
        pairs = [*chain.from_iterable(top)]
        texts = (answer.text, answer.model, answer.refusal, answer.finish_reason, *(token for token, _ in pairs))
        numbers = (answer.prompt_tokens, answer.completion_tokens, answer.cost, *chain.from_iterable(answer.log_probs))
        numbers += tuple(value for _, value in pairs)
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(n, int | float) for n in numbers):
            raise TypeError("not the types of an answer")
        return answer

    def to_json(self) -> dict[str, Any]:
        """JSON types; alternatives only where there are some: journals and caches of older versions know of none."""
        return {name: value for name, value in vars(self).items() if value or name != "top_logprobs"}

    def is_cut_off(self, max_tokens: int) -> bool:
        """Whether the completion ends because it has `max_tokens`."""
        return self.finish_reason == "length" or self.completion_tokens >= max_tokens


class Client(Protocol):
    """Something that answers requests.

    Attributes:
        identity: JSON types; everything about the client that its answers depend on. Never a key or password.
        scores: it answers questions with log-probabilities.
        retries: attempts that failed in a way that may pass, by kind.
    """

    identity: Mapping[str, Any]
    scores: bool
    retries: Mapping[str, int]

    async def answer(self, request: Request) -> Answer:
        """The answer; a UserError where asking again will not help (wrong key, endpoint gone for good).

        A TooLongError where only this conversation cannot be answered.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and threads."""
        ...


def object_schema(values: Mapping[str, object]) -> Mapping[str, object]:
    """The JSON schema of an object that has all of these keys and no others."""
    return {"type": "object", "properties": values, "required": list(values), "additionalProperties": False}
