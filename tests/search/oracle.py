"""Roles for tests of the search: every answer is a hash of the talk, so it can be had in any order and by anybody."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

from esc_lab.data.dialogue import Reply, Turn
from esc_lab.search.iteration import Call, SeekerTurn
from esc_lab.search.mcts import Search

START = (
    Turn("supporter", Reply("Hello.")),
    Turn("seeker", Reply("I lost my job.")),
)


class Oracle:
    """Plays all roles. `missing` is the share of calls that have no result; `ending` the share of talks that end."""

    def __init__(self, strategies: Sequence[str], seed: int = 0, missing: float = 0.0, ending: float = 0.3) -> None:
        self.strategies, self.seed, self.missing, self.ending = strategies, seed, missing, ending
        self.kinds: list[str] = []

    def draw(self, *what: Any) -> float:
        digest = hashlib.sha256(repr((self.seed, *what)).encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48

    def rate(self, history: Sequence[Turn], sample: int) -> dict[str, float] | None:
        if self.draw("no rating", history, sample) < self.missing:
            return None
        rated = [name for name in self.strategies if self.draw("rated", name, history, sample) < 0.8]
        return {name: int(11 * self.draw(name, history, sample)) for name in rated or self.strategies}

    def reply(self, history: Sequence[Turn], strategy: str, sample: int) -> str | None:
        if self.draw("no reply", history, strategy, sample) < self.missing:
            return None
        return f"reply {self.draw('reply', history, strategy, sample):.8f}"

    def answer(self, history: Sequence[Turn], sample: int) -> SeekerTurn | None:
        if self.draw("no answer", history, sample) < self.missing:
            return None
        ended = self.draw("end", history, sample) < self.ending
        return SeekerTurn("" if ended else f"answer {self.draw('answer', history, sample):.8f}", ended)

    def judge(self, history: Sequence[Turn], sample: int) -> float | None:
        if self.draw("no judgement", history, sample) < self.missing:
            return None
        return 4 * self.draw("score", history, sample)

    def result(self, call: Call) -> Any:
        self.kinds.append(call.kind)
        if call.kind == "rate":
            return self.rate(call.history, call.sample)
        if call.kind == "reply":
            assert call.strategy is not None
            return self.reply(call.history, call.strategy, call.sample)
        if call.kind == "answer":
            return self.answer(call.history, call.sample)
        return self.judge(call.history, call.sample)


def run(search: Search, oracle: Oracle, order: random.Random | None = None) -> Search:
    """Make all calls of a search; with `order` their results come at random times."""
    open_calls = search.ask()
    while open_calls:
        call = open_calls.pop(order.randrange(len(open_calls)) if order else 0)
        search.tell(call, oracle.result(call))
        open_calls += search.ask()
    assert search.done
    return search
