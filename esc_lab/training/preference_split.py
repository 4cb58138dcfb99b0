"""What can be compared in a split, and packed rows that hold every reply once with comparisons as indices."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog  # type: ignore[import-untyped]

from esc_lab.config.training import ObjectiveConfig
from esc_lab.errors import UserError
from esc_lab.seeds import derive_seed
from esc_lab.statistics.intervals import BoolArray, FloatArray
from esc_lab.tokens import PackedRow, TokenSequence
from esc_lab.tokens.encode import IntArray
from esc_lab.training.objectives import objective_of
from esc_lab.training.preference_turns import PreferenceTurn


@dataclass(frozen=True)
class PreferenceRow:
    """A packed row with what is compared in it.

    Attributes:
        row: the tokens. Equal replies after equal histories, of different trees, are one reply of the row.
        lengths, label_tokens: [replies] tokens of each reply of the row, and how many of them, the first, are its
            strategy label.
        reply_of: [K] for each reply of the split that is in the row, which of the row's it is.
        reference: [N] log-probability of each reply token under the reference model, if they are known.
        members: [P, 2] pairs as indices of the row's replies, chosen and rejected; of single replies (KTO) both are the
            reply. [P, K] siblings of groups: the best, the worst, then the others; any where there are fewer than K.
        values: search values of the members, NaN where there is none.
        desirable: [P], bool, whether the first of them is a preferred reply.
    """

    row: PackedRow
    lengths: IntArray
    label_tokens: IntArray
    reply_of: IntArray
    reference: FloatArray | None
    members: IntArray
    values: FloatArray
    desirable: BoolArray

    @property
    def chosen(self) -> IntArray:
        """[P], as members."""
        return self.members[:, 0]

    @property
    def rejected(self) -> IntArray:
        """[P], as members."""
        return self.members[:, 1]


class PreferenceSplit:
    """The preference turns of a split, and all that may be compared in it.

    Args:
        trees: the preference turns of each tree.
        objective: takes pairs, single replies or groups; with a value margin only pairs whose replies are both judged,
            the chosen one not below the rejected one.

    Attributes:
        turns: by tree, depth first.
        comparisons: [C, 3] turn, chosen and rejected reply; of single replies turn and twice the reply; of groups turn,
            best and worst reply.
        tree: [C] which tree each comparison belongs to.
        first_reply: [turns] number of each turn's first reply in the split.
        first_token: [replies + 1] number of each reply's first token among those of all replies of the split.
        reference: [tokens] log-probabilities of these tokens under the reference model, set once they are known.
    """

    def __init__(self, trees: Sequence[Sequence[PreferenceTurn]], objective: ObjectiveConfig) -> None:
        self.turns = [turn for tree in trees for turn in tree]
        self.compares = objective_of(objective).compares
        if self.compares == "replies":
            _add_mismatched(self.turns)
        sizes = [len(turn.replies) for turn in self.turns]
        self.first_reply = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        tokens = [len(reply.input_ids) - reply.replies[0].start for reply in self.sequences]
        self.first_token = np.concatenate([[0], np.cumsum(tokens)]).astype(np.int64)
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

    @property
    def label_tokens(self) -> IntArray:
        """[replies] how many of each reply's first tokens are its strategy label."""
        return np.array([label for turn in self.turns for label in turn.label_tokens], dtype=np.int64)

    def sum_replies(self, values: FloatArray) -> FloatArray:
        """Sums [replies] of values [tokens] over the tokens of each reply."""
        return np.add.reduceat(values.astype(np.float64), self.first_token[:-1])

    def shuffle(self, seed: int) -> None:
        """Turn each pair round by a coin, so that what is preferred says nothing."""
        turned = np.random.default_rng(derive_seed(seed, "order of pairs")).random(len(self.comparisons)) < 0.5
        self.comparisons[turned, 1:] = self.comparisons[turned, :0:-1]

    def balance(self, seed: int) -> None:
        """Leave out pairs, as few as possible, so that each strategy label is chosen as often as it is rejected.

        A policy then learns which strategy suits which talk, and nothing of which suits talks in general.
        """
        labels = np.array([self._labels(*comparison) for comparison in self.comparisons.tolist()])
        kept = balance_pairs(np.unique(labels, return_inverse=True)[1].reshape(-1, 2), seed)
        self.comparisons, self.tree = self.comparisons[kept], self.tree[kept]

    def _labels(self, turn: int, *replies: int) -> list[str]:
        """The strategy labels of replies of a turn, as their token ids."""
        found = []
        for number in replies:
            sequence, length = self.turns[turn].replies[number], self.turns[turn].label_tokens[number]
            start = sequence.replies[0].start
            found.append(" ".join(map(str, sequence.input_ids[start : start + length])))
        return found

    def members(self, turn: int, chosen: int, rejected: int) -> list[int]:
        """All replies of a comparison at a turn, the chosen and the rejected one first."""
        siblings = self.turns[turn].siblings if self.compares == "groups" else ()
        return [chosen, rejected, *(reply for reply in siblings if reply not in (chosen, rejected))]

    def number(self, turn: int, reply: int) -> int:
        """Number in the split of a reply of a turn."""
        return int(self.first_reply[turn]) + reply

    def row(self, packed: PackedRow, comparisons: Mapping[int, Sequence[tuple[int, int, int, int]]]) -> PreferenceRow:
        """A packed row of replies of this split with what is compared in it, of comparisons `by_turn`."""
        places = [self.place[key] for keys in packed.keys for key in keys]
        reply_of = np.repeat(np.arange(len(packed.keys)), [len(keys) for keys in packed.keys])
        index = dict(zip(places, reply_of.tolist(), strict=True))
        firsts = [self.place[keys[0]] for keys in packed.keys]  # replies of equal tokens have equal labels
        numbers = [self.number(*place) for place in firsts]
        tokens = [slice(*self.first_token[number : number + 2]) for number in numbers]
        here = sorted(entry for turn in {turn for turn, _ in places} for entry in comparisons.get(turn, ()))
        groups = [[(turn, reply) for reply in self.members(turn, a, b)] for _, turn, a, b in here]
        members = np.zeros((len(here), max(map(len, groups), default=2)), dtype=np.int64)
        values = np.full(members.shape, np.nan, dtype=np.float32)
        for number, group in enumerate(groups):
            members[number, : len(group)] = [index[place] for place in group]
            values[number, : len(group)] = [self.turns[turn].values[reply] for turn, reply in group]
        return PreferenceRow(
            packed,
            np.diff(self.first_token)[numbers],
            np.array([self.turns[turn].label_tokens[reply] for turn, reply in firsts], dtype=np.int64),
            reply_of,
            None if self.reference is None else np.concatenate([self.reference[part] for part in tokens]),
            members,
            values,
            np.array([self.turns[turn].desirable[a] for _, turn, a, _ in here], dtype=np.bool_),
        )


