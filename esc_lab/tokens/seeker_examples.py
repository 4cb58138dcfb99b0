"""Seeker turns of a dialogue as examples: the talk is one chat in which the seeker is the assistant.

So all turns of the seeker are replies along one sequence, as the supporter's are under the `cso` layout. The last one
ends the talk; where the supporter has the last word, the seeker's end of the talk comes after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from esc_lab.data.dialogue import Dialogue
from esc_lab.prompts import Prompt, SeekerProfile, seeker_messages, seeker_reply
from esc_lab.tokens.examples import Example, ReplyKey


def build_seeker_examples(dialogue: Dialogue, words: Mapping[str, str], *, ends: bool = True) -> list[Example]:
    """One example for each time that the seeker speaks, and one for the end of the talk if that is not its own.

    Consecutive turns are one message; its key is that of the first. The end after the supporter's last word has the
    key of the turn that would come next.

    Args:
        words: of the seeker's prompts (see `seeker_messages`).
        ends: the dialogue comes to its end, and the seeker says so.
    """
    turns, seeker = dialogue.turns, SeekerProfile.of(dialogue)
    sides = [turn.speaker for turn in turns]
    if "seeker" not in sides:
        return []

    def shortened(turn: int, *, start: int) -> Prompt:
        return Prompt(seeker_messages(words, seeker, turns[start:turn]))

    begins = [i for i in range(len(turns)) if sides[i] == "seeker" and (i == 0 or sides[i - 1] != "seeker")]
    # A shortened history starts where a supporter begins to speak.
    starts = [i for i in range(1, len(turns)) if (sides[i - 1], sides[i]) == ("seeker", "supporter")]
    examples = []
    for begin in [*begins, *([len(turns)] if ends and sides[-1] == "supporter" else [])]:
        end = begin
        while end < len(turns) and sides[end] == "seeker":
            end += 1
        prompt = partial(shortened, begin)
        text = "\n".join(turn.reply.text for turn in turns[begin:end])
        examples.append(
            Example(
                prompt(start=0),
                seeker_reply(text, ends=ends and end == len(turns)),
                ReplyKey(dialogue.id, begin),
                tuple(start for start in starts if start < begin),
                prompt,
                where=dialogue.where,
            )
        )
    return examples
