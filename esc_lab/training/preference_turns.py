"""Preferences of dialogue trees as token sequences: every distinct reply once, pairs as pairs of indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from esc_lab.data.corpora import unpaired_dialogues
from esc_lab.data.dialogue import Dialogue
from esc_lab.models.log_probs import join_reply
from esc_lab.prompts import Message, reply_content
from esc_lab.tokens import Example, ReplyTokens, TokenSequence, encode_examples, encode_labels
from esc_lab.tokens.examples import ReplyKey, find_reply
from esc_lab.training.steps import TurnEncoder

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

    def count(self, turn: PreferenceTurn) -> None:
        self.turns += 1
        self.pairs += len(turn.pairs)
        for chosen, rejected in turn.pairs:
            self.unjudged_pairs += bool(np.isnan(turn.values[chosen] + turn.values[rejected]))
            self.inverted_pairs += turn.values[chosen] < turn.values[rejected]
        self.desirable += sum(turn.desirable.values())
        self.undesirable += len(turn.desirable) - sum(turn.desirable.values())


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
        for number, reply in enumerate(self.replies):
            if np.array_equal(reply.input_ids, sequence.input_ids):
                return number
        self.replies.append(sequence)
        self.label_tokens.append(label_tokens)
        self.values.append(np.nan if value is None else value)
        return len(self.replies) - 1

    def add_mismatched(self, other: PreferenceTurn) -> None:
        """Put the first reply of another turn after this turn's prompt."""
        (own,), (foreign,) = self.replies[0].replies, other.replies[0].replies
        prompt, ids = self.replies[0].input_ids[: own.start], other.replies[0].input_ids[foreign.start : foreign.end]
        sequence = join_reply(prompt, ids, ReplyKey(own.key.dialogue, own.key.turn, -1))
        self.mismatched = self.add(sequence, other.label_tokens[0], None)


class PreferenceEncoder:
    """Makes the preference turns of a split's search trees.

    Args:
        turns: its `row_tokens` are the budget for all replies of a turn together with their prompt.
        report: counts to add to.
        single_replies: also take turns without a rejected reply, and rejected replies without a chosen one.
    """

    def __init__(self, turns: TurnEncoder, split: str, report: PreferenceReport, *, single_replies: bool) -> None:
        self.turns, self.encoded, self.report, self.single_replies = turns, turns.report(split), report, single_replies
        self._layout = turns.layout
        self._label_tokens: dict[str, int] = {}

    def encode_tree(self, dialogues: Sequence[Dialogue]) -> list[PreferenceTurn]:
        """The preference turns of the dialogues of one tree, in depth-first order.

        Raises:
            UserError: a turn with all its replies exceeds the budget.
        """
        turns: dict[bytes, PreferenceTurn] = {}
        for dialogue in dialogues:
            examples = self.turns.examples(dialogue)
            if not self.single_replies:
                examples = [example for example in examples if dialogue.turns[example.key.turn].rejected]
            self._add(turns, dialogue, examples, desirable=True)
            for alone in unpaired_dialogues(dialogue) if self.single_replies else ():
                self._add(turns, alone, self.turns.examples(alone)[-1:], desirable=False)
        kept = [turns[prompt] for prompt in sorted(turns) if self.single_replies or turns[prompt].pairs]
        for turn in kept:
            self.report.count(turn)
        return kept

    def _add(
        self, turns: dict[bytes, PreferenceTurn], dialogue: Dialogue, examples: Sequence[Example], *, desirable: bool
    ) -> None:
        """Add a dialogue's replies and pairs to the turns of its tree."""
        if not examples:
            return
        if not self._label_tokens:
            labels = encode_labels(self.turns.encoder, self.turns.inventory, examples[0].prompt)
            self._label_tokens = dict(zip(self.turns.inventory.names, map(len, labels), strict=True))
        gold = self._encode_gold(dialogue, examples)
        rejected = self._encode_rejected(dialogue, examples, gold)
        for example in examples:
            sequence = gold[example.key]
            prompt = sequence.input_ids[: sequence.replies[0].start]
            turn = turns.setdefault(prompt.astype(">i8").tobytes(), PreferenceTurn())
            chosen = turn.add(sequence, *self._describe(dialogue, example.key))
            turn.desirable.setdefault(chosen, desirable)
            for other in rejected.get(example.key, ()):
                index = turn.add(other, *self._describe(dialogue, other.replies[0].key))
                if index == chosen:
                    self.report.equal_pairs_dropped += 1
                elif (chosen, index) in turn.pairs:
                    self.report.shared_pairs += 1
                else:
                    turn.pairs.append((chosen, index))
                    turn.desirable.setdefault(index, False)

    def _encode_gold(self, dialogue: Dialogue, examples: Sequence[Example]) -> dict[ReplyKey, TokenSequence]:
        """Each turn's own reply as the end of a sequence that leaves room for the rejected ones beside it."""
        contents = [[self._content(dialogue, key) for key in _rejected_keys(dialogue, example)] for example in examples]
        texts = list(chain.from_iterable(contents))
        tokens = iter(self.turns.encoder.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
        room = max(sum(len(next(tokens)) + _AROUND_A_REPLY for _ in replies) for replies in contents)
        (sequences,) = encode_examples(self.turns.encoder, [examples], self.turns.row_tokens - room, self.encoded)
        return {
            reply.key: TokenSequence(sequence.input_ids[: reply.end], (replace(reply, spans=()),))
            for sequence in sequences
            for reply in sequence.replies
        }

    def _encode_rejected(
        self, dialogue: Dialogue, examples: Sequence[Example], gold: Mapping[ReplyKey, TokenSequence]
    ) -> dict[ReplyKey, list[TokenSequence]]:
        """The rejected replies of each turn after the same (perhaps shortened) history as its own reply."""
        encoder = self.turns.encoder
        chats, keys = [], []
        for example in examples:
            first_turn = gold[example.key].replies[0].first_turn
            prompt = encoder.adapt(example.from_turn(first_turn, encoder).prompt)
            for key in _rejected_keys(dialogue, example):
                chats.append(([*prompt.messages, Message("assistant", self._content(dialogue, key))], ()))
                keys.append((example.key, key))
        rejected: dict[ReplyKey, list[TokenSequence]] = {}
        for (turn, key), (messages, _), chat in zip(keys, chats, encoder.encode_many(chats), strict=True):
            start, end = chat.replies[len(messages) - 1]
            rejected.setdefault(turn, []).append(TokenSequence(chat.input_ids[:end], (ReplyTokens(key, start, end),)))
        return rejected

    def _content(self, dialogue: Dialogue, key: ReplyKey) -> str:
        reply = find_reply(dialogue, key)
        return reply_content(self._layout, reply.text, reply.strategies)

    def _describe(self, dialogue: Dialogue, key: ReplyKey) -> tuple[int, float | None]:
        """Label tokens and search value of a reply."""
        reply = find_reply(dialogue, key)
        return self._label_tokens[reply.strategies[0]] if reply.strategies else 0, reply.value


def _rejected_keys(dialogue: Dialogue, example: Example) -> list[ReplyKey]:
    turn = example.key.turn
    return [ReplyKey(dialogue.id, turn, number + 1) for number in range(len(dialogue.turns[turn].rejected))]
