"""Prompts for measurements of SRA, made of the sample corpus: one of a given length, and one for each strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from esc_lab.data.corpora import read_dialogues, sample_path
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import load_inventory
from esc_lab.prompts import build_prompt, load_layout
from esc_lab.tokens import ChatEncoder
from esc_lab.tokens.encode import IntArray

INVENTORY = load_inventory("extes_sra")


@dataclass(frozen=True)
class SpanPrompt:
    """Token ids of a prompt and the positions of its strategy's name."""

    input_ids: IntArray
    span: IntArray


def prompt_of_length(encoder: ChatEncoder, tokens: int) -> SpanPrompt:
    """A prompt of exactly `tokens` tokens: what is too much is cut out at the beginning of the history.

    Raises:
        ValueError: the sample corpus is too short for it, or the prompt too short for the template.
    """
    dialogue = _one_dialogue()
    name = INVENTORY.names[0]
    found = _encoded(
        encoder, dialogue, _shortest(dialogue, encoder, lambda prompt: len(prompt.input_ids), tokens), name
    )
    excess = len(found.input_ids) - tokens
    keep = 64  # tokens: the system message up to the history, and the history's first words
    if excess > found.span[0] - keep:
        raise ValueError(f"a prompt of this template cannot have {tokens} tokens")
    return SpanPrompt(np.delete(found.input_ids, np.arange(keep, keep + excess)), found.span - excess)


def strategy_prompts(encoder: ChatEncoder, history_tokens: int) -> list[SpanPrompt]:
    """A prompt for each strategy, all after the same history: at least `history_tokens` tokens before the name.

    Raises:
        ValueError: the sample corpus is too short for it.
    """
    dialogue = _one_dialogue()
    turn = _shortest(dialogue, encoder, lambda prompt: int(prompt.span[0]), history_tokens)
    return [_encoded(encoder, dialogue, turn, name) for name in INVENTORY.names]


def _one_dialogue() -> Dialogue:
    """The dialogues of the sample corpus, joined end to end."""
    return Dialogue(tuple(turn for dialogue in read_dialogues(sample_path()) for turn in dialogue.turns), "esconv")


def _shortest(dialogue: Dialogue, encoder: ChatEncoder, size: Callable[[SpanPrompt], int], wanted: int) -> int:
    """The first turn of the supporter, after one of the seeker, whose prompt has the wanted size."""
    for turn in dialogue.decisions():
        answers = dialogue.turns[turn - 1].speaker == "seeker"
        if answers and size(_encoded(encoder, dialogue, turn, INVENTORY.names[0])) >= wanted:
            return turn
    raise ValueError(f"the sample corpus is too short for {wanted} tokens")


def _encoded(encoder: ChatEncoder, dialogue: Dialogue, turn: int, strategy: str) -> SpanPrompt:
    prompt = build_prompt(load_layout("c1_hf"), INVENTORY, dialogue, turn, strategy, history_labels=False)
    encoded = encoder.encode_prompt(encoder.adapt(prompt))
    name = next(span for span in encoded.spans if span.span.kind == "name")
    return SpanPrompt(encoded.input_ids, np.arange(name.start, name.end))
