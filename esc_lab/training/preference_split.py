"""All preference turns of a split: what can be compared in it, and packed rows of its replies with pairs as indices."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from esc_lab.config.training import ObjectiveConfig
from esc_lab.errors import UserError
from esc_lab.seeds import derive_seed
from esc_lab.tokens import PackedRow, TokenSequence, pack_rows
from esc_lab.tokens.encode import IntArray
from esc_lab.training.objectives import objective_of
from esc_lab.training.preference_turns import PreferenceTurn

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PreferenceRow:
    """A packed row with what is compared in it.

    Attributes:
        row: the tokens. Equal replies after equal histories, of different trees, are one reply of the row.
        is_label: [N], bool, whether a reply token belongs to the strategy label.
        numbers: [K] numbers in the split of all replies that the row's stand for.
        reply_of: [K] which reply of the row that is.
        reference: [replies, 2] log-probability of label and text under the reference model, if they are known.
        chosen, rejected: [P] pairs as indices of the row's replies; of single replies (KTO) both are the reply.
        values: [P, 2] search values of chosen and rejected reply, NaN where there is none.
        desirable: [P], bool, whether the first of them is a preferred reply.
    """

    row: PackedRow
    is_label: npt.NDArray[np.bool_]
    numbers: IntArray
    reply_of: IntArray
    reference: FloatArray | None
    chosen: IntArray
    rejected: IntArray
    values: FloatArray
    desirable: npt.NDArray[np.bool_]


class PreferenceSplit:
    """The preference turns of a split, and everything that may be compared in it.

    Args:
        trees: the preference turns of each tree.
        objective: takes pairs or single replies; with a value margin only pairs whose replies are both judged, the
            chosen one not below the rejected one.

    Attributes:
        turns: by tree, depth first.
        comparisons: [C, 3] turn, chosen and rejected reply; of single replies turn and twice the reply.
        tree: [C] which tree each comparison belongs to.
        first_reply: [turns] number of each turn's first reply in the split.
        reference: [replies, 2], set once the reference log-probabilities are known.
    """

    def __init__(self, trees: Sequence[Sequence[PreferenceTurn]], objective: ObjectiveConfig) -> None:
        self.turns = [turn for tree in trees for turn in tree]
        if objective_of(objective).single_replies:
            _add_mismatched(self.turns)
        sizes = [len(turn.replies) for turn in self.turns]
        self.first_reply = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        members = [tree for tree, turns in enumerate(trees) for _ in turns]
        comparisons = [
            (number, *pair) for number, turn in enumerate(self.turns) for pair in _comparisons(turn, objective)
        ]
        self.comparisons = np.array(comparisons, dtype=np.int64).reshape(-1, 3)
        self.tree = np.array(members, dtype=np.int64)[self.comparisons[:, 0]]
        self.place = {
            reply.replies[0].key: (number, index)
            for number, turn in enumerate(self.turns)
            for index, reply in enumerate(turn.replies)
        }
        self.reference: FloatArray | None = None

    @property
    def sequences(self) -> list[TokenSequence]:
        """All replies of the split with their prompts, in the order of their numbers."""
        return [reply for turn in self.turns for reply in turn.replies]

    @property
    def content(self) -> str:
        """Hash of all token ids and of where replies and their labels end, in order."""
        digest = hashlib.sha256()
        for turn in self.turns:
            for sequence, label in zip(turn.replies, turn.label_tokens, strict=True):
                digest.update(f"{len(sequence.input_ids)} {sequence.replies[0].start} {label} ".encode())
                digest.update(sequence.input_ids.astype("<i8").tobytes())
        return digest.hexdigest()

    def row(self, packed: PackedRow, comparisons: Mapping[int, Sequence[tuple[int, int, int, int]]]) -> PreferenceRow:
        """A packed row of replies of this split with what is compared in it.

        Args:
            comparisons: by turn, from `by_turn`; those of other turns are left out.
        """
        places = [self.place[key] for keys in packed.keys for key in keys]
        reply_of = np.repeat(np.arange(len(packed.keys)), [len(keys) for keys in packed.keys])
        index = dict(zip(places, reply_of.tolist(), strict=True))
        numbers = np.array([self.first_reply[turn] + reply for turn, reply in places], dtype=np.int64)
        first = np.searchsorted(reply_of, np.arange(len(packed.keys)))  # replies of equal tokens have equal labels
        labels = np.array([self.turns[turn].label_tokens[reply] for turn, reply in places], dtype=np.int64)[first]
        starts = np.concatenate([[0], np.cumsum(np.bincount(packed.reply, minlength=len(labels)))[:-1]])
        within = np.arange(len(packed.reply)) - starts[packed.reply]
        here = sorted(entry for turn in {turn for turn, _ in places} for entry in comparisons.get(turn, ()))
        values = [(self.turns[turn].values[a], self.turns[turn].values[b]) for _, turn, a, b in here]
        return PreferenceRow(
            packed,
            within < labels[packed.reply],
            numbers,
            reply_of,
            None if self.reference is None else self.reference[numbers[first]],
            np.array([index[turn, a] for _, turn, a, _ in here], dtype=np.int64),
            np.array([index[turn, b] for _, turn, _, b in here], dtype=np.int64),
            np.array(values, dtype=np.float32).reshape(-1, 2),
            np.array([self.turns[turn].desirable[a] for _, turn, a, _ in here], dtype=np.bool_),
        )

    def reference_rows(self, row_tokens: int) -> list[PreferenceRow]:
        """Rows that hold every reply of the split once, with nothing to compare."""
        longest = max(len(sequence.input_ids) for sequence in self.sequences)
        return [self.row(packed, {}) for packed in pack_rows([self.sequences], max(row_tokens, longest))]


def by_turn(comparisons: IntArray) -> dict[int, list[tuple[int, int, int, int]]]:
    """Comparisons [C, 3] by their turn: (place among them, turn, chosen, rejected)."""
    turns: dict[int, list[tuple[int, int, int, int]]] = {}
    for place, (turn, chosen, rejected) in enumerate(comparisons.tolist()):
        turns.setdefault(turn, []).append((place, turn, chosen, rejected))
    return turns


def _comparisons(turn: PreferenceTurn, objective: ObjectiveConfig) -> list[tuple[int, int]]:
    if objective_of(objective).single_replies:
        return [(reply, reply) for reply in turn.desirable]
    if objective.value_margin:
        return [(a, b) for a, b in turn.pairs if turn.values[a] >= turn.values[b]]  # NaN compares as false
    return turn.pairs


def _add_mismatched(turns: Sequence[PreferenceTurn]) -> None:
    """Give every turn the first reply of another one, in an order that depends on the number of turns only.

    Raises:
        UserError: there is one turn only.
    """
    if len(turns) == 1:
        fix = "give it more dialogues, or choose a pair objective"
        raise UserError("KTO compares replies of different turns, but a split has one turn", fix=fix)
    order = np.random.default_rng(derive_seed(0, "mismatched replies")).permutation(len(turns))
    for number, other in zip(order, np.roll(order, 1), strict=True):
        turns[number].add_mismatched(turns[other])