def balance_pairs(classes: IntArray, seed: int) -> IntArray:
    """Which pairs to keep so that each class is as often first as second.

    The most pairs that can be kept are a largest circulation in the graph of the classes, in which as many edges lead
    from a to b as there are pairs (a, b). Of equal pairs those that are kept are drawn.

    Args:
        classes: [P, 2] class of the first and of the second member of each pair, from 0.

    Returns:
        Indices of the pairs that are kept, ascending; none if no class can be balanced.
    """
    edges, edge_of, counts = np.unique(classes, axis=0, return_inverse=True, return_counts=True)
    nodes = np.unique(edges)[:, None]
    flow = (nodes == edges[:, 0]).astype(float) - (nodes == edges[:, 1])
    solution = linprog(-np.ones(len(edges)), A_eq=flow, b_eq=np.zeros(len(flow)), bounds=[(0, c) for c in counts])
    order = np.random.default_rng(derive_seed(seed, "balanced pairs")).permutation(len(classes))
    drawn = [order[edge_of[order] == edge][:kept] for edge, kept in enumerate(solution.x.round().astype(int))]
    return np.sort(np.concatenate(drawn))


def by_turn(comparisons: IntArray) -> dict[int, list[tuple[int, int, int, int]]]:
    """Comparisons [C, 3] by their turn: (place among them, turn, chosen, rejected)."""
    turns: dict[int, list[tuple[int, int, int, int]]] = {}
    for place, (turn, chosen, rejected) in enumerate(comparisons.tolist()):
        turns.setdefault(turn, []).append((place, turn, chosen, rejected))
    return turns


def _comparisons(turn: PreferenceTurn, objective: ObjectiveConfig) -> list[tuple[int, int]]:
    compares = objective_of(objective).compares
    if compares == "replies":
        return [(reply, reply) for reply in turn.desirable]
    if compares == "groups":
        return [(turn.siblings[0], turn.siblings[-1])]
    if objective.value_margin:
        return [(a, b) for a, b in turn.pairs if turn.values[a] >= turn.values[b]]  # NaN compares as false
    return turn.pairs


def _add_mismatched(turns: Sequence[PreferenceTurn]) -> None:
    """Give every turn the first reply of another one, in an order that depends on the number of turns only."""
    if len(turns) == 1:
        fix = "give it more dialogues, or choose a pair objective"
        raise UserError("KTO compares replies of different turns, but a split has one turn", fix=fix)
    order = np.random.default_rng(derive_seed(0, "mismatched replies")).permutation(len(turns))
    for number, other in zip(order, np.roll(order, 1), strict=True):
        turns[number].add_mismatched(turns[other])
