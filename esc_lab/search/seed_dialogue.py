"""A seed dialogue as the start of a search: the turns before the first decision, and the path that was taken."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

from esc_lab.data.dialogue import Dialogue, Turn, merge_turns
from esc_lab.errors import UserError


@dataclass(frozen=True)
class SeedDecision:
    """A supporter turn of the seed dialogue with the seeker's answer, which is empty where the dialogue ends."""

    strategy: str
    text: str
    answer: str


@dataclass(frozen=True)
class SeedDialogue:
    """Where a search begins.

    Attributes:
        dialogue: the seed, consecutive turns of a side joined.
        start: turns before the first decision: the seeker's first, an opening by the supporter if there is one, and
            what was skipped.
        path: the decisions from there on, each with the first of its strategies.
        ended: the path goes to the dialogue's end; false if it was cut before a reply without a strategy.
    """

    dialogue: Dialogue
    start: tuple[Turn, ...]
    path: tuple[SeedDecision, ...]
    ended: bool


def build_seed(dialogue: Dialogue, skip: int = 0) -> SeedDialogue:
    """The start of a search; a UserError if the seeker says nothing in the dialogue.

    It may open with the supporter (context, no decision) and end with either side.

    Args:
        skip: decisions that are passed over, with the seeker's answers; fewer than there are.
    """
    dialogue = merge_turns(dialogue, "set")
    turns = dialogue.turns
    first = next((index for index, turn in enumerate(turns) if turn.speaker == "seeker"), None)
    if first is None:
        fix = "leave it out of the seeds"
        raise UserError("the seeker says nothing", where=f"seed dialogue {dialogue.id}", fix=fix)
    first += 2 * skip
    path: list[SeedDecision] = []
    decisions = turns[first + 1 :: 2]  # the sides take turns
    for turn, answer in zip_longest(decisions, turns[first + 2 :: 2]):
        if not turn.reply.strategies:
            break
        path.append(SeedDecision(turn.reply.strategies[0], turn.reply.text, answer.reply.text if answer else ""))
    return SeedDialogue(dialogue, turns[: first + 1], tuple(path), 0 < len(path) == len(decisions))
