"""What a search will take, before anybody is asked: some of its trees are grown with stand-ins that answer at once."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from esc_lab.config import Config
from esc_lab.config.search import LOADED, ROLES, BudgetConfig
from esc_lab.data.dialogue import Dialogue
from esc_lab.prompts.seeker import END
from esc_lab.search.builder import search_trees
from esc_lab.search.calls import Calls, open_calls
from esc_lab.search.event_loop import run_loop
from esc_lab.search.requests import Answer, Client, Question, Request
from esc_lab.search.seed_dialogue import SeedDialogue
from esc_lab.search.session import SearchSession
from esc_lab.seeds import derive_seed

TREES = 4  # that are grown; the rest is taken to be like them
TIMED = 8  # calls of each role that are made for real, of models that are loaded here
CHARACTERS = 4  # a token, in English
ENDING = 1 / 16  # of a seeker's turns end the talk; about as in ESConv
WAIT_S, TOKENS_S = 1.0, 50.0  # of a call of an endpoint: until its first token, and after it
HEADS = ("role", "calls", "tokens read", "tokens written", "US dollars", "minutes")
NOTES = (
    "Calls: of the role's model, the check of the judge among them. Tokens read: of prompts, also those that a server "
    "has in its cache; tokens written: of answers.",
    "US dollars: by llm.openai.price_in and llm.openai.price_out. Minutes: of all calls of the role, as many at once "
    "as the search makes.",
)


@dataclass(frozen=True)
class RoleForecast:
    """What a role will take: calls, tokens, US dollars (None where no price is known), and minutes of all calls."""

    role: str
    calls: float
    prompt_tokens: float
    completion_tokens: float
    cost: float | None
    minutes: float

    def row(self) -> list[str]:
        numbers = [f"{value:,.0f}" for value in (self.calls, self.prompt_tokens, self.completion_tokens)]
        cost = "-" if self.cost is None else f"{self.cost:,.2f}"
        return [self.role, *numbers, cost, f"{self.minutes:,.0f}" if self.minutes >= 10 else f"{self.minutes:.1f}"]


@dataclass(frozen=True)
class Forecast:
    """What a search will take, role by role, and in which part each number is a guess."""

    roles: Sequence[RoleForecast]
    notes: Sequence[str]

    @property
    def total(self) -> RoleForecast:
        costs = [role.cost for role in self.roles if role.cost is not None]
        return RoleForecast(
            "all",
            sum(role.calls for role in self.roles),
            sum(role.prompt_tokens for role in self.roles),
            sum(role.completion_tokens for role in self.roles),
            sum(costs) if costs else None,
            sum(role.minutes for role in self.roles),
        )

    def metrics(self) -> dict[str, float]:
        """Flat, under `forecast/`; the cost only where a price is known."""
        names = ("calls", "prompt_tokens", "completion_tokens", "cost", "minutes")
        values = {name: getattr(self.total, name) for name in names}
        return {f"forecast/{name}": float(value) for name, value in values.items() if value is not None}


class StandIn:
    """A client that answers at once: ratings at random, and turns as they stand in the seed dialogues.

    Args:
        scores, identity: as of the client that it stands in for.
        turns: what the sides say.

    Attributes:
        requests: of the calls that were made.
        written: tokens of the answers, about.
    """

    retries: Mapping[str, int] = {}

    def __init__(self, identity: Mapping[str, Any], turns: Mapping[str, Sequence[str]], *, scores: bool) -> None:
        self.identity, self.scores, self._turns = identity, scores, turns
        self.requests: list[Request] = []
        self.written = 0

    async def answer(self, request: Request) -> Answer:
        texts = [message.content for message in request.messages]
        draw = random.Random(derive_seed(request.seed, request.role, request.sample, *texts))
        answer = self._rate(request.questions, draw) if request.questions else Answer(self._write(request, draw))
        self.requests.append(request)
        self.written += len(request.questions) or count_tokens(answer.text)
        return answer

    def _rate(self, questions: Sequence[Question], draw: random.Random) -> Answer:
        rows = []
        for question in questions:
            weights = [draw.random() + 1e-3 for _ in question.options]
            if question.name == "end":
                weights = [ENDING, 1 - ENDING]
            rows.append(tuple(math.log(weight / sum(weights)) for weight in weights))
        top = tuple(zip(questions[0].options, rows[0], strict=True)) if self.identity.get("ratings") else ()
        return Answer(log_probs=tuple(rows), top_logprobs=(top,) if top else ())

    def _write(self, request: Request, draw: random.Random) -> str:
        if request.schema:
            return json.dumps({name: _fill(value, draw) for name, value in request.schema["properties"].items()})
        side = "seeker" if request.role == "seeker" else "supporter"
        if side == "seeker" and draw.random() < ENDING:
            return END
        return draw.choice(self._turns[side])[: CHARACTERS * request.max_tokens]

    async def close(self) -> None:
        """There is nothing to close."""


def _fill(schema: Mapping[str, Any], draw: random.Random) -> Any:
    return draw.choice(schema["enum"]) if "enum" in schema else draw.randint(schema["minimum"], schema["maximum"])


def count_tokens(text: str) -> int:
    """Tokens of an English text, about."""
    return math.ceil(len(text) / CHARACTERS)


def _count_prompt(request: Request) -> int:
    return sum(count_tokens(message.content) + 4 for message in request.messages)  # with the marks around a message


def forecast_search(cfg: Config, seeds: Sequence[SeedDialogue], others: Sequence[Dialogue]) -> Forecast:
    """What the search from all seeds will take. Endpoints are not asked; of loaded models a few calls are timed.

    Args:
        others: dialogues that are no seeds, for the check of the judge.

    Raises:
        UserError: a model cannot be loaded.
    """
    cfg = replace(cfg, search=replace(cfg.search, cache=False, budget=BudgetConfig()), resume=None)
    real = open_calls(cfg, [role for role in ROLES if getattr(cfg.llm, role).client in LOADED])
    turns: dict[str, list[str]] = {"seeker": ["..."], "supporter": ["..."]}
    for seed in seeds:
        for turn in seed.dialogue.turns:
            turns[turn.speaker].append(turn.reply.text)
    served = {"ratings": cfg.llm.openai.ratings} if cfg.llm.openai.ratings != "written" else {}
    stand_ins = {}
    for role in ROLES:
        client: Client | None = real.clients.get(role)
        identity = client.identity if client else {"kind": "openai", **served}
        stand_ins[role] = StandIn(identity, turns, scores=client.scores if client else bool(served))
    grown = seeds[:: max(len(seeds) // TREES, 1)][:TREES]
    with TemporaryDirectory() as directory:
        counts = run_loop(_rehearse(replace(cfg, run_dir=directory), seeds, grown, others, stand_ins))
    timed = real.run(_time_calls(real.clients, stand_ins), cfg.run_dir) if real.clients else {}
    at_once = min(cfg.search.concurrency, min(cfg.search.trees, len(seeds)) * cfg.mcts.in_flight)
    roles = [_forecast_role(cfg, role, counts[role], timed.get(role), at_once) for role in ROLES]
    return Forecast(roles, _notes(cfg, len(grown), len(seeds), at_once, timed))


async def _rehearse(
    cfg: Config,
    seeds: Sequence[SeedDialogue],
    grown: Sequence[SeedDialogue],
    others: Sequence[Dialogue],
    stand_ins: Mapping[str, StandIn],
) -> dict[str, Counter[str]]:
    """Calls and tokens of each role: of the check of the judge, and of the grown trees scaled to all seeds."""
    calls = Calls(stand_ins, cfg.search.concurrency)
    session = SearchSession(cfg, seeds, calls, others)
    directory = Path(cfg.run_dir)
    if cfg.search.judge_check:
        await session.check_judge(calls.open_journal(directory / "judge_check", {}), Counter())
    checked = {role: _count(client) for role, client in stand_ins.items()}
    trees = [
        session.plan_tree(seed, calls.open_journal(directory / f"{number}", {})) for number, seed in enumerate(grown)
    ]
    await search_trees(trees, cfg.search.trees, has_room=lambda: False)  # no calls ahead, which may be of no use
    await calls.close()
    counts = {}
    for role, client in stand_ins.items():
        of_trees = _count(client)
        of_trees.subtract(checked[role])
        scale = len(seeds) / len(grown)
        counts[role] = Counter({name: round(checked[role][name] + scale * count) for name, count in of_trees.items()})
    return counts


def _count(client: StandIn) -> Counter[str]:
    read = sum(map(_count_prompt, client.requests))
    return Counter(calls=len(client.requests), prompt_tokens=read, completion_tokens=client.written)


async def _time_calls(clients: Mapping[str, Client], stand_ins: Mapping[str, StandIn]) -> dict[str, tuple[float, ...]]:
    """Of each role the seconds of a call, and how many times as many tokens it reads as was counted."""
    timed: dict[str, tuple[float, ...]] = {}
    for role, client in clients.items():
        requests = stand_ins[role].requests
        asked = requests[:: max(len(requests) // TIMED, 1)][:TIMED]
        if not asked:
            continue
        await client.answer(asked[0])  # the first one takes longer
        started = time.monotonic()
        answers = await asyncio.gather(*map(client.answer, asked))
        seconds = (time.monotonic() - started) / len(asked)
        read = sum(answer.prompt_tokens for answer in answers) / sum(map(_count_prompt, asked))
        timed[role] = seconds, read or 1.0
    return timed


def _forecast_role(
    cfg: Config, role: str, counts: Mapping[str, int], timed: tuple[float, ...] | None, at_once: int
) -> RoleForecast:
    calls, read, written = (float(counts[name]) for name in ("calls", "prompt_tokens", "completion_tokens"))
    if timed:
        return RoleForecast(role, calls, read * timed[1], written, None, calls * timed[0] / 60)
    openai, asked = cfg.llm.openai, getattr(cfg.llm, role).client == "openai"
    priced = asked and (openai.price_in or openai.price_out)
    cost = (read * openai.price_in + written * openai.price_out) / 1e6 if priced else None
    seconds = (calls * WAIT_S + written / TOKENS_S) / at_once if asked else 0.0
    return RoleForecast(role, calls, read, written, cost, seconds / 60)


def _notes(cfg: Config, grown: int, seeds: int, at_once: int, timed: Mapping[str, Any]) -> list[str]:
    asked = any(getattr(cfg.llm, role).client == "openai" for role in ROLES)
    notes = [
        f"{grown} of {seeds} trees were grown with stand-ins in all roles, who rate at random, speak as the seed "
        f"dialogues do, and end {ENDING:.0%} of their answers as seekers; the others are taken to be like them."
    ]
    if asked:
        notes.append(
            f"Endpoints: {CHARACTERS} characters a token; minutes if a call waits {WAIT_S:g} s and then gets "
            f"{TOKENS_S:g} tokens a second, {at_once} calls at once. Nobody was asked."
        )
    if asked and not (cfg.llm.openai.price_in or cfg.llm.openai.price_out):
        notes.append("No dollars: llm.openai.price_in and llm.openai.price_out say what a million tokens cost.")
    if timed:
        notes.append(f"Models here: minutes by {TIMED} calls of each role, which were made and timed.")
    return [*NOTES, *notes]
