"""Supporter turns of a dialogue as examples, and these as few token sequences for training and scoring.

Where the chat of one example continues in the next (as under the `cso` template, where a dialogue is one chat), a
single sequence carries both replies. What cannot be seen from the messages, such as two strategies under one history,
the trie finds later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from esc_lab.config import TemplateConfig
from esc_lab.data.dialogue import Dialogue, Reply
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.prompts import Layout, Message, Prompt, build_prompt, reply_content
from esc_lab.tokens.encode import ChatEncoder, EncodedChat, IntArray, TokenSpan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """A prompt and the reply to it.

    Attributes:
        key: the caller's own name for the example.
        starts: turns of the dialogue that a shortened history may start with, ascending.
        shortened: `shortened(start=turn)` is the prompt whose history starts with that turn.
        first_turn: turn of the dialogue that the history in `prompt` starts with.
    """

    prompt: Prompt
    reply: str
    key: Any = None
    starts: tuple[int, ...] = ()
    shortened: Callable[..., Prompt] | None = None
    first_turn: int = 0

    @property
    def messages(self) -> tuple[Message, ...]:
        return (*self.prompt.messages, Message("assistant", self.reply))

    def from_turn(self, start: int, encoder: ChatEncoder) -> Example:
        if start == 0:
            return self
        assert self.shortened is not None
        return replace(self, prompt=encoder.adapt(self.shortened(start=start)), first_turn=start)


@dataclass(frozen=True)
class ReplyTokens:
    """Tokens `start:end` of a sequence that are the reply of the example `key`, end-of-turn token included.

    `first_turn` is the turn of the dialogue that the history before it starts with: 0 unless it was shortened.
    """

    key: Any
    start: int
    end: int
    spans: tuple[TokenSpan, ...] = ()
    first_turn: int = 0


@dataclass(frozen=True)
class TokenSequence:
    """A root-to-leaf path of a token tree: ids [T] and the replies along it."""

    input_ids: IntArray
    replies: tuple[ReplyTokens, ...]


@dataclass
class EncodeReport:
    """What encoding did: examples in all, examples that lost old turns, turns lost (summed over these), tokens."""

    examples: int = 0
    truncated_examples: int = 0
    dropped_turns: int = 0
    encoded_tokens: int = 0

    def warn(self, purpose: str) -> None:
        """Say in the log how many histories were shortened, if any."""
        if self.truncated_examples:
            log.warning(
                "%s: %d of %d replies see a shortened history (%d turns dropped in all)",
                purpose, self.truncated_examples, self.examples, self.dropped_turns,
            )  # fmt: skip


@dataclass(frozen=True)
class ReplyKey:
    """A reply of a split: dialogue id, turn index, and 0 for the gold reply or n for the n-th rejected one."""

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
    layout: Layout,
    *,
    inference: str = "direct",
    score_opening: bool = False,
    min_turns: int = 0,
    history_turns: int | None = None,
    unlabelled: bool = False,
) -> list[Example]:
    """One example for each supporter decision that has a strategy: its prompt and its gold reply.

    Args:
        unlabelled: decisions without a strategy too, for evaluations that prompt others; the example's prompt names the
            strategy that takes the most words.
        min_turns: leave out decisions with fewer turns before them.
        history_turns: the prompts show at most this many of the last turns, from where the seeker begins to speak.
    """
    longest = max(inventory.strategies, key=lambda strategy: len(strategy.name + strategy.definition)).name
    examples = []
    for turn in dialogue.decisions(score_opening=score_opening):
        reply = dialogue.turns[turn].reply
        if not (reply.strategies or unlabelled) or turn < min_turns:
            continue
        prompt = partial(
            build_prompt,
            layout,
            inventory,
            dialogue,
            turn,
            reply.strategies[0] if reply.strategies else longest,
            history_labels=settings.history_labels,
            situation=settings.situation,
            inference=inference,
        )
        # Where a seeker begins to speak, after the first turn.
        sides = [before.speaker for before in dialogue.turns[:turn]]
        starts = tuple(i for i in range(1, turn) if (sides[i - 1], sides[i]) == ("supporter", "seeker"))
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


def encode_examples(
    encoder: ChatEncoder, groups: Sequence[Sequence[Example]], max_tokens: int, report: EncodeReport
) -> list[list[TokenSequence]]:
    """Encode the examples of each group (a dialogue or tree) as sequences of at most `max_tokens` tokens.

    Within a group, an example whose chat is the beginning of the next example's chat shares its sequence. A chat that
    is too long loses its oldest turns, never the system message or the last seeker message; what is left takes half of
    the free room, so that the replies that follow share one sequence again.

    Raises:
        UserError: a single reply with its system message and the last seeker message does not fit.
    """
    chains = [(number, chain) for number, group in enumerate(groups) for chain in _chains(encoder, group)]
    encoded = encoder.encode_many([(chain[-1].messages, chain[-1].prompt.spans) for _, chain in chains])
    result: list[list[TokenSequence]] = [[] for _ in groups]
    for (number, chain), chat in zip(chains, encoded, strict=True):
        report.examples += len(chain)
        if chat.replies[len(chain[-1].prompt.messages)][1] <= max_tokens:
            sequences = [_sequence(chain, chat)]
        else:
            sequences = _windows(encoder, chain, max_tokens, report)
        report.encoded_tokens += sum(len(sequence.input_ids) for sequence in sequences)
        result[number] += sequences
    return result


def _chains(encoder: ChatEncoder, group: Sequence[Example]) -> list[list[Example]]:
    """Runs of examples, each of whose chats begins the next one's."""
    chains: list[list[Example]] = []
    for example in group:
        adapted = replace(example, prompt=encoder.adapt(example.prompt))
        if chains and encoder.prefix_stable:
            previous = chains[-1][-1].messages
            if adapted.prompt.messages[: len(previous)] == previous:
                chains[-1].append(adapted)
                continue
        chains.append([adapted])
    return chains


