"""The roles of the search: strategist, supporter, seeker and judge turn calls into requests, and answers into values.

An answer that cannot be used is asked for again with what was wrong with it. After the last attempt the result counts
as missing: the search has ways to go on without it, and nothing is made up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from esc_lab.artifacts import fingerprint
from esc_lab.data.dialogue import Reply, Speaker, Turn
from esc_lab.data.strategies import Inventory
from esc_lab.prompts import Message
from esc_lab.search import role_answers, role_prompts
from esc_lab.search.iteration import Answered, Call
from esc_lab.search.requests import Answer, Question, Request
from esc_lab.search.role_answers import UnusableError
from esc_lab.search.role_prompts import Axis, Case
from esc_lab.seeds import derive_seed

T = TypeVar("T")
BEST_RATING, BEST_SCORE = 10, 4


@dataclass(frozen=True)
class RoleSettings:
    """How a role is played.

    Attributes:
        temperature, top_p, max_tokens: sampling of its completions.
        attempts: how often it is asked before its answer counts as missing.
        scores: its client reads ratings off probabilities.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 256
    attempts: int = 3
    scores: bool = False


class Roles:
    """Plays all roles for one seeker.

    Args:
        settings: by role.
        axes: of the judge; their weights sum to 1.
        discourage: tell the strategist not to repeat strategies, as the published one was told.
        seed: the run's seed.
        send: makes a call.
        counts: what happened, by `<role>/<event>`: `unusable` answers, those of them that were `refused`, and results
            that are `partly` there or `missing`.
    """

    def __init__(
        self,
        inventory: Inventory,
        case: Case,
        settings: dict[str, RoleSettings],
        axes: Sequence[Axis],
        send: Callable[[Request], Awaitable[Answer]],
        counts: Counter[str],
        *,
        discourage: bool = False,
        seed: int = 0,
    ) -> None:
        self.inventory, self.case, self.settings, self.axes = inventory, case, settings, tuple(axes)
        self.discourage, self.seed, self.counts = discourage, seed, counts
        self._send = send

    async def result(self, call: Call) -> Any:
        """What `Search.tell` takes for this call; None if it could not be had."""
        if call.kind == "rate":
            return await self.rate(call.history, call.sample)
        if call.kind == "reply":
            return await self.reply(call.history, call.strategy or "", call.sample)
        if call.kind == "answer":
            return await self.answer(call.history, call.sample)
        axes = await self.judge(call.history, call.sample)
        return None if axes is None else turn_score(axes, self.axes)

    async def rate(self, history: Sequence[Turn], sample: int = 0) -> dict[str, float] | None:
        """The strategist's rating of each strategy, 0 to 10. Strategies that were not rated are left out."""
        scores = self.settings["strategist"].scores
        asked = role_prompts.rate_request(self.inventory, json=not scores, discourage=self.discourage)
        messages = role_prompts.support_messages(self.inventory, history, asked)
        if scores:
            return await self._expected("strategist", messages, self.inventory.names, BEST_RATING)
        schema = role_prompts.ratings_schema(self.inventory.names, BEST_RATING)
        return await self._parsed(
            self._request("strategist", messages, sample, schema),
            lambda answer: role_answers.ratings(answer.text, self.inventory),
        )

    async def reply(self, history: Sequence[Turn], strategy: str, sample: int = 0) -> str | None:
        """The supporter's message with a strategy."""
        asked = role_prompts.reply_request(self.inventory, strategy)
        request = self._request("supporter", role_prompts.support_messages(self.inventory, history, asked), sample)
        return await self._parsed(request, lambda answer: self._message(answer, request))

    async def answer(self, history: Sequence[Turn], sample: int = 0) -> Answered | None:
        """The seeker's answer, or that it ends the talk.

        Where a client scores, the end is drawn with the probability that the model gives it.
        """
        scores = self.settings["seeker"].scores
        if scores:
            messages = role_prompts.seeker_messages(self.case, history, role_prompts.end_request())
            question = Question("end", "", ("ends", "continues"))
            answer = await self._send(replace(self._request("seeker", messages, 0), questions=(question,)))
            draw = np.random.default_rng(self._seed("seeker ends", messages, sample))
            if draw.random() < np.exp(answer.log_probs[0][0]):
                return Answered("", True)
        asked = role_prompts.answer_request(marker=not scores)
        request = self._request("seeker", role_prompts.seeker_messages(self.case, history, asked), sample)

        def answered(answer: Answer) -> Answered:
            if not scores and role_answers.ends(answer.text):
                return Answered("", True)
            return Answered(self._message(answer, request), False)

        return await self._parsed(request, answered)

    async def judge(self, history: Sequence[Turn], sample: int = 0) -> dict[str, float] | None:
        """The judge's score of the last reply on each axis, 0 to 4."""
        scores = self.settings["judge"].scores
        names = [axis.name for axis in self.axes]
        asked = role_prompts.judge_request(self.axes, json=not scores)
        messages = role_prompts.support_messages(self.inventory, history, asked)
        if scores:
            return await self._expected("judge", messages, names, BEST_SCORE)
        schema = role_prompts.ratings_schema(names, BEST_SCORE)
        return await self._parsed(
            self._request("judge", messages, sample, schema), lambda answer: role_answers.scores(answer.text, names)
        )

    async def prefer(self, history: Sequence[Turn], first: str, second: str) -> float | None:
        """The judge's probability that the first of two next messages is the better one; 0 or 1 if it says so in words.

        The messages are shown without strategy labels, as a seeker sees them.
        """
        scores = self.settings["judge"].scores
        asked = role_prompts.prefer_request(self.axes, first, second, json=not scores)
        messages = role_prompts.support_messages(self.inventory, history, asked)
        if scores:
            question = Question("better", "better: ", ("A", "B"))
            answer = await self._send(replace(self._request("judge", messages, 0), questions=(question,)))
            return float(np.exp(answer.log_probs[0][0]))
        request = self._request("judge", messages, 0, role_prompts.prefer_schema())
        return await self._parsed(request, lambda answer: float(role_answers.better(answer.text) == "A"))

    def _seed(self, role: str, messages: Sequence[Message], sample: int) -> int:
        """Of a draw: different for different prompts, the same for the same one. 31 bits, which endpoints take."""
        return derive_seed(self.seed, role, sample, *(message.content for message in messages)) >> 32

    def _request(self, role: str, messages: tuple[Message, ...], sample: int, schema: Any = None) -> Request:
        settings = self.settings[role]
        return Request(
            role,
            messages,
            schema=schema,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            sample=sample,
            seed=self._seed(role, messages, sample),
        )

    def _message(self, answer: Answer, request: Request) -> str:
        side: Speaker = "supporter" if request.role == "supporter" else "seeker"
        cut_off = answer.completion_tokens >= request.max_tokens
        return role_answers.message(answer.text, side, self.inventory, cut_off=cut_off)

    async def _expected(
        self, role: str, messages: tuple[Message, ...], names: Sequence[str], most: int
    ) -> dict[str, float]:
        """Expected value of each name's number, 0 to `most`."""
        options = tuple(str(number) for number in range(most + 1))
        questions = tuple(Question(name, f"{name}: ", options) for name in names)
        answer = await self._send(replace(self._request(role, messages, 0), questions=questions))
        values = [role_answers.expected(log_probs, range(most + 1)) for log_probs in answer.log_probs]
        return dict(zip(names, values, strict=True))

    async def _parsed(self, request: Request, parse: Callable[[Answer], T]) -> T | None:
        """What a completion says, asking again with the error where it cannot be used."""
        partly: T | None = None
        for _ in range(self.settings[request.role].attempts):
            answer = await self._send(request)
            try:
                if answer.refusal:
                    self.counts[f"{request.role}/refused"] += 1
                    raise UnusableError("the model refused")
                return parse(answer)
            except UnusableError as error:
                self.counts[f"{request.role}/unusable"] += 1
                partly = error.partly or partly
                request = _again(request, answer, error)
        if partly is not None:
            self.counts[f"{request.role}/partly"] += 1
            return partly
        self.counts[f"{request.role}/missing"] += 1
        return None


