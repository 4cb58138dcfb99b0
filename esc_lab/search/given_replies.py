"""Given replies as strategy-conditioned data, for models that are too small to follow a strategy that they are told.

People wrote the words. The strategies are those of the corpus; or, where the inventory has cues (regular expressions),
those of the cues, weak labels as the strategies of prompted replies are.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from esc_lab.config.extend import ExtendConfig
from esc_lab.data.dialogue import Dialogue, Reply
from esc_lab.data.strategies import Inventory
from esc_lab.scorers.adherence import bare_reply
from esc_lab.search.contexts import Context
from esc_lab.seeds import derive_seed

_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n")
_MIN_WORDS = 4  # of what is found; fewer hardly say anything


def draw_given(dialogue: Dialogue, settings: ExtendConfig, inventory: Inventory) -> list[Context]:
    """The contexts whose given reply, or part of it, is of one strategy, shortest first.

    Of each strategy there are `settings.cuts` of a dialogue at most, drawn with `settings.seed`, so that what people
    say all the time does not outweigh the rest.
    """
    places: dict[str, list[int]] = {}
    for turns in range(settings.min_turns, min(settings.max_turns, len(dialogue.turns) - 1) + 1):
        if [turn.speaker for turn in dialogue.turns[turns - 1 : turns + 1]] == ["seeker", "supporter"]:
            for name in _find_replies(dialogue.turns[turns].reply, inventory):
                places.setdefault(name, []).append(turns)
    draw = np.random.default_rng(derive_seed(settings.seed, "given", dialogue.id))
    chosen: dict[int, list[str | None]] = {}
    for name in (name for name in inventory.names if name in places):
        for turns in draw.permutation(places[name])[: settings.cuts].tolist():
            chosen.setdefault(turns, []).append(name)
    for names in chosen.values():
        names += [None] if draw.random() < settings.unconditional else []
    return [Context(dialogue, turns, tuple(chosen[turns])) for turns in sorted(chosen)]


def read_given(context: Context, strategy: str | None, inventory: Inventory) -> str:
    """What of the given reply is of a strategy; of None the whole reply."""
    reply = context.dialogue.turns[context.turns].reply
    return bare_reply(reply.text, inventory) if strategy is None else _find_replies(reply, inventory)[strategy]


def _find_replies(reply: Reply, inventory: Inventory) -> dict[str, str]:
    """By strategy the words of it: sentences with its cues; without cues the reply, where it has one strategy alone."""
    if inventory.cues:
        return find_sentences(reply.text, inventory)
    return {reply.strategies[0]: bare_reply(reply.text, inventory)} if len(reply.strategies) == 1 else {}


def find_sentences(text: str, inventory: Inventory) -> dict[str, str]:
    """By strategy the sentences of a reply in which cues of it are found, and of no other.

    >>> from esc_lab.data.strategies import load_inventory
    >>> find_sentences("So sorry to hear that. Have you tried to talk to him? Hm.", load_inventory("extes_sra"))
    {'Emotional Validation': 'So sorry to hear that.', 'Suggest Options': 'Have you tried to talk to him?'}
    """
    found: dict[str, list[str]] = {}
    for sentence in _SENTENCES.split(bare_reply(text, inventory)):
        plain = sentence.replace("\u2019", "'")
        told = [name for name, cues in _patterns(inventory) if any(cue.search(plain) for cue in cues)]
        if len(told) == 1:
            found.setdefault(told[0], []).append(sentence)
    joined = {name: " ".join(sentences) for name, sentences in found.items()}
    return {name: words for name, words in joined.items() if len(words.split()) >= _MIN_WORDS}


@cache
def _patterns(inventory: Inventory) -> list[tuple[str, tuple[re.Pattern[str], ...]]]:
    return [
        (name, tuple(re.compile(cue, re.IGNORECASE) for cue in inventory.cues[name]))
        for name in inventory.names
        if name in inventory.cues
    ]
