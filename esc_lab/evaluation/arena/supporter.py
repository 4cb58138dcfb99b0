"""The supporter under test: its strategy, forced, scheduled or its own, and its reply in the layout of its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from esc_lab.data.dialogue import Reply, Turn
from esc_lab.prompts import label_text, parse_reply
from esc_lab.prompts.chat import Message
from esc_lab.prompts.trained import SupporterPrompts
from esc_lab.search.requests import Answer, Question, Request
from esc_lab.search.role_answers import UnusableError, parse_message, split_end
from esc_lab.search.roles import Roles
from esc_lab.seeds import derive_seed
from esc_lab.statistics.intervals import FloatArray

ROLE = "supporter"


@dataclass(frozen=True)
class SupporterTurn:
    """What the supporter says, and whether it ends the talk with it; `reply` is None where it says nothing more."""

    reply: Reply | None
    ended: bool = False


class Supporter:
    """The supporter of one talk.

    Args:
        roles: of the talk; its supporter is asked by `SupporterPrompts`.
        schedule: strategies of its turns, in order and then again from the first; empty: it chooses.
        inference: prompting baseline that it is asked with. The answer to the last of its follow-ups is the reply.
        scores: its client reads the choice off the probabilities of the labels; not where a baseline has it think or
            write first.
    """

    def __init__(self, roles: Roles, schedule: Sequence[str], inference: str = "direct", *, scores: bool) -> None:
        prompts = roles.trained[ROLE]
        assert isinstance(prompts, SupporterPrompts)
        self.roles, self.prompts, self._schedule, self._inference = roles, prompts, schedule, inference
        self._baseline = prompts.layout.baseline(inference)
        self._scores = scores and self._baseline.answers_once

    async def reply(self, history: Sequence[Turn], number: int) -> SupporterTurn | None:
        """Its turn of this number, from 0; None if no draw can be used.

        Raises:
            what `Roles.reply` raises.
        """
        strategy = self._schedule[number % len(self._schedule)] if self._schedule else None
        if strategy is None and self._scores:
            strategy = await self._choose(history)
        messages, lead = self._ask(history, strategy)
        request = self.roles.request(ROLE, messages, lead)
        for left, follow_up in zip(
            reversed(range(len(self._baseline.follow_ups))), self._baseline.follow_ups, strict=True
        ):
            answer = await self.roles.send(request)
            messages = (
                *messages,
                Message("assistant", request.lead + answer.text or "..."),
                Message("user", follow_up),
            )
            request = self.roles.request(ROLE, messages, "" if left else lead)  # only replies begin with a label
        return await self.roles.ask_until_usable(request, lambda answer: self._read(answer, request, strategy))

    def _ask(self, history: Sequence[Turn], strategy: str | None) -> tuple[tuple[Message, ...], str]:
        return self.prompts.ask(self.roles.seeker, history, strategy, self._inference)

    async def _choose(self, history: Sequence[Turn]) -> str:
        """A strategy by the probability of its complete label, drawn at the temperature of the replies."""
        names = self.prompts.inventory.names
        messages, _ = self._ask(history, None)
        drawn = self.roles.request(ROLE, messages)
        question = Question("strategy", "", tuple(map(label_text, names)))
        answer = await self.roles.send(replace(drawn, questions=(question,), temperature=0.0))
        return names[draw_strategy(np.array(answer.log_probs[0]), drawn.temperature, drawn.seed)]

    def _read(self, answer: Answer, request: Request, strategy: str | None) -> SupporterTurn:
        said, ended = split_end(answer.text)
        if ended and not said:
            return SupporterTurn(None, True)
        if (marker := self._baseline.reply_marker) and marker not in said:
            raise UnusableError(f"there is no '{marker}' before the reply")
        if marker:
            said = said.rpartition(marker)[2].lstrip()
        if strategy is None:
            strategy, said = parse_reply(said, self.prompts.inventory)
        elif not said:
            said = answer.text  # whose reasoning does not end: `parse_message` says so
        cut_off = answer.is_cut_off(request.max_tokens)
        text = parse_message(said, "supporter", self.prompts.inventory, cut_off=cut_off)
        return SupporterTurn(Reply(text, (strategy,) if strategy else ()), ended)


def draw_strategy(log_probs: FloatArray, temperature: float | None, seed: int) -> int:
    """The number of a strategy, drawn at a temperature by the log-probabilities of the complete labels; at 0 the most
    probable one.
    """
    if not temperature:
        return int(log_probs.argmax())
    shares = np.exp(log_probs / temperature - np.logaddexp.reduce(log_probs / temperature))
    chance = np.random.default_rng(derive_seed(seed, "strategy")).random()
    return min(int(np.searchsorted(np.cumsum(shares), chance, side="right")), len(log_probs) - 1)