def _sequence(chain: Sequence[Example], chat: EncodedChat, first_turn: int = 0) -> TokenSequence:
    """The chat up to the end of its last reply."""
    replies = [
        ReplyTokens(example.key, *chat.replies[len(example.prompt.messages)], chat.spans, first_turn)
        for example in chain
    ]
    return TokenSequence(chat.input_ids[: replies[-1].end], tuple(replies))


def _windows(
    encoder: ChatEncoder, chain: Sequence[Example], max_tokens: int, report: EncodeReport
) -> list[TokenSequence]:
    """A chain that is too long as several sequences: the replies that fit with all their history, then windows."""
    sequences = []
    rest, start = list(chain), 0
    while rest:
        window = [example.from_turn(start, encoder) for example in rest]
        chat = encoder.encode(window[-1].messages, window[-1].prompt.spans)
        fitting = sum(chat.replies[len(example.prompt.messages)][1] <= max_tokens for example in window)
        if fitting:
            sequences.append(_sequence(window[:fitting], chat, start))
            report.truncated_examples += fitting if start else 0
            report.dropped_turns += start * fitting
            rest = rest[fitting:]
        if rest:
            start = _window_start(encoder, rest[0], max_tokens)
    return sequences


def _window_start(encoder: ChatEncoder, example: Example, max_tokens: int) -> int:
    """The earliest turn from which the history takes half of the room at most that is left beside its last turns."""
    starts = (0, *example.starts)

    def size(start: int) -> int:
        shorter = example.from_turn(start, encoder)
        return encoder.encode(shorter.messages).replies[len(shorter.prompt.messages)][1]

    least = size(starts[-1])
    if least > max_tokens:
        what = f"its instruction, the last seeker message and the reply take {least} tokens, above the budget of"
        fix = "raise data.row_tokens (and model.context_tokens)"
        raise UserError(f"{what} {max_tokens}", where=f"{example.key}: {example.reply[:50]!r}", fix=fix)
    return next(start for start in starts if size(start) <= (least + max_tokens) // 2)
