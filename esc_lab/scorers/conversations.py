"""Conversations as a reward model reads them: a short instruction, the chat so far, and a reply up to its end of turn.

What the supporter says before the seeker has spoken is not shown, as to other judges. Where a history is too long its
oldest turns are left out, by a rule that looks at the history alone: so the replies to one history all follow the same
tokens, in whatever company they are read, and those of a dialogue share most of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile
from typing import Any, NamedTuple

import numpy as np

from esc_lab.data.dialogue import Reply, Turn
from esc_lab.errors import UserError
from esc_lab.prompts import Message, Prompt, history_messages, label_text
from esc_lab.tokens import ChatEncoder, ReplyTokens, TokenSequence

WORDS = ("role", "pause", "start")  # of a prompt's wording that it takes


class Candidate(NamedTuple):
    """A reply to the turns before index `turn` of a dialogue, under a key of the caller's own."""

    turn: int
    reply: Reply
    key: Any


@dataclass
class ConversationReport:
    """What encoding did.

    Attributes:
        replies: encoded ones.
        shortened: those whose history lost its oldest turns.
        cut: those that were longer than `reply_tokens`.
        tokens: of all of them, each with a history of its own.
    """

    replies: int = 0
    shortened: int = 0
    cut: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class ConversationEncoder:
    """Encodes replies after what was said before them.

    Attributes:
        words: `WORDS` of a prompt's wording.
        strategy_text: replies, in the history too, begin with their first strategy: `(strategy) text`. A reply without
            words is its strategy in any case.
        history_tokens: longest history, the instruction and the beginning of a reply included.
        reply_tokens: longest reply, its end of turn included.
    """

    encoder: ChatEncoder
    words: Mapping[str, str]
    strategy_text: bool
    history_tokens: int
    reply_tokens: int
    report: ConversationReport = field(default_factory=ConversationReport, compare=False)

    def encode(self, turns: Sequence[Turn], candidates: Sequence[Candidate], where: str = "") -> list[TokenSequence]:
        """Each candidate after the turns before it, as a sequence that ends with its end-of-turn token.

        Raises:
            UserError: a message holds a special token, or the last message before a reply is too long.
        """
        if not candidates:
            return []
        starts = self._history_starts(turns[: max(each.turn for each in candidates)], where)
        chats = [self._chat(turns[starts[each.turn] : each.turn], each.reply) for each in candidates]
        encoded = self.encoder.encode_many([(chat, ()) for chat in chats], [where] * len(chats))
        sequences = []
        for each, chat, tokens in zip(candidates, chats, encoded, strict=True):
            start, end = tokens.replies[len(chat) - 1]
            ids = tokens.input_ids[:end]
            if end - start > self.reply_tokens:
                ids = np.concatenate([ids[: start + self.reply_tokens - 1], ids[-1:]])
                self.report.cut += 1
            self.report.replies += 1
            self.report.shortened += starts[each.turn] > 0
            self.report.tokens += len(ids)
            sequences.append(TokenSequence(ids, (ReplyTokens(each.key, start, len(ids), (), starts[each.turn]),)))
        return sequences

    def _history_starts(self, turns: Sequence[Turn], where: str) -> dict[int, int]:
        """For each index of a supporter turn, and one past the last turn, the first turn of the history before it.

        A history begins where the one before it does. Where it is too long then it begins anew, with the earliest
        seeker's turn from which it takes half of the room, so that the histories after it begin there too.
        """
        room = self.history_tokens
        places = [index for index, turn in enumerate(turns) if turn.speaker == "supporter"] + [len(turns)]
        begins = [0] + [
            index
            for index in range(1, len(turns))
            if (turns[index - 1].speaker, turns[index].speaker) == ("supporter", "seeker")
        ]
        starts: dict[int, int] = {}
        start = 0
        sizes = self._prompt_sizes(turns, 0, where)
        for place in places:
            if sizes[place] > room:
                for begin in (begin for begin in begins if start < begin < place):
                    start, sizes = begin, self._prompt_sizes(turns, begin, where)
                    if sizes[place] <= room // 2:
                        break
                if sizes[place] > room:
                    what = f"the messages before it take {sizes[place]} tokens, above the {room} that replies leave"
                    fix = "raise data.row_tokens (and model.context_tokens), or lower reward.reply_tokens"
                    raise UserError(what, where=f"{where}, turn {place + 1}".removeprefix(", "), fix=fix)
            starts[place] = start
        return starts

    def _prompt_sizes(self, turns: Sequence[Turn], start: int, where: str) -> dict[int, int]:
        """Tokens of the history from turn `start` before each supporter turn, and before one past the last turn."""
        chat = self._chat(turns[start:], Reply("."))
        encoded = self.encoder.encode(chat, where=where)
        sizes = {}
        for index in range(start, len(turns) + 1):
            if index == len(turns) or turns[index].speaker == "supporter":
                before = len(self._chat(turns[start:index], Reply("."))) - 1
                sizes[index] = encoded.replies[before][0] if before in encoded.replies else 0
        return sizes

    def _chat(self, history: Sequence[Turn], reply: Reply) -> tuple[Message, ...]:
        heard = [*dropwhile(lambda turn: turn.speaker == "supporter", history)]
        messages = history_messages(heard, self.words, labels=self.strategy_text)
        prompt = self.encoder.adapt(Prompt((Message("system", self.words["role"]), *messages)))
        named = reply.strategies[:1] if self.strategy_text or not reply.text else ()
        text = " ".join([*map(label_text, named), *([reply.text] if reply.text else [])])
        return (*prompt.messages, Message("assistant", text))


def take_words(wording: Mapping[str, str]) -> dict[str, str]:
    """What a conversation encoder needs of a prompt's wording."""
    return {name: wording[name] for name in WORDS}
