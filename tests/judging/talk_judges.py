"""Judges of whole talks on the loopback endpoint: one that knows the truth, and ones with a bias."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from esc_lab.config.compare import TalkPairsConfig
from esc_lab.config.search import LLMConfig
from esc_lab.data.dialogue import Turn
from esc_lab.data.strategies import Inventory
from esc_lab.judging.talk_pairs import PlantedPair, TalkPairPrompts, build_talk_pair_prompts, read_planted_pairs
from esc_lab.search.role_prompts import build_role_prompts, transcript
from tests.evaluation.talk_roles import COLD, KIND, play

# The worth of the scripted supporters, by what gives them away.
WORTH = {KIND: 3, "And how was the": 2, COLD: 0}
ORDER = ("kind", "asking", "parrot", "cold")
ASPECTS = ("exploration", "insight", "action")


def prompts() -> TalkPairPrompts:
    return build_talk_pair_prompts(TalkPairsConfig(), build_role_prompts(Inventory("", ()), LLMConfig()))


def planted() -> list[PlantedPair]:
    return read_planted_pairs(TalkPairsConfig(), prompts().aspects)


def show(talk: Sequence[Turn]) -> str:
    return transcript(talk, labels=False)


_GOOD_AT = {show(pair.better): pair.aspect.name for pair in planted()}
_PLANTED = {show(talk) for pair in planted() for talk in (pair.better, pair.worse)}


def true_worth(talk: str, aspect: str) -> float:
    """Of planted talks what they are good at; of scripted supporters who they are."""
    if talk in _PLANTED:
        return float(_GOOD_AT.get(talk) == aspect)
    return next((worth for words, worth in WORTH.items() if words in talk), 1)


def judging(worth: Callable[[str, str], float]) -> Callable[[dict[str, Any]], str]:
    """Plays talks as `play` does, and judges pairs of them by a worth; of equal ones it takes the first."""

    def reply(body: dict[str, Any]) -> str:
        pair = re.search(
            r"Talk A:\n(.*)\n\n\(End of talk A\.\)\n\nTalk B:\n(.*)\n\n\(End of talk B\.\).*?asked now\. (\w+):",
            body["messages"][1]["content"],
            re.DOTALL,
        )
        if pair is None:
            return play(body)
        first, second, aspect = pair.groups()
        better = worth(first, aspect.lower()) >= worth(second, aspect.lower())
        return json.dumps({"better": "A" if better else "B"})

    return reply