def turn_score(scores: dict[str, float], axes: Sequence[Axis]) -> float:
    """Weighted mean of a reply's scores, in [0, 4]: with the published weights 0.1 E + 0.1 I + 0.1 H + 0.7 S."""
    return sum(axis.weight * scores[axis.name] for axis in axes)


def prompts_fingerprint(inventory: Inventory, axes: Sequence[Axis], *, discourage: bool) -> str:
    """Hash of all words of the prompts, on a fixed talk."""
    history = (
        Turn("seeker", Reply("First.")),
        Turn("supporter", Reply("Second.", inventory.names[:1])),
        Turn("seeker", Reply("Third.")),
    )
    asked = [role_prompts.reply_request(inventory, name) for name in inventory.names]
    for flag in (False, True):
        asked += [
            role_prompts.rate_request(inventory, json=flag, discourage=discourage),
            role_prompts.judge_request(axes, json=flag),
            role_prompts.answer_request(marker=flag),
        ]
    case = Case("Situation.", "Emotion.", "Problem.")
    messages = [
        *role_prompts.support_messages(inventory, history, "\n".join(asked)),
        *role_prompts.seeker_messages(case, history, role_prompts.end_request()),
    ]
    request = _again(Request("supporter", tuple(messages)), Answer(), UnusableError("Error."))
    return fingerprint([message.content for message in request.messages])


def _again(request: Request, answer: Answer, error: UnusableError) -> Request:
    """The request with an unusable answer to it, and what is wrong with that.

    Earlier ones stay: a request that was made before would get the answer that it got before.
    """
    shown = answer.text.strip()[:400] or "(nothing)"
    correction = Message("user", f"This cannot be used: {error}. Answer again, in the form that was asked for.")
    return replace(request, messages=(*request.messages, Message("assistant", shown), correction))
