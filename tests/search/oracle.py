"""Roles for tests of the search: every answer is a hash of the talk, so it can be had in any order and by anybody."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from esc_lab.config.search import MCTSConfig
from esc_lab.data.dialogue import Reply, Turn
from esc_lab.search.iteration import Call, SeekerTurn
from esc_lab.search.mcts import Search
from esc_lab.search.seed_dialogue import SeedDecision

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
    """Make all calls of a search; with `order` their results come at random times, and calls are made ahead at some."""
    open_calls = search.ask()
    while open_calls and not search.done:
        if order and order.random() < 0.7:
            open_calls += search.ask_ahead()
        call = open_calls.pop(order.randrange(len(open_calls)) if order else 0)
        search.tell(call, oracle.result(call))
        open_calls += search.ask()
    assert search.done
    return search


@dataclass(frozen=True)
class Regime:
    """Talks that go a certain way: bounds of the judge's scores, share of talks that end, whether ratings are alike."""

    name: str
    low: float
    high: float
    ending: float
    flat: bool


REGIMES = (
    Regime("high scores, short talks, strong priors", 2.8, 4.0, 1 / 4, False),
    Regime("mixed scores", 2.0, 4.0, 1 / 8, False),
    Regime("low scores, long talks, flat priors", 0.5, 3.5, 1 / 16, True),
)


class Scripted(Oracle):
    """Plays a regime. A reply has a worth of its own; how it is judged scatters around it."""

    def __init__(self, strategies: Sequence[str], seed: int, regime: Regime) -> None:
        super().__init__(strategies, seed, ending=regime.ending)
        self.regime = regime

    def draw(self, *what: Any) -> float:
        """As `Oracle.draw`, faster: all texts are different, so the last turns stand for a talk."""
        return super().draw(*(part[-2:] if isinstance(part, tuple) else part for part in what))

    def rate(self, history: Sequence[Turn], sample: int) -> dict[str, float] | None:
        ratings = super().rate(history, sample)
        return {name: 7 + value / 5 for name, value in ratings.items()} if ratings and self.regime.flat else ratings

    def judge(self, history: Sequence[Turn], sample: int) -> float | None:
        worth = 0.7 * self.draw("worth", history) + 0.3 * self.draw("score", history, sample)
        return self.regime.low + (self.regime.high - self.regime.low) * worth


@dataclass(frozen=True)
class Grown:
    """A tree, and how it came about: rounds of calls that were all made at once, and their number."""

    search: Search
    rounds: int
    calls: int


def grow(regime: Regime, seed: int, strategies: Sequence[str], settings: MCTSConfig) -> Grown:
    """A tree of a regime, every other one from a seed dialogue. What is asked for is answered at once, in rounds."""
    path = [
        SeedDecision(strategies[(seed + step) % len(strategies)], f"r{seed} {step}", f"a{step}") for step in range(6)
    ]
    search = Search(settings, START, strategies, path if seed % 2 else (), seed=seed)
    oracle = Scripted(strategies, seed, regime)
    rounds = calls = 0
    while open_calls := [*search.ask(), *search.ask_ahead()]:
        for call in open_calls:
            search.tell(call, oracle.result(call))
        rounds, calls = rounds + 1, calls + len(open_calls)
    assert search.done
    return Grown(search, rounds, calls)
