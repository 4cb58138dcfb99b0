"""Supporter turns of dialogues as chats: what a model is shown, the reply, and the replies that were rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from esc_lab.data.corpora.esc_pro import as_message
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.prompts import Message, history_messages


@dataclass(frozen=True)
class Chat:
    """A supporter turn. Its replies, and the supporter's messages before them, are `(strategy) text`.

    Attributes:
        messages: an optional system message; then user and assistant take turns, the user first and last.
        reply: the one that was given.
        rejected: others, none of them equal to it.
        situation, problem: of the dialogue.
        last: whether no other supporter turn of the dialogue follows.
    """

    messages: tuple[Message, ...]
    reply: str
    rejected: tuple[str, ...]
    situation: str
    problem: str
    last: bool


def build_chats(
    dialogues: Sequence[Dialogue], wording: Mapping[str, str], system: str, lost: Counter[str]
) -> list[Chat]:
    """The decisions of dialogues as chats, in order; each chat has the messages that prompts of trainings here have.

    Args:
        wording: of messages that no one wrote (`opening`, `pause`, `start`), see `history_messages`.
        system: a system message; empty for none.
        lost: takes the counts of what chats cannot hold, by kind.
    """
    head = (Message("system", system),) if system else ()
    chats: list[Chat] = []
    for dialogue in dialogues:
        decisions = [*dialogue.decisions()]
        turns = [replace(turn, reply=Reply(_content(turn.reply, turn))) for turn in dialogue.turns]
        for index in decisions:
            turn = dialogue.turns[index]
            reply = turns[index].reply.text
            others = [_content(other, turn) for other in turn.rejected]
            different = tuple(dict.fromkeys(other for other in others if other != reply))
            lost["rejected replies equal to the given or to another one"] += len(others) - len(different)
            messages = head + history_messages(turns[:index], wording, labels=False)
            chats.append(Chat(messages, reply, different, dialogue.situation, dialogue.problem, index == decisions[-1]))
        _count_lost(dialogue, decisions, lost)
    return chats


def _content(reply: Reply, turn: Turn) -> str:
    return as_message(Turn(turn.speaker, reply))["content"]


def _count_lost(dialogue: Dialogue, decisions: Sequence[int], lost: Counter[str]) -> None:
    """What of a dialogue stands in none of its chats, or in another way."""
    supporter = [turn for turn in dialogue.turns if turn.speaker == "supporter"]
    openings = supporter[: len(supporter) - len(decisions)]
    replies = [reply for turn in supporter for reply in (turn.reply, *turn.rejected)]
    lost["openings quoted in the first message"] += bool(openings)
    lost["rejected replies of openings"] += sum(len(turn.rejected) for turn in openings)
    lost["further strategies"] += sum(len(reply.strategies) > 1 for reply in replies)
    lost["values or visits"] += sum(reply.value is not None or reply.visits is not None for reply in replies)
    lost["surveys"] += dialogue.survey is not None
    end = decisions[-1] + 1 if decisions else 0
    lost["turns after the last reply"] += len(dialogue.turns) - end
