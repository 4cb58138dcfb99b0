"""Prompts of a seeker that is trained: the talk as a chat in which the seeker is the assistant.

The system message says who it plays, in the words of the search's seeker (`conf/roles`). Consecutive turns of a side
are joined by a newline; a talk that the seeker opens begins with a user message, `start` of the prompts' wording, since
chats begin with the user. Training and search ask alike: both call `seeker_messages`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from esc_lab.data.dialogue import Dialogue, Turn
from esc_lab.prompts.chat import Message, Role

END = "[END]"  # by which a seeker ends the talk


@dataclass(frozen=True)
class SeekerProfile:
    """The person that the seeker plays; `notes` are further sentences about it, of a card."""

    situation: str
    emotion: str = ""
    problem: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, dialogue: Dialogue) -> SeekerProfile:
        """The seeker of a dialogue."""
        return cls(dialogue.situation, dialogue.emotion, dialogue.problem)


def seeker_system(words: Mapping[str, str], seeker: SeekerProfile) -> str:
    """The system message: the persona, and what the seeker knows of itself.

    Args:
        words: `seeker_system`, `seeker_situation`, `seeker_problem` and `seeker_emotion` of a roles' wording.
    """
    about = [
        words[f"seeker_{key}"].format(**{key: getattr(seeker, key)})
        for key in ("situation", "problem", "emotion")
        if getattr(seeker, key)
    ]
    return words["seeker_system"].format(profile="\n".join([*about, *seeker.notes])).strip()


def seeker_messages(words: Mapping[str, str], seeker: SeekerProfile, turns: Sequence[Turn]) -> tuple[Message, ...]:
    """What a trained seeker answers: the turns so far, which end with the supporter's, or none.

    Args:
        words: those of `seeker_system`, and `start`.
    """
    messages = [Message("system", seeker_system(words, seeker))]
    if not turns or turns[0].speaker == "seeker":
        messages.append(Message("user", words["start"]))
    for turn in turns:
        role: Role = "assistant" if turn.speaker == "seeker" else "user"
        last = messages[-1]
        if last.role == role and len(messages) > 1:
            messages[-1] = Message(last.role, f"{last.content}\n{turn.reply.text}")
        else:
            messages.append(Message(role, turn.reply.text))
    return tuple(messages)


def seeker_reply(text: str, *, ends: bool) -> str:
    """What the seeker writes: its message, and where it ends the talk with it, `END` after it."""
    return f"{text} {END}".strip() if ends else text
