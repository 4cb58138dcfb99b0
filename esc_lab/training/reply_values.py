"""Values of replies by a reward model, in place of those that a search has found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from esc_lab.data.dialogue import Dialogue, Turn
from esc_lab.statistics.intervals import FloatArray

Values = Callable[[Sequence[Sequence[Turn]]], FloatArray]


def value_replies(dialogues: Sequence[Dialogue], values: Values) -> list[Dialogue]:
    """The dialogues with new values of all replies at their decisions, given and rejected ones.

    Args:
        values: [N] of the last messages of N conversations, in the range of a search's.
    """
    talks = list(dict.fromkeys(talk for dialogue in dialogues for _, talk in _replies(dialogue)))
    by_talk = dict(zip(talks, values(talks).tolist() if talks else (), strict=True))
    valued = []
    for dialogue in dialogues:
        new = {
            (index, talk[-1].reply): replace(talk[-1].reply, value=by_talk[talk]) for index, talk in _replies(dialogue)
        }
        turns = [
            Turn(
                turn.speaker,
                new.get((index, turn.reply), turn.reply),
                tuple(new.get((index, reply), reply) for reply in turn.rejected),
            )
            for index, turn in enumerate(dialogue.turns)
        ]
        valued.append(replace(dialogue, turns=tuple(turns)))
    return valued


def _replies(dialogue: Dialogue) -> Iterator[tuple[int, tuple[Turn, ...]]]:
    """Each reply at a decision: the index of its turn, and the talk that ends with it."""
    said = [Turn(turn.speaker, turn.reply) for turn in dialogue.turns]
    for index in dialogue.decisions():
        for reply in (dialogue.turns[index].reply, *dialogue.turns[index].rejected):
            yield index, (*said[:index], Turn("supporter", reply))
