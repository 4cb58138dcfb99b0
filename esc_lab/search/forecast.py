"""What a search will take, before anybody is asked: some of its trees are grown with stand-ins that answer at once."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from esc_lab.config import Config
from esc_lab.config.search import LOADED, ROLES, BudgetConfig
from esc_lab.data.dialogue import Dialogue
from esc_lab.search.builder import search_trees
from esc_lab.search.calls import Calls, open_calls
from esc_lab.search.requests import Client, Request
from esc_lab.search.role_answers import split_end
from esc_lab.search.seed_dialogue import SeedDialogue
from esc_lab.search.session import SearchSession
from esc_lab.search.stand_in import CHARACTERS, StandIn, count_tokens

log = logging.getLogger(__name__)
TREES = 4  # that are grown; the rest is taken to be like them
TIMED = 8  # calls of each role that are made for real, of models that are loaded here
ENDINGS = 32  # calls in which a seeker that is loaded here may end the talk, to see how often it does
ENDING = 1 / 16  # of a seeker's turns end the talk, where no model tells; about as in ESConv
WAIT_S, TOKENS_S = 1.0, 50.0  # of a call of an endpoint: until its first token, and after it
HEADS = ("role", "calls", "tokens read", "tokens written", "US dollars", "minutes")
NOTES = (
    "Role: the strategist rates strategies, supporter and seeker write, the judge scores. Calls: of the role's model, "
    "the check of the judge among them. Tokens read: of prompts, also those that a server has in its cache; tokens "
    "written: of answers.",
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


class _Timing(NamedTuple):
    """Of calls of a role: seconds of one, and how many times as many tokens it reads and writes as were counted."""

    seconds: float
    read: float
    written: float


def _count_prompt(request: Request) -> int:
    return sum(count_tokens(message.content) + 4 for message in request.messages)  # with the marks around a message


def announce_forecast(cfg: Config, seeds: int) -> str:
    """What a dry run is about to do, with which models, and how long that takes."""
    loaded = [role for role in ROLES if getattr(cfg.llm, role).client in LOADED]
    players = "; ".join(f"{role}: {_name_player(cfg, role)}" for role in ROLES)
    work = f"{min(TREES, seeds)} trees are grown with stand-ins, which takes seconds"
    if loaded:
        calls = TIMED * len(loaded) + ENDINGS * ("seeker" in loaded)
        work += f"; then up to {calls} calls of {', '.join(loaded)} are made and timed: minutes where there is no GPU"
    asked = "" if len(loaded) == len(ROLES) else " Endpoints are not asked."
    search = f"a dry run of a search from {seeds} dialogues with mcts={cfg.mcts.name} and {players}."
    return f"{search} {work[0].upper()}{work[1:]}. Nothing is searched or kept.{asked}"


def _name_player(cfg: Config, role: str) -> str:
    played = getattr(cfg.llm, role)
    if played.client not in LOADED:
        return f"{played.client} {played.model or cfg.llm.openai.model}"
    model = Path(played.model).name if played.model else cfg.llm.local.model.name
    return f"{model} ({Path(played.checkpoint).name})" if played.checkpoint else str(model)


def forecast_search(cfg: Config, seeds: Sequence[SeedDialogue], others: Sequence[Dialogue]) -> Forecast:
    """What the search from all seeds will take. Endpoints are not asked; of loaded models a few calls are timed.

    Args:
        others: dialogues that are no seeds, for the check of the judge.

    Raises:
        UserError: a model cannot be loaded.
    """
    cfg = replace(cfg, search=replace(cfg.search, cache=False, budget=BudgetConfig()), resume=None)
    log.info("%s", announce_forecast(cfg, len(seeds)))
    real = open_calls(cfg, [role for role in ROLES if getattr(cfg.llm, role).client in LOADED])
    return real.run(_forecast(cfg, real.clients, seeds, others), cfg.run_dir)


async def _forecast(
    cfg: Config, clients: Mapping[str, Client], seeds: Sequence[SeedDialogue], others: Sequence[Dialogue]
) -> Forecast:
    """Grow trees; where the seeker's model is loaded, once more with as many endings as it has."""
    grown = seeds[:: max(len(seeds) // TREES, 1)][:TREES]

    async def rehearse(ending: float) -> tuple[dict[str, Counter[str]], dict[str, StandIn]]:
        stand_ins = _stand_in(cfg, clients, seeds, ending)
        with TemporaryDirectory() as directory:
            own = replace(cfg, run_dir=directory)
            return await _rehearse(own, seeds, grown, others, stand_ins), stand_ins

    counts, stand_ins = await rehearse(ENDING)
    most, ending = None, await _measure_ending(clients.get("seeker"), stand_ins["seeker"].requests)
    if ending is None:
        most = sum(count["calls"] for count in (await rehearse(0.0))[0].values())
    else:
        counts, stand_ins = await rehearse(ending)
    timed = await _time_calls(clients, stand_ins)
    at_once = min(cfg.search.concurrency, min(cfg.search.trees, len(seeds)) * cfg.mcts.in_flight)
    roles = [_forecast_role(cfg, role, counts[role], timed.get(role), at_once) for role in ROLES]
    talks = _note_talks(len(grown), len(seeds), ENDING if ending is None else ending, most)
    return Forecast(roles, [*NOTES, talks, *_note_speed(cfg, at_once, timed)])


def _stand_in(
    cfg: Config, clients: Mapping[str, Client], seeds: Sequence[SeedDialogue], ending: float
) -> dict[str, StandIn]:
    """A stand-in for each role, of the models that are loaded here and of endpoints."""
    turns: dict[str, list[str]] = {"seeker": ["..."], "supporter": ["..."]}
    for seed in seeds:
        for turn in seed.dialogue.turns:
            turns[turn.speaker].append(turn.reply.text)
    served = {"ratings": cfg.llm.openai.ratings} if cfg.llm.openai.ratings != "written" else {}
    stand_ins = {}
    for role in ROLES:
        client = clients.get(role)
        identity = client.identity if client else {"kind": "openai", **served}
        stand_ins[role] = StandIn(identity, turns, ending, scores=client.scores if client else bool(served))
    return stand_ins


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
    return Counter(calls=len(client.requests), prompt_tokens=read, completion_tokens=sum(client.written))


async def _measure_ending(seeker: Client | None, requests: Sequence[Request]) -> float | None:
    """Of the turns of a seeker that is loaded here the share that ends the talk; None where no model is."""
    asked = [request for request in requests if request.questions] or requests
    if seeker is None or not asked:
        return None
    log.info("asking the seeker how often it ends a talk")
    answers = await asyncio.gather(*map(seeker.answer, asked[:: max(len(asked) // ENDINGS, 1)][:ENDINGS]))
    ends = [
        math.exp(answer.log_probs[0][0]) if answer.log_probs else float(split_end(answer.text)[1]) for answer in answers
    ]
    return sum(ends) / len(ends)


async def _time_calls(clients: Mapping[str, Client], stand_ins: Mapping[str, StandIn]) -> dict[str, _Timing]:
    """Calls of each role, made and timed."""
    timed: dict[str, _Timing] = {}
    for role, client in clients.items():
        log.info("timing calls of the %s", role)
        numbers = range(len(stand_ins[role].requests))
        # An odd step: a seeker's questions and turns may take turns.
        numbers = numbers[:: max(len(numbers) // TIMED, 1) | 1][:TIMED]
        if not numbers:
            continue
        asked = [stand_ins[role].requests[number] for number in numbers]
        await client.answer(asked[0])  # the first one takes longer
        started = time.monotonic()
        answers = await asyncio.gather(*map(client.answer, asked))
        timed[role] = _Timing(
            (time.monotonic() - started) / len(asked),
            sum(answer.prompt_tokens for answer in answers) / sum(map(_count_prompt, asked)) or 1.0,
            sum(answer.completion_tokens for answer in answers)
            / max(sum(stand_ins[role].written[number] for number in numbers), 1),
        )
    return timed


def _forecast_role(
    cfg: Config, role: str, counts: Mapping[str, int], timed: _Timing | None, at_once: int
) -> RoleForecast:
    calls, read, written = (float(counts[name]) for name in ("calls", "prompt_tokens", "completion_tokens"))
    if timed:
        return RoleForecast(
            role, calls, read * timed.read, written * timed.written, None, calls * timed.seconds / 60
        )  # fmt: skip
    openai, asked = cfg.llm.openai, getattr(cfg.llm, role).client == "openai"
    priced = asked and (openai.price_in or openai.price_out)
    cost = (read * openai.price_in + written * openai.price_out) / 1e6 if priced else None
    seconds = (calls * WAIT_S + written / TOKENS_S) / at_once if asked else 0.0
    return RoleForecast(role, calls, read, written, cost, seconds / 60)


def _note_talks(grown: int, seeds: int, ending: float, most: int | None) -> str:
    """How the calls were counted, and how many they may become; `most` if no seeker ended a talk, where none told."""
    trees = f"All {seeds} trees" if grown == seeds else f"{grown} of {seeds} trees"
    told = f"{trees} were grown with stand-ins, who rate at random and speak as the seed dialogues do"
    rest = "" if grown == seeds else "; the others are taken to be like them"
    ends = f"seekers end the talk in {ending:.0%} of their turns, "
    ends += "as their model did when asked" if most is None else f"a guess: at most about {most:,} calls if none did"
    return f"{told}{rest}; {ends}. Not counted: calls made again since an answer could not be used."


def _note_speed(cfg: Config, at_once: int, timed: Mapping[str, _Timing]) -> list[str]:
    """Where tokens, minutes and dollars come from."""
    asked, notes = any(getattr(cfg.llm, role).client == "openai" for role in ROLES), []
    if asked:
        notes.append(
            f"Endpoints: {CHARACTERS} characters a token; minutes if a call waits {WAIT_S:g} s and then gets "
            f"{TOKENS_S:g} tokens a second, {at_once} calls at once. Nobody was asked."
        )
    if asked and not (cfg.llm.openai.price_in or cfg.llm.openai.price_out):
        notes.append("No dollars: llm.openai.price_in and llm.openai.price_out say what a million tokens cost.")
    if timed:
        notes.append(f"Models here: minutes and tokens by {TIMED} calls of each role, which were made and timed.")
    return notes
