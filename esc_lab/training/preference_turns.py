"""Preferences of dialogue trees as token sequences: every distinct reply once, pairs as pairs of indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from esc_lab.data.corpora import unpaired_dialogues
from esc_lab.data.dialogue import Dialogue, Turn
from esc_lab.errors import UserError
from esc_lab.models.log_probs import join_reply
from esc_lab.prompts import Message, reply_content
from esc_lab.tokens import Example, ReplyTokens, TokenSequence, encode_examples
from esc_lab.tokens.examples import ReplyKey, find_reply
from esc_lab.tokens.mapped import map_ids
from esc_lab.training.objectives import Comparison
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
        tied_pairs_dropped: pairs whose replies have the same value: neither is the better one. Groups have no pairs.
        unjudged_pairs, inverted_pairs: pairs with a reply that has no search value, or whose chosen reply has the
            lower value. They are dropped where the objective has a value margin.
        groups: turns whose replies differ in search value, from which a group objective learns.
        flat_turns: turns with pairs that it leaves out, since fewer than two of their replies have a search value or
            all values are equal.
        desirable, undesirable: replies that KTO learns from, one by one.
        unlabelled_chosen, unlabelled_pairs: given replies left out since they have no strategy, and their pairs.
        unlabelled_rejected: rejected replies without a strategy, which are compared all the same.
        too_long_rejected: rejected replies left out since they exceed the budget (`data.too_long=drop`).
    """

    turns: int = 0
    pairs: int = 0
    shared_pairs: int = 0
    equal_pairs_dropped: int = 0
    tied_pairs_dropped: int = 0
    unjudged_pairs: int = 0
    inverted_pairs: int = 0
    groups: int = 0
    flat_turns: int = 0
    desirable: int = 0
    undesirable: int = 0
    unlabelled_chosen: int = 0
    unlabelled_pairs: int = 0
    unlabelled_rejected: int = 0
    too_long_rejected: int = 0

    def count(self, turn: PreferenceTurn) -> None:
        self.turns += 1
        self.pairs += len(turn.pairs)
        self.groups += bool(turn.siblings)
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

    @property
    def siblings(self) -> list[int]:
        """The replies that have a search value, from the best to the worst; none if no two of them differ in it."""
        valued = [number for number, value in enumerate(self.values) if not np.isnan(value)]
        valued.sort(key=lambda number: -self.values[number])
        return valued if valued and self.values[valued[0]] > self.values[valued[-1]] else []

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


def map_replies(turns: Sequence[PreferenceTurn]) -> None:
    """Keep the token ids of all replies, each with its prompt, in a file."""
    ids = iter(map_ids([reply.input_ids for turn in turns for reply in turn.replies]))
    for turn in turns:
        turn.replies = [replace(reply, input_ids=next(ids)) for reply in turn.replies]


