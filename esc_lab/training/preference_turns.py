"""Preferences of dialogue trees as token sequences: every distinct reply once, pairs as pairs of indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from esc_lab.config import TemplateConfig
from esc_lab.data.corpora import unpaired_dialogues
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory
from esc_lab.prompts import Message, build_layout, reply_content
from esc_lab.tokens import (
    ChatEncoder,
    EncodeReport,
    Example,
    ReplyTokens,
    TokenSequence,
    encode_examples,
    encode_labels,
)
from esc_lab.tokens.supporter_turns import ReplyKey, build_examples, find_reply

# A chat template may put tokens around a reply that its text alone does not have.
_AROUND_A_REPLY = 8


@dataclass
class PreferenceReport:
    """Counts of what a split offers and of what was dropped.

    Attributes:
        turns: distinct supporter turns (prompts) with something to compare.
        pairs: preference pairs.
        shared_pairs: pairs that several dialogues of a tree have; each is one pair.
        equal_pairs_dropped: pairs whose rejected reply is the chosen one.
        unjudged_pairs, inverted_pairs: pairs with a reply that has no search value, or whose chosen reply has the
            lower value. They are dropped where the objective has a value margin.
        desirable, undesirable: replies that KTO learns from, one by one.
    """

    turns: int = 0
    pairs: int = 0
    shared_pairs: int = 0
    equal_pairs_dropped: int = 0
    unjudged_pairs: int = 0
    inverted_pairs: int = 0
    desirable: int = 0
    undesirable: int = 0


@dataclass
class PreferenceTurn:
    """A supporter turn: its prompt with each reply, and which of them are compared.

    Attributes:
        replies: prompt and reply as one sequence each; the reply is its end.
        label_tokens: for each reply how many of its first tokens are the strategy label.
        values: search value of each reply, NaN where there is none.
        pairs: (chosen, rejected) as indices of replies.
        desirable: reply index -> whether it is a preferred one.
        mismatched: index of a reply that belongs to another turn (KTO's reference point), if there is one.
    """

    replies: list[TokenSequence] = field(default_factory=list)
    label_tokens: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    desirable: dict[int, bool] = field(default_factory=dict)
    mismatched: int | None = None

    def add(self, sequence: TokenSequence, label_tokens: int, value: float | None) -> int:
        """Index of the reply; one that is there already is not added again."""
        for number, known in enumerate(self.replies):
            if np.array_equal(known.input_ids, sequence.input_ids):
                return number
        self.replies.append(sequence)
        self.label_tokens.append(label_tokens)
        self.values.append(np.nan if value is None else value)
        return len(self.replies) - 1

    def add_mismatched(self, other: PreferenceTurn) -> None:
        """Put the first reply of another turn after this turn's prompt."""
        (own,), (foreign,) = self.replies[0].replies, other.replies[0].replies
        ids = np.concatenate(
            [self.replies[0].input_ids[: own.start], other.replies[0].input_ids[foreign.start : foreign.end]]
        )
        reply = ReplyTokens(ReplyKey(own.key.dialogue, own.key.turn, -1), own.start, len(ids))
        self.replies.append(TokenSequence(ids, (reply,)))
        self.label_tokens.append(other.label_tokens[0])
        self.values.append(np.nan)
        self.mismatched = len(self.replies) - 1


class PreferenceEncoder:
    """Makes the preference turns of search trees.

    Args:
        encoded, report: counts to add to.
        row_tokens: budget of a row; the replies of a turn fit into it together with their prompt.
        unpaired: for objectives that take replies one by one; then turns without a rejected reply, and rejected
            replies without a chosen one, count as well.
    """

    def __init__(
        self,
        encoder: ChatEncoder,
        inventory: Inventory,
        prompt: TemplateConfig,
        encoded: EncodeReport,
        report: PreferenceReport,
        *,
        row_tokens: int,
        unpaired: bool = False,
    ) -> None:
        self.encoder, self.inventory, self.prompt = encoder, inventory, prompt
        self.layout = build_layout(prompt)
        self.encoded, self.report = encoded, report
        self.row_tokens, self.unpaired = row_tokens, unpaired
        self._label_tokens: dict[str, int] = {}

    def tree(self, dialogues: Sequence[Dialogue]) -> list[PreferenceTurn]:
        """The preference turns of the dialogues of one tree, in depth-first order.

        Raises:
            UserError: a turn with all its replies exceeds the budget.
        """
        turns: dict[bytes, PreferenceTurn] = {}
        for dialogue in dialogues:
            examples = [
                example
                for example in build_examples(dialogue, self.inventory, self.prompt)
                if self.unpaired or dialogue.turns[example.key.turn].rejected
            ]
            self._add(turns, dialogue, examples, desirable=True)
            for alone in unpaired_dialogues(dialogue) if self.unpaired else ():
                examples = build_examples(alone, self.inventory, self.prompt)[-1:]
                self._add(turns, alone, examples, desirable=False)
        found = [turns[prompt] for prompt in sorted(turns) if self.unpaired or turns[prompt].pairs]
        self._count(found)
        return found

    def _count(self, turns: Sequence[PreferenceTurn]) -> None:
        report = self.report
        report.turns += len(turns)
        for turn in turns:
            report.pairs += len(turn.pairs)
            for chosen, rejected in turn.pairs:
                report.unjudged_pairs += bool(np.isnan(turn.values[chosen] + turn.values[rejected]))
                report.inverted_pairs += turn.values[chosen] < turn.values[rejected]
            report.desirable += sum(turn.desirable.values())
            report.undesirable += len(turn.desirable) - sum(turn.desirable.values())

    def _add(
        self,
        turns: dict[bytes, PreferenceTurn],
        dialogue: Dialogue,
        examples: Sequence[Example],
        *,
        desirable: bool,
    ) -> None:
        """Add a dialogue's replies and pairs to the turns of its tree."""
        if not examples:
            return
        given = self._given(dialogue, examples)
        rejected = self._rejected(dialogue, examples, given)
        for example in examples:
            sequence, _ = given[example.key]
            prompt = sequence.input_ids[: sequence.replies[0].start]
            turn = turns.setdefault(prompt.astype(">i8").tobytes(), PreferenceTurn())
            chosen = turn.add(sequence, *self._describe(dialogue, example))
            turn.desirable.setdefault(chosen, desirable)
            for other, alternative in rejected.get(example.key, ()):
                index = turn.add(other, *self._describe(dialogue, alternative))
                if index == chosen:
                    self.report.equal_pairs_dropped += 1
                elif (chosen, index) in turn.pairs:
                    self.report.shared_pairs += 1
                else:
                    turn.pairs.append((chosen, index))
                    turn.desirable.setdefault(index, False)

    def _given(self, dialogue: Dialogue, examples: Sequence[Example]) -> dict[ReplyKey, tuple[TokenSequence, int]]:
        """Each chosen reply as the end of its sequence, and the turn that its history starts with."""
        alternatives = {
            example.key: [self._content(dialogue, key) for key in _rejected_keys(dialogue, example)]
            for example in examples
        }
        texts = list(chain.from_iterable(alternatives.values()))
        tokens = iter(self.encoder.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
        room = max(sum(len(next(tokens)) + _AROUND_A_REPLY for _ in contents) for contents in alternatives.values())
        (sequences,) = encode_examples(self.encoder, [examples], self.row_tokens - room, self.encoded)
        return {
            reply.key: (
                TokenSequence(sequence.input_ids[: reply.end], (ReplyTokens(reply.key, reply.start, reply.end),)),
                reply.first_turn,
            )
            for sequence in sequences
            for reply in sequence.replies
        }

    def _rejected(
        self, dialogue: Dialogue, examples: Sequence[Example], given: Mapping[ReplyKey, tuple[TokenSequence, int]]
    ) -> dict[ReplyKey, list[tuple[TokenSequence, ReplyKey]]]:
        """The rejected replies of each turn after the same (perhaps shortened) history as its chosen one."""
        chats, keys = [], []
        for example in examples:
            prompt = self.encoder.adapt(example.from_turn(given[example.key][1], self.encoder).prompt)
            for key in _rejected_keys(dialogue, example):
                chats.append(([*prompt.messages, Message("assistant", self._content(dialogue, key))], ()))
                keys.append((example.key, key))
        found: dict[ReplyKey, list[tuple[TokenSequence, ReplyKey]]] = {}
        for (owner, key), (messages, _), chat in zip(keys, chats, self.encoder.encode_many(chats), strict=True):
            start, end = chat.replies[len(messages) - 1]
            sequence = TokenSequence(chat.input_ids[:end], (ReplyTokens(key, start, end),))
            found.setdefault(owner, []).append((sequence, key))
        return found

    def _content(self, dialogue: Dialogue, key: ReplyKey) -> str:
        reply = find_reply(dialogue, key)
        return reply_content(build_layout(self.prompt), reply.text, reply.strategies)

    def _describe(self, dialogue: Dialogue, example: Example | ReplyKey) -> tuple[int, float | None]:
        """Label tokens and search value of a reply."""
        reply = find_reply(dialogue, example.key if isinstance(example, Example) else example)
        if isinstance(example, Example) and not self._label_tokens:
            labels = encode_labels(self.encoder, self.inventory, example.prompt)
            self._label_tokens = dict(zip(self.inventory.names, map(len, labels), strict=True))
        return self._label_tokens[reply.strategies[0]] if reply.strategies else 0, reply.value


def _rejected_keys(dialogue: Dialogue, example: Example) -> list[ReplyKey]:
    turn = example.key.turn
    return [ReplyKey(dialogue.id, turn, number + 1) for number in range(len(dialogue.turns[turn].rejected))]
