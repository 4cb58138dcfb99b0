"""Contexts of strategy-conditioned continuations: where a dialogue is cut, and which strategies are prompted there.

After *Steering Conversational LLMs* (arXiv 2402.10453): dialogues are cut at a random point, always after the seeker,
and continued by one turn with a prompted strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from esc_lab.config.extend import ExtendConfig
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Exchange, Inventory
from esc_lab.errors import UserError
from esc_lab.seeds import derive_seed


@dataclass(frozen=True)
class Context:
    """The first `turns` turns of a dialogue, the last of them the seeker's.

    Attributes:
        strategies: that are prompted for the next reply, in the inventory's order; None: a prompt that names none.
    """

    dialogue: Dialogue
    turns: int
    strategies: tuple[str | None, ...]


@dataclass(frozen=True)
class CutDialogue:
    """A dialogue of a split with its contexts, one or more."""

    split: str
    dialogue: Dialogue
    contexts: Sequence[Context]

    @property
    def replies(self) -> int:
        """How many are to be written."""
        return sum(len(context.strategies) for context in self.contexts)


def cut_splits(
    splits: Mapping[str, Sequence[Dialogue]], settings: ExtendConfig, draw: Callable[[Dialogue], list[Context]]
) -> tuple[list[CutDialogue], int]:
    """The dialogues that have contexts, equal ones once; and how many have none.

    Args:
        draw: the contexts of a dialogue.

    Raises:
        UserError: none has any.
    """
    distinct: dict[str, CutDialogue] = {}
    for split in settings.splits:
        for dialogue in splits.get(split, ()):
            distinct.setdefault(dialogue.id, CutDialogue(split, dialogue, draw(dialogue)))
    cut = [dialogue for dialogue in distinct.values() if dialogue.contexts]
    if not cut:
        bounds = f"from extend.min_turns={settings.min_turns} to extend.max_turns={settings.max_turns}"
        sought = "a seeker's turn to cut after" if settings.source == "model" else "a given reply with one strategy"
        what = f"none of {len(distinct)} dialogues has {sought}, {bounds} turns"
        fix = "other bounds, or check data.path, data.limit and extend.splits"
        raise UserError(what, where=f"extend.splits=[{','.join(settings.splits)}]", fix=fix)
    return cut, len(distinct) - len(cut)


def draw_contexts(dialogue: Dialogue, settings: ExtendConfig, names: Sequence[str]) -> list[Context]:
    """The contexts of a dialogue, shortest first; none where no seeker's turn lies within the bounds.

    What is drawn for a dialogue depends on it and on `settings.seed` alone. More cuts, or a larger number of
    strategies, add to what fewer give.

    Args:
        names: the strategies of the inventory.
    """
    longest = min(settings.max_turns, len(dialogue.turns))
    places = [
        turns for turns in range(settings.min_turns, longest + 1) if dialogue.turns[turns - 1].speaker == "seeker"
    ]
    draw = np.random.default_rng(derive_seed(settings.seed, "cuts", dialogue.id))
    chosen = sorted(draw.permutation(places)[: settings.cuts].tolist())
    return [Context(dialogue, turns, _draw_strategies(dialogue.id, turns, settings, names)) for turns in chosen]


def _draw_strategies(dialogue: str, turns: int, settings: ExtendConfig, names: Sequence[str]) -> tuple[str | None, ...]:
    draw = np.random.default_rng(derive_seed(settings.seed, "prompted", dialogue, turns))
    unconditional = draw.random() < settings.unconditional
    if settings.number is None:
        share = draw.random(len(names))
        drawn = np.flatnonzero(share < settings.share).tolist() or [int(share.argmin())]
    else:
        drawn = sorted(draw.permutation(len(names))[: settings.number].tolist())
    return (*(names[number] for number in drawn), *([None] if unconditional else []))


def draw_examples(
    inventory: Inventory, context: Context, strategy: str | None, settings: ExtendConfig
) -> tuple[Exchange, ...]:
    """The exchanges that a prompt shows of its strategy, at most `settings.examples`, drawn by context.

    A larger number adds to what a smaller one gives.
    """
    known = [exchange for exchange in inventory.examples if exchange.strategy == strategy]
    draw = np.random.default_rng(derive_seed(settings.seed, "examples", context.dialogue.id, context.turns))
    return tuple(known[number] for number in draw.permutation(len(known))[: settings.examples])
