"""Preferences with a known answer: dialogues whose rejected strategies lose by planted utilities.

At each supporter turn two strategies a and b are drawn, and a is preferred with probability sigmoid(u(a) - u(b))
(Bradley and Terry, 1952). Both replies have the same words, so only the strategy decides. The policy that minimises the
expected DPO loss on such pairs has log-ratios to its reference of u / beta, up to a constant for each turn (Rafailov et
al., 2023, equation 5): regressed on u, they have slope 1 / beta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import Inventory
from esc_lab.seeds import derive_seed

Order = Literal["planted", "swapped", "shuffled"]
ORDERS: tuple[Order, ...] = ("planted", "swapped", "shuffled")
TURNS = 3  # supporter turns of a dialogue
LONGEST = 80  # characters of a message
SPREAD = 1.5  # the utilities go from -SPREAD to SPREAD

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MessagePool:
    """Messages to make dialogues of, without regard to what answers what."""

    seeker: tuple[str, ...]
    supporter: tuple[str, ...]


def collect_messages(dialogues: Sequence[Dialogue]) -> MessagePool:
    """The short messages of dialogues; long ones would cost time and teach nothing."""
    turns = [turn for dialogue in dialogues for turn in dialogue.turns if len(turn.reply.text) <= LONGEST]
    return MessagePool(
        tuple(turn.reply.text for turn in turns if turn.speaker == "seeker"),
        tuple(turn.reply.text for turn in turns if turn.speaker == "supporter"),
    )


def draw_utilities(inventory: Inventory, seed: int) -> FloatArray:
    """Utility [K] of each strategy: evenly spaced, in an order drawn from the seed."""
    draw = np.random.default_rng(derive_seed(seed, "planted utilities"))
    return draw.permutation(np.linspace(-SPREAD, SPREAD, len(inventory)))


def draw_dialogues(
    inventory: Inventory, utilities: FloatArray, pairs: int, texts: MessagePool, seed: int, order: Order = "planted"
) -> list[Dialogue]:
    """Dialogues with one preference pair at each of their supporter turns, at most `TURNS` of them.

    Args:
        utilities: [K], by strategy.
        pairs: supporter turns in all.
        order: `planted`; `swapped`, the same pairs the other way round; `shuffled`, each way round by a coin.
    """
    draw = np.random.default_rng(derive_seed(seed, "planted dialogues"))
    dialogues = []
    for start in range(0, pairs, TURNS):
        turns: list[Turn] = []
        for _ in range(min(TURNS, pairs - start)):
            first, second = draw.choice(len(inventory), size=2, replace=False)
            wins = draw.random() < 1 / (1 + np.exp(utilities[second] - utilities[first]))
            heads = draw.random() < 0.5
            if not {"planted": wins, "swapped": not wins, "shuffled": heads}[order]:
                first, second = second, first
            seeker, words = draw.choice(texts.seeker), str(draw.choice(texts.supporter))
            chosen, rejected = (Reply(words, (inventory.names[number],)) for number in (first, second))
            turns += [Turn("seeker", Reply(str(seeker))), Turn("supporter", chosen, (rejected,))]
        dialogues.append(Dialogue(tuple(turns), inventory.name))
    return dialogues
