"""One talk: the supporter under test and a simulated seeker take turns until one ends it or it is long enough."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from esc_lab.config.converse import ConverseConfig
from esc_lab.data.cards import Card
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.evaluation.arena.persona import PersonaWords, rate_intensity
from esc_lab.evaluation.arena.supporter import Supporter
from esc_lab.prompts import SeekerProfile
from esc_lab.search.requests import TooLongError

# How a talk may end: a side ends it, it has the most turns, a side says nothing that can be used, or it exceeds the
# context of a model.
ENDS = ("seeker", "supporter", "max_turns", "seeker_missing", "supporter_missing", "too_long")


@dataclass
class Talk:
    """A talk of a supporter with the seeker of a card.

    Args:
        number: of the talk among those with its card.
        knows_card: the seeker is told all of the card; else, as a trained one, what it learned to be told.

    Attributes:
        history: its turns.
        intensity: of the seeker's emotion after its first message, then after each turn of the supporter, the last one
            after the end of the talk, which may be a message of the seeker; None where the model did not say.
        ends: one of `ENDS`; empty while it goes on.
        replies: turns of the supporter, the greeting apart.
    """

    card: Card
    number: int
    supporter: Supporter
    words: PersonaWords
    settings: ConverseConfig
    knows_card: bool = True
    history: list[Turn] = field(default_factory=list)
    intensity: list[float | None] = field(default_factory=list)
    ends: str = ""
    replies: int = 0

    async def hold(self) -> None:
        """Have it to its end.

        Raises:
            UserError: an answer cannot be had.
        """
        try:
            await self._open()
            while not self.ends:
                await self._exchange()
        except TooLongError:
            self.ends = "too_long"
            return
        await self._rate_end()

    def dialogue(self, inventory: str) -> Dialogue:
        """The talk as a dialogue; `meta` says what is known of it beside its turns."""
        card = self.card
        meta: dict[str, Any] = {"card": card.id, "talk": self.number, "ends": self.ends, "intensity": self.intensity}
        meta |= {key: value for key, value in (("hard", card.hard), ("severity", card.severity)) if value}
        return Dialogue(
            tuple(self.history), inventory, tree_id=f"{card.id}-{self.number}", situation=card.situation,
            emotion=card.emotion, problem=card.problem, meta=meta,
        )  # fmt: skip

    async def _open(self) -> None:
        """The greeting, the seeker's first message, and how it feels then."""
        self.history.append(Turn("supporter", Reply(self.words.greeting)))
        self._tell_card(1)
        if self.card.opening:
            self._say(self.card.opening)
        else:
            answer = await self.supporter.roles.answer(self.history, may_end=False)
            if answer is None:
                self.ends = "seeker_missing"
                return
            self._say(answer.text)
        if self.settings.intensity:
            self.intensity.append(await self._rate())

    async def _exchange(self) -> None:
        """A turn of each side; how the seeker feels is asked at the same time as what it answers."""
        turn = await self.supporter.reply(self.history, self.replies)
        if turn is None:
            self.ends = "supporter_missing"
            return
        if turn.reply:
            self.history.append(Turn("supporter", turn.reply))
            self.replies += 1
        if turn.ended:
            self.ends = "supporter"
        elif self.replies == self.settings.max_turns:
            self.ends = "max_turns"
        self._tell_card(self.replies + 1)
        asked = [self._rate()] if self.settings.intensity and turn.reply else []
        answers = (
            []
            if self.ends
            else [self.supporter.roles.answer(self.history, may_end=self.replies >= self.settings.min_turns)]
        )
        results = await _await_all(*asked, *answers)
        self.intensity += results[: len(asked)]
        if answers:
            self._take(results[-1])

    def _take(self, answer: Any) -> None:
        if answer is None:
            self.ends = "seeker_missing"
            return
        if answer.text:
            self._say(answer.text)
        if answer.ended:
            self.ends = "seeker"

    def _say(self, text: str) -> None:
        self.history.append(Turn("seeker", Reply(text)))

    def _tell_card(self, message: int) -> None:
        card = self.card
        known = SeekerProfile(card.situation, card.emotion, card.problem)
        self.supporter.roles.seeker = self.words.profile(card, message) if self.knows_card else known

    async def _rate_end(self) -> None:
        """Ask once more where the seeker has the last word: how it leaves is known only then."""
        if not (self.settings.intensity and self.replies and self.history[-1].speaker == "seeker"):
            return
        with suppress(TooLongError):  # what was said before it stays
            said = await self._rate()
            self.intensity[-1] = self.intensity[-1] if said is None else said

    async def _rate(self) -> float | None:
        return await rate_intensity(self.supporter.roles, self.words, self.card, tuple(self.history))


async def _await_all(*questions: Coroutine[Any, Any, Any]) -> list[Any]:
    """All answers, also where one cannot be had: what is under way is paid for."""
    results = await asyncio.gather(*questions, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
