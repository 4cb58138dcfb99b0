"""Supporter turns of a dialogue as examples, and these as few token sequences for training and scoring.

Where the chat of one example continues in the next (as under the `cso` template, where a dialogue is one chat), a
single sequence carries both replies. What cannot be seen from the messages, such as two strategies under one history,
the trie finds later.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from esc_lab.config import TemplateConfig
from esc_lab.data.dialogue import Dialogue, Reply
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.prompts import Layout, Message, Prompt, Span, build_prompt, reply_content
from esc_lab.tokens.encode import ChatEncoder, EncodedChat, IntArray, TokenSpan

log = logging.getLogger(__name__)

_CHARACTERS = 16  # no text has as many to a token, on average


class TooLongError(UserError):
    """A reply does not fit into the budget, even with the shortest history."""


@dataclass(frozen=True)
class Example:
    """A prompt and the reply to it.

    Attributes:
        key: the caller's own name for the example.
        starts: turns of the dialogue that a shortened history may start with, ascending.
        shortened: `shortened(start=turn)` is the prompt whose history starts with that turn.
        first_turn: turn of the dialogue that the history in `prompt` starts with.
        where: file and record of the dialogue, if it was read from one.
    """

    prompt: Prompt
    reply: str
    key: Any = None
    starts: tuple[int, ...] = ()
    shortened: Callable[..., Prompt] | None = None
    first_turn: int = 0
    where: str = ""

    @property
    def place(self) -> str:
        """Where the reply stands, for error messages."""
        return f"{self.where}, turn {self.key.turn + 1}" if self.where else str(self.key)

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
    """What encoding did.

    Attributes:
        examples: in all.
        truncated_examples, dropped_turns: examples that lost old turns, and these turns, summed over them.
        too_long_dropped: replies left out since they do not fit with the shortest history (`data.too_long=drop`).
        encoded_tokens: of all sequences.
    """

    examples: int = 0
    truncated_examples: int = 0
    dropped_turns: int = 0
    too_long_dropped: int = 0
    encoded_tokens: int = 0

    def warn(self, purpose: str) -> None:
        """Say in the log how many histories were shortened and how many replies left out, if any."""
        if self.too_long_dropped:
            log.warning("%s: %d replies left out, too long (data.too_long=drop)", purpose, self.too_long_dropped)
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
    last: bool = False,
) -> list[Example]:
    """One example for each supporter decision that has a strategy: its prompt and its gold reply.

    Args:
        last: only the decision that ends the dialogue; where its reply has no strategy, its prompt names none.
        unlabelled: decisions without a strategy too, for evaluations that prompt others; the example's prompt names the
            strategy that takes the most words.
        min_turns: leave out decisions with fewer turns before them.
        history_turns: the prompts show at most this many of the last turns, from where the seeker begins to speak.
    """
    longest = max(inventory.strategies, key=lambda strategy: len(strategy.name + strategy.definition)).name
    sides = [turn.speaker for turn in dialogue.turns]
    # Where a seeker begins to speak, after the first turn.
    all_starts = [i for i in range(1, len(sides)) if (sides[i - 1], sides[i]) == ("supporter", "seeker")]
    examples = []
    for turn in dialogue.decisions(score_opening=score_opening):
        reply, others = dialogue.turns[turn].reply, last and turn < len(dialogue.turns) - 1
        unconditional = last and not (reply.strategies or layout.chooses_strategy)
        if not (reply.strategies or unlabelled or unconditional) or others or turn < min_turns:
            continue
        prompt = partial(
            build_prompt, layout, inventory, dialogue, turn, reply.strategies[0] if reply.strategies else longest,
            history_labels=settings.history_labels, situation=settings.situation, inference=inference,
            unconditional=unconditional,
        )  # fmt: skip
        starts = tuple(all_starts[: bisect_left(all_starts, turn)])
        first = 0 if history_turns is None else next((s for s in (0, *starts) if turn - s <= history_turns), starts[-1])
        examples.append(
            Example(
                prompt(start=first),
                reply_content(layout, reply.text, reply.strategies),
                ReplyKey(dialogue.id, turn),
                tuple(start for start in starts if start > first),
                prompt,
                first,
                dialogue.where,
            )
        )
    return examples


def encode_examples(
    encoder: ChatEncoder,
    groups: Sequence[Sequence[Example]],
    max_tokens: int,
    report: EncodeReport,
    *,
    drop: bool = False,
) -> list[list[TokenSequence]]:
    """Encode the examples of each group (a dialogue or tree) as sequences of at most `max_tokens` tokens.

    Within a group, an example whose chat is the beginning of the next example's chat shares its sequence. A chat that
    is too long loses its oldest turns, never the system message or the last seeker message; what is left takes half of
    the free room, so that the replies that follow share one sequence again.

    Args:
        drop: leave out, and count, a reply that does not fit with its system message and the last seeker message.

    Raises:
        UserError: there is such a reply, or a message holds a special token.
    """
    chains = [(number, chain) for number, group in enumerate(groups) for chain in _chains(encoder, group)]
    short = [chain for _, chain in chains if not _is_far_above(chain[-1], max_tokens)]
    chats = iter(encoder.encode_many([_chat(chain[-1]) for chain in short], [chain[-1].where for chain in short]))
    result: list[list[TokenSequence]] = [[] for _ in groups]
    for number, chain in chains:
        report.examples += len(chain)
        chat = None if _is_far_above(chain[-1], max_tokens) else next(chats)
        sequences = _windows(encoder, chain, chat, max_tokens, report, drop=drop)
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
    replies = []
    for example in chain:
        start, end = chat.replies[len(example.prompt.messages)]
        own = tuple(span for span in chat.spans if span.end <= start)  # none of later messages
        replies.append(ReplyTokens(example.key, start, end, own, first_turn))
    return TokenSequence(chat.input_ids[: replies[-1].end], tuple(replies))


def _windows(
    encoder: ChatEncoder,
    chain: Sequence[Example],
    chat: EncodedChat | None,
    max_tokens: int,
    report: EncodeReport,
    *,
    drop: bool,
) -> list[TokenSequence]:
    """The replies of a chain that fit with all their history, and where some do not, windows of its history.

    Args:
        chat: the whole chain, if it was encoded.
    """
    sequences = []
    rest, start = list(chain), 0
    window: Sequence[Example] = chain
    while rest:
        if chat is None:
            window, chat = _window(encoder, rest, start, max_tokens)
        fitting = sum(chat.replies[len(example.prompt.messages)][1] <= max_tokens for example in window) if chat else 0
        if chat and fitting:
            sequences.append(_sequence(window[:fitting], chat, start))
            report.truncated_examples += fitting if start else 0
            report.dropped_turns += start * fitting
            rest = rest[fitting:]
        chat = None
        while rest:
            try:
                start = _window_start(encoder, rest[0], max_tokens)
                break
            except TooLongError:
                if not drop:
                    raise
                report.too_long_dropped += 1
                rest = rest[1:]
    return sequences


def _window(
    encoder: ChatEncoder, rest: Sequence[Example], start: int, max_tokens: int
) -> tuple[Sequence[Example], EncodedChat | None]:
    """Examples with a history from turn `start`, as many as the budget holds and perhaps some more, as one chat."""
    count = 8
    while True:
        window = [example.from_turn(start, encoder) for example in rest[:count]]
        window = [example for example in window if not _is_far_above(example, max_tokens)]
        if not window:
            return (), None
        chat = encoder.encode(*_chat(window[-1]), where=window[-1].where)
        if len(window) < count or chat.replies[len(window[-1].prompt.messages)][1] > max_tokens:
            return window, chat
        count *= 2


def _window_start(encoder: ChatEncoder, example: Example, max_tokens: int) -> int:
    """The earliest turn from which the history takes half of the room at most that is left beside its last turns.

    Looked for from the end, in growing steps: a long history costs no more than a short one.
    """
    starts = (0, *example.starts)

    def size(index: int) -> int:
        shorter = example.from_turn(starts[index], encoder)
        return encoder.encode(shorter.messages, where=example.where).replies[len(shorter.prompt.messages)][1]

    fits, above, step = len(starts) - 1, -1, 1
    least = size(fits)
    if least > max_tokens:
        what = f"its instruction, the last seeker message and the reply take {least} tokens, above the budget of"
        fix = "raise data.row_tokens (and model.context_tokens), or leave such replies out: data.too_long=drop"
        raise TooLongError(f"{what} {max_tokens}", where=f"{example.place}: {example.reply[:50]!r}", fix=fix)
    room = (least + max_tokens) // 2
    while fits and above < 0:
        index = max(fits - step, 0)
        if size(index) <= room:
            fits, step = index, 2 * step
        else:
            above = index
    return starts[bisect_left(range(fits), True, above + 1, key=lambda index: size(index) <= room)]


def _is_far_above(example: Example, max_tokens: int) -> bool:
    """Whether a chat has so many characters that it need not be encoded to know that it is too long."""
    return sum(len(message.content) for message in example.messages) > _CHARACTERS * max_tokens


def _chat(example: Example) -> tuple[Sequence[Message], Sequence[Span]]:
    return example.messages, example.prompt.spans
