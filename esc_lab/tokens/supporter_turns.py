"""Supporter turns of a dialogue as examples: a prompt and its reply, gold or rejected."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from esc_lab.config import TemplateConfig
from esc_lab.data.dialogue import Dialogue, Reply
from esc_lab.data.strategies import Inventory
from esc_lab.prompts import build_layout, build_prompt, reply_content
from esc_lab.tokens.examples import Example


@dataclass(frozen=True)
class ReplyKey:
    """Names a reply of a split: dialogue id, turn index, and 0 for the gold reply or n for the n-th rejected one."""

    dialogue: str
    turn: int
    alternative: int = 0

    def __str__(self) -> str:
        which = f", rejected reply {self.alternative}" if self.alternative else ""
        return f"dialogue {self.dialogue}, turn {self.turn + 1}{which}"


def find_reply(dialogue: Dialogue, key: ReplyKey) -> Reply:
    turn = dialogue.turns[key.turn]
    return turn.rejected[key.alternative - 1] if key.alternative else turn.reply


def build_examples(
    dialogue: Dialogue,
    inventory: Inventory,
    settings: TemplateConfig,
    *,
    inference: str = "direct",
    score_opening: bool = False,
    min_turns: int = 0,
    history_turns: int | None = None,
) -> list[Example]:
    """One example for each supporter decision that has a strategy: its prompt and its gold reply.

    Args:
        min_turns: leave out decisions with fewer turns before them.
        history_turns: the prompts show at most this many of the last turns, from where the seeker begins to speak.
    """
    layout = build_layout(settings)
    examples = []
    for turn in dialogue.decisions(score_opening=score_opening):
        reply = dialogue.turns[turn].reply
        if not reply.strategies or turn < min_turns:
            continue
        prompt = partial(
            build_prompt,
            layout,
            inventory,
            dialogue,
            turn,
            reply.strategies[0],
            history_labels=settings.history_labels,
            situation=settings.situation,
            inference=inference,
        )
        starts = _history_starts(dialogue, turn)
        first = 0 if history_turns is None else next((s for s in (0, *starts) if turn - s <= history_turns), starts[-1])
        examples.append(
            Example(
                prompt(start=first),
                reply_content(layout, reply.text, reply.strategies),
                ReplyKey(dialogue.id, turn),
                tuple(start for start in starts if start > first),
                prompt,
                first,
            )
        )
    return examples


def _history_starts(dialogue: Dialogue, turn: int) -> tuple[int, ...]:
    """Turns after the first at which a shortened history may start: where a seeker begins to speak."""
    turns = dialogue.turns
    return tuple(
        index
        for index in range(1, turn)
        if turns[index].speaker == "seeker" and turns[index - 1].speaker == "supporter"
    )
