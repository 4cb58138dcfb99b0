"""A client that answers in a model's place, at once and at no cost: what a search will take, it asks this one first."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from esc_lab.prompts.seeker import END
from esc_lab.search.requests import Answer, Question, Request
from esc_lab.seeds import derive_seed

CHARACTERS = 4  # a token, in English


class StandIn:
    """A client that answers at once: ratings at random, and turns as they stand in the seed dialogues.

    Args:
        scores, identity: as of the client that it stands in for.
        turns: what the sides say.
        ending: share of the seeker's turns that end the talk.

    Attributes:
        requests: of the calls that were made.
        written: tokens of each answer, about.
    """

    retries: Mapping[str, int] = {}

    def __init__(
        self, identity: Mapping[str, Any], turns: Mapping[str, Sequence[str]], ending: float, *, scores: bool
    ) -> None:
        self.identity, self.scores, self._turns, self._ending = identity, scores, turns, ending
        self.requests: list[Request] = []
        self.written: list[int] = []

    async def answer(self, request: Request) -> Answer:
        texts = [message.content for message in request.messages]
        draw = random.Random(derive_seed(request.seed, request.role, request.sample, *texts))
        answer = self._rate(request.questions, draw) if request.questions else Answer(self._write(request, draw))
        self.requests.append(request)
        # An endpoint answers a question with a token; a model that is loaded here only reads it.
        options = len(request.questions) if self.identity["kind"] == "openai" else 0
        self.written.append(options if request.questions else count_tokens(answer.text))
        return answer

    def _rate(self, questions: Sequence[Question], draw: random.Random) -> Answer:
        rows = []
        for question in questions:
            weights = [draw.random() + 1e-3 for _ in question.options]
            if question.name == "end":
                weights = [max(weight, 1e-9) for weight in (self._ending, 1 - self._ending)]
            rows.append(tuple(math.log(weight / sum(weights)) for weight in weights))
        top = tuple(zip(questions[0].options, rows[0], strict=True)) if self.identity.get("ratings") else ()
        return Answer(log_probs=tuple(rows), top_logprobs=(top,) if top else ())

    def _write(self, request: Request, draw: random.Random) -> str:
        if request.schema:
            return json.dumps({name: _fill(value, draw) for name, value in request.schema["properties"].items()})
        side = "seeker" if request.role == "seeker" else "supporter"
        if side == "seeker" and draw.random() < self._ending:
            return END
        return draw.choice(self._turns[side])[: CHARACTERS * request.max_tokens]

    async def close(self) -> None:
        """There is nothing to close."""


def _fill(schema: Mapping[str, Any], draw: random.Random) -> Any:
    return draw.choice(schema["enum"]) if "enum" in schema else draw.randint(schema["minimum"], schema["maximum"])


def count_tokens(text: str) -> int:
    """Tokens of an English text, about."""
    return math.ceil(len(text) / CHARACTERS)