class PreferenceEncoder:
    """Makes the preference turns of a split's search trees.

    Args:
        turns: its `row_tokens` are the budget for all replies of a turn together with their prompt.
        report: counts to add to.
        compares: what the objective compares. For single replies also turns without a rejected reply are taken, and
            rejected replies without a chosen one; for groups all turns with replies of different search values.
    """

    def __init__(self, turns: TurnEncoder, split: str, report: PreferenceReport, compares: Comparison) -> None:
        self.turns, self.encoded, self.report, self.compares = turns, turns.report(split), report, compares
        self.single_replies = compares == "replies"
        self._layout = turns.layout
        self._label_tokens: dict[str, int] = {}

    def encode_tree(self, dialogues: Sequence[Dialogue]) -> list[PreferenceTurn]:
        """The preference turns of the dialogues of one tree, in depth-first order.

        Raises:
            UserError: a turn with all its replies exceeds the budget.
        """
        turns: dict[bytes, PreferenceTurn] = {}
        self._count_unlabelled(dialogues)
        for dialogue in dialogues:
            examples = self.turns.examples(dialogue)
            if self.compares == "pairs":
                examples = [example for example in examples if dialogue.turns[example.key.turn].rejected]
            self._add(turns, dialogue, examples, desirable=True)
            for alone in unpaired_dialogues(dialogue) if self.single_replies else ():
                self._add(turns, alone, self.turns.examples(alone)[-1:], desirable=False)
        kept = [turns[prompt] for prompt in sorted(turns) if self._offers_comparison(turns[prompt])]
        if self.compares == "groups":
            self.report.flat_turns += sum(bool(turn.pairs) and not turn.siblings for turn in turns.values())
        for turn in kept:
            self.report.count(turn)
        return kept

    def _offers_comparison(self, turn: PreferenceTurn) -> bool:
        return {"pairs": bool(turn.pairs), "replies": True, "groups": bool(turn.siblings)}[self.compares]

    def _count_unlabelled(self, dialogues: Sequence[Dialogue]) -> None:
        """Count what the dialogues of a tree have no label for, a turn that several of them share once."""
        seen: set[tuple[Turn, ...]] = set()
        for dialogue in dialogues:
            for turn in dialogue.decisions():
                reply, rejected = dialogue.turns[turn].reply, dialogue.turns[turn].rejected
                bare = sum(not other.strategies for other in rejected)
                if (reply.strategies and not bare) or not (rejected or self.single_replies):
                    continue
                path = dialogue.turns[: turn + 1]
                if path in seen:
                    continue
                seen.add(path)
                if reply.strategies:
                    self.report.unlabelled_rejected += bare
                else:
                    self.report.unlabelled_chosen += 1
                    self.report.unlabelled_pairs += len(rejected)

    def _add(
        self, turns: dict[bytes, PreferenceTurn], dialogue: Dialogue, examples: Sequence[Example], *, desirable: bool
    ) -> None:
        """Add a dialogue's replies and pairs to the turns of its tree."""
        if not examples:
            return
        if not self._label_tokens:
            self._label_tokens = self.turns.count_label_tokens(examples[0])
        sizes = self._count_tokens(dialogue, examples)
        compared = {example.key: self._find_rejected(dialogue, example, sizes[example.key]) for example in examples}
        gold = self._encode_gold(dialogue, examples, compared)
        examples = [example for example in examples if example.key in gold]
        rejected = self._encode_rejected(dialogue, examples, gold, compared)
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
                elif self.compares == "pairs" and turn.values[index] == turn.values[chosen]:
                    self.report.tied_pairs_dropped += 1
                elif (chosen, index) in turn.pairs:
                    self.report.shared_pairs += 1
                else:
                    turn.pairs.append((chosen, index))
                    turn.desirable.setdefault(index, False)

    def _count_tokens(self, dialogue: Dialogue, examples: Sequence[Example]) -> dict[ReplyKey, dict[ReplyKey, int]]:
        """The rejected replies of each turn with the most tokens that each may take."""
        keys = [
            ReplyKey(dialogue.id, example.key.turn, number + 1)
            for example in examples
            for number in range(len(dialogue.turns[example.key.turn].rejected))
        ]
        texts = [self._content(dialogue, key) for key in keys]
        tokens = self.turns.encoder.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ()
        sizes: dict[ReplyKey, dict[ReplyKey, int]] = {example.key: {} for example in examples}
        for key, ids in zip(keys, tokens, strict=True):
            sizes[replace(key, alternative=0)][key] = len(ids) + _AROUND_A_REPLY
        return sizes

    def _find_rejected(self, dialogue: Dialogue, example: Example, sizes: dict[ReplyKey, int]) -> dict[ReplyKey, int]:
        """The rejected replies of a turn that fit beside its own, with the most tokens that each may take.

        Raises:
            UserError: the longest of them leaves no room for the turn's own reply.
        """
        budget = self.turns.row_tokens
        if sum(sizes.values()) <= budget // 2:
            return sizes
        encoder, start = self.turns.encoder, (0, *example.starts)[-1]
        shortest = example.from_turn(start, encoder)
        messages = (*encoder.adapt(shortest.prompt).messages, Message("assistant", example.reply))
        beside = len(encoder.encode(messages, where=example.where).input_ids)
        while sizes and beside <= budget < beside + sum(sizes.values()):
            longest = max(sizes, key=lambda key: sizes[key])
            if not self.turns.drop_too_long:
                place = f"{example.place}, rejected reply {longest.alternative}"
                others = beside + sum(sizes.values()) - sizes[longest]
                what = (
                    f"it takes {sizes[longest] - _AROUND_A_REPLY} tokens, and the instruction, the last seeker message "
                    f"and the other replies {others}, above the budget of {budget}"
                )
                fix = "raise data.row_tokens (and model.context_tokens), or leave such replies out: data.too_long=drop"
                raise UserError(what, where=f"{place}: {find_reply(dialogue, longest).text[:50]!r}", fix=fix)
            del sizes[longest]
            self.report.too_long_rejected += 1
        return sizes

    def _encode_gold(
        self, dialogue: Dialogue, examples: Sequence[Example], compared: Mapping[ReplyKey, Mapping[ReplyKey, int]]
    ) -> dict[ReplyKey, TokenSequence]:
        """Each turn's own reply as the end of a sequence that leaves room for the rejected ones beside it."""
        room = max(sum(sizes.values()) for sizes in compared.values())
        (sequences,) = encode_examples(
            self.turns.encoder, [examples], self.turns.row_tokens - room, self.encoded, drop=self.turns.drop_too_long
        )
        return {
            reply.key: TokenSequence(sequence.input_ids[: reply.end], (replace(reply, spans=()),))
            for sequence in sequences
            for reply in sequence.replies
        }

    def _encode_rejected(
        self,
        dialogue: Dialogue,
        examples: Sequence[Example],
        gold: Mapping[ReplyKey, TokenSequence],
        compared: Mapping[ReplyKey, Mapping[ReplyKey, int]],
    ) -> dict[ReplyKey, list[TokenSequence]]:
        """The rejected replies of each turn after the same (perhaps shortened) history as its own reply."""
        encoder = self.turns.encoder
        chats, keys, places = [], [], []
        for example in examples:
            first_turn = gold[example.key].replies[0].first_turn
            prompt = encoder.adapt(example.from_turn(first_turn, encoder).prompt)
            for key in compared[example.key]:
                chats.append(([*prompt.messages, Message("assistant", self._content(dialogue, key))], ()))
                keys.append((example.key, key))
                places.append(example.where)
        rejected: dict[ReplyKey, list[TokenSequence]] = {}
        encoded = encoder.encode_many(chats, places)
        for (turn, key), (messages, _), chat in zip(keys, chats, encoded, strict=True):
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
