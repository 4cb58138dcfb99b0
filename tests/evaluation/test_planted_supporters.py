"""Supporters of known quality against a scripted seeker, in the protocol of the arena: the measures that claim to tell
them apart rank them as planted.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from esc_lab.config.converse import ConverseConfig
from esc_lab.config.prompt import TemplateConfig
from esc_lab.config.search import LLMConfig
from esc_lab.data.cards import Card, read_cards, shipped_cards
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import load_inventory
from esc_lab.evaluation.arena.measures import measure_talks
from esc_lab.evaluation.arena.persona import build_words
from esc_lab.evaluation.arena.supporter import ROLE, Supporter
from esc_lab.evaluation.arena.talk import Talk
from esc_lab.judging.talk_pair_session import find_rated_turns
from esc_lab.prompts import SeekerProfile, load_layout
from esc_lab.prompts.trained import SupporterPrompts
from esc_lab.search.requests import Answer, Request
from esc_lab.search.roles import Roles
from tests.evaluation.talk_roles import STRATEGIES, feel, play, who

ESCONV = load_inventory("esconv")
PROMPTS = SupporterPrompts(ESCONV, TemplateConfig(), load_layout("cso"))
SETTINGS = ConverseConfig(max_turns=6)
SUPPORTERS = ("kind", "cold", "parrot", "ending", "asking", "looping", "varied")


async def hold(card: Card, model: str, answer: Callable[[dict[str, Any]], str] = play) -> Dialogue:
    async def send(request: Request) -> Answer:
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        body = {"model": model if request.role == ROLE else "seeker", "messages": messages, "seed": request.seed}
        return Answer(answer(body), finish_reason="stop")

    asked = {ROLE: PROMPTS.record()}
    roles = Roles(ESCONV, SeekerProfile(card.situation), LLMConfig(), asked, send, Counter())
    talk = Talk(card, 0, Supporter(roles, (), scores=False), build_words({}), SETTINGS)
    await talk.hold()
    return talk.dialogue("esconv")


async def hold_all(model: str) -> list[Dialogue]:
    cards = read_cards(shipped_cards("default"))[:10]
    return [*await asyncio.gather(*(hold(card, model) for card in cards))]


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, float]]:
    talks = {model: asyncio.run(hold_all(model)) for model in SUPPORTERS}
    return {model: measure_talks(of, success=SETTINGS.success, max_turns=6) for model, of in talks.items()}


@pytest.mark.parametrize(
    ("measure", "supporter", "from_", "others"),
    [
        ("asks", "asking", 1, 0.05),  # the parrot says back a question
        ("repeated", "looping", 0.8, 0.4),
        ("echoed", "parrot", 0.9, 0.1),
        ("success", "kind", 1, 0),
        ("relief", "kind", 2.5, 0),
        ("ended_by_seeker", "kind", 1, 0),
        ("ends/supporter", "ending", 1, 0),
        ("strategy_entropy", "varied", 2, 0),
        ("strategies", "varied", 5, 1),
    ],
)
def test_a_measure_is_highest_where_it_was_planted(found, measure, supporter, from_, others):
    assert found[supporter][measure] >= from_
    assert max(metrics[measure] for model, metrics in found.items() if model != supporter) <= others


@pytest.mark.parametrize(
    ("measure", "supporter", "up_to", "others"),
    [
        ("turns", "ending", 1, 5),
        ("turns_to_success", "kind", 4, 6),
        ("relief", "cold", -1, 0),
        ("strategy_repeats", "varied", 0, 1),
    ],
)
def test_a_measure_is_lowest_where_it_was_planted(found, measure, supporter, up_to, others):
    assert found[supporter][measure] <= up_to
    assert (
        min(metrics[measure] for model, metrics in found.items() if model != supporter and measure in metrics) >= others
    )


def test_what_follows_what_is_known_where_it_was_planted(found):
    """The varied supporter goes through its strategies in order: many of them, and none of them a surprise."""
    assert found["varied"]["transition_entropy"] == 0
    assert {name for name in found["varied"] if name.startswith("strategy/")} == {f"strategy/{s}" for s in STRATEGIES}
    assert "strategy_repeats" not in found["ending"]  # one turn has none before it


@pytest.mark.parametrize(("last", "expected"), [("I feel lighter now. [END]", 1.0), ("[END]", 3.0)])
def test_how_the_seeker_leaves_is_told_by_its_last_message(last, expected):
    """It ends the talk at an intensity of 3, and is lighter once it has said so."""

    def answer(body: dict[str, Any]) -> str:
        if who(body) == "intensity" and "lighter" in body["messages"][1]["content"]:
            return json.dumps({"intensity": 1})
        return last if who(body) == "seeker" and feel(body) <= 3 else play(body)

    card = read_cards(shipped_cards("default"))[0]
    talk = asyncio.run(hold(card, "kind", answer))
    assert talk.meta["ends"] == "seeker"
    assert talk.meta["intensity"] == [4.0, 3.5, expected]
    rated = find_rated_turns(talk)  # a second opinion is asked for at the same places
    assert len(rated) == len(talk.meta["intensity"])
    assert rated[-1] == len(talk.turns) == (6 if expected == 1 else 5)
