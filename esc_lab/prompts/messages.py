"""A talk as Python code gives it (a text, messages, turns or a dialogue), as the dialogue that prompts are built of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.prompts.chat import parse_reply

# What the seeker says, messages with `role` (user, assistant) and `content`, turns, or a dialogue.
Talk: TypeAlias = str | Sequence[Mapping[str, str]] | Sequence[Turn] | Dialogue

_SPEAKERS: Mapping[str, Any] = {"user": "seeker", "assistant": "supporter"}


def build_talk(talk: Talk, inventory: Inventory, turn: int | None = None) -> Dialogue:
    """A talk up to the reply that is to be written.

    Args:
        turn: the turn to be written, by its index; None: the one after the last.

    >>> from esc_lab.data.strategies import load_inventory
    >>> messages = [{"role": "assistant", "content": "(Question) What is it?"}, {"role": "user", "content": "My job."}]
    >>> [(each.speaker, each.reply.strategies) for each in build_talk(messages, load_inventory("esconv")).turns]
    [('supporter', ('Question',)), ('seeker', ())]

    Raises:
        UserError: it is none, or does not end with the seeker.
    """
    if isinstance(talk, Dialogue):
        dialogue = talk
    else:
        messages = [{"role": "user", "content": talk}] if isinstance(talk, str) else talk
        turns = [_read_turn(message, inventory, number) for number, message in enumerate(messages, 1)]
        dialogue = Dialogue(tuple(turns), inventory.name)
    shown = replace(dialogue, turns=dialogue.turns[:turn])
    if not shown.turns or shown.turns[-1].speaker != "seeker":
        what = "the last turn is the supporter's" if shown.turns else "there is no turn"
        fix = "end with what the seeker says, or say which turn is to be written: turn=N"
        raise UserError(what, where="talk", fix=fix)
    return shown


def _read_turn(message: Any, inventory: Inventory, number: int) -> Turn:
    if isinstance(message, Turn):
        return message
    speaker = _SPEAKERS.get(message.get("role", "")) if isinstance(message, Mapping) else None
    text = message.get("content") if speaker else None
    if not isinstance(text, str) or not text.strip():
        fix = "a text, turns, or {'role': 'user' or 'assistant', 'content': TEXT}; the template has the system message"
        raise UserError(f"no message: {str(message)[:80]}", where=f"talk, message {number}", fix=fix)
    if speaker == "seeker":
        return Turn("seeker", Reply(text.strip()))
    strategy, words = parse_reply(text, inventory)
    return Turn("supporter", Reply(words, (strategy,) if strategy else ()))
