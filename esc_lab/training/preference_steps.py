"""What can be compared in a split, as packed rows that hold every reply once with pairs as indices, step by step.

A step holds a given number of comparisons: preference pairs, or for KTO single replies. They are taken tree by tree, in
an order of trees that follows from (seed, epoch); so the pairs of a tree stay together and share its tokens.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from esc_lab.config import DataConfig
from esc_lab.config.training import ObjectiveConfig
from esc_lab.data.dialogue import Dialogue
from esc_lab.errors import UserError
from esc_lab.seeds import derive_seed
from esc_lab.statistics.intervals import BoolArray, FloatArray
from esc_lab.tokens import PackedRow, TokenSequence, pack_units
from esc_lab.tokens.encode import IntArray
from esc_lab.training.objectives import objective_of
from esc_lab.training.preference_turns import PreferenceEncoder, PreferenceReport, PreferenceTurn
from esc_lab.training.steps import TurnEncoder, equal_parts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreferenceRow:
    """A packed row with what is compared in it.

    Attributes:
        row: the tokens. Equal replies after equal histories, of different trees, are one reply of the row.
        is_label: [N], bool, whether a reply token belongs to the strategy label.
        reply_of: [K] for each reply of the split that is in the row, which of the row's it is.
        reference: [replies, 2] log-probability of label and text under the reference model, if they are known.
        chosen, rejected: [P] pairs as indices of the row's replies; of single replies (KTO) both are the reply.
        values: [P, 2] search values of chosen and rejected reply, NaN where there is none.
        desirable: [P], bool, whether the first of them is a preferred reply.
    """

    row: PackedRow
    is_label: BoolArray
    reply_of: IntArray
    reference: FloatArray | None
    chosen: IntArray
    rejected: IntArray
    values: FloatArray
    desirable: BoolArray


class PreferenceSplit:
    """The preference turns of a split, and all that may be compared in it.

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

    def number(self, turn: int, reply: int) -> int:
        """Number in the split of a reply of a turn."""
        return int(self.first_reply[turn]) + reply

    def row(self, packed: PackedRow, comparisons: Mapping[int, Sequence[tuple[int, int, int, int]]]) -> PreferenceRow:
        """A packed row of replies of this split with what is compared in it, of comparisons `by_turn`."""
        places = [self.place[key] for keys in packed.keys for key in keys]
        reply_of = np.repeat(np.arange(len(packed.keys)), [len(keys) for keys in packed.keys])
        index = dict(zip(places, reply_of.tolist(), strict=True))
        firsts = [self.place[keys[0]] for keys in packed.keys]  # replies of equal tokens have equal labels
        labels = np.array([self.turns[turn].label_tokens[reply] for turn, reply in firsts], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(np.bincount(packed.reply, minlength=len(labels)))[:-1]])
        within = np.arange(len(packed.reply)) - starts[packed.reply]
        here = sorted(entry for turn in {turn for turn, _ in places} for entry in comparisons.get(turn, ()))
        values = [(self.turns[turn].values[a], self.turns[turn].values[b]) for _, turn, a, b in here]
        return PreferenceRow(
            packed,
            within < labels[packed.reply],
            reply_of,
            None if self.reference is None else self.reference[[self.number(*place) for place in firsts]],
            np.array([index[turn, a] for _, turn, a, _ in here], dtype=np.int64),
            np.array([index[turn, b] for _, turn, _, b in here], dtype=np.int64),
            np.array(values, dtype=np.float32).reshape(-1, 2),
            np.array([self.turns[turn].desirable[a] for _, turn, a, _ in here], dtype=np.bool_),
        )


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
    """Give every turn the first reply of another one, in an order that depends on the number of turns only."""
    if len(turns) == 1:
        fix = "give it more dialogues, or choose a pair objective"
        raise UserError("KTO compares replies of different turns, but a split has one turn", fix=fix)
    order = np.random.default_rng(derive_seed(0, "mismatched replies")).permutation(len(turns))
    for number, other in zip(order, np.roll(order, 1), strict=True):
        turns[number].add_mismatched(turns[other])


@dataclass(frozen=True)
class PreferenceBatch:
    """Everything that one optimizer step sees.

    Attributes:
        rows, mismatched: rows of this process, and those with mismatched replies (KTO's reference point).
        comparisons: pairs (or single replies) of the step, over all processes.
        chosen, rejected: how many chosen and rejected replies are compared: one each in a pair; of single replies the
            desirable and the undesirable ones.
        tokens, separate_tokens: tokens of all rows, and of all chosen and rejected replies with a prompt each.
        dialogues: ids of the step's dialogues.
    """

    rows: tuple[PreferenceRow, ...]
    mismatched: tuple[PreferenceRow, ...]
    comparisons: int
    chosen: int
    rejected: int
    tokens: int
    separate_tokens: int
    dialogues: tuple[str, ...]


class PreferenceSteps:
    """Search trees as optimizer steps and validation batches.

    Attributes:
        preferences: of `train` and `val`.
        counts: for each split what it offers and what was dropped.
    """

    def __init__(
        self,
        splits: Mapping[str, Sequence[Dialogue]],
        turns: TurnEncoder,
        data: DataConfig,
        objective: ObjectiveConfig,
        seed: int,
    ) -> None:
        self.splits, self.turns, self.data, self.objective, self.seed = splits, turns, data, objective, seed
        self.single_replies = objective_of(objective).single_replies
        self.preferences: dict[str, PreferenceSplit] = {}
        self.counts: dict[str, PreferenceReport] = {}

    def setup(self) -> None:
        """Raises UserError if there is nothing to compare in the training dialogues, or a turn exceeds the budget."""
        if self.preferences:
            return
        train = self.encode_split("train")
        if not len(train.comparisons):
            raise self._nothing_to_compare()
        self.preferences["train"] = train
        validation = self.encode_split("val")
        if len(validation.comparisons):
            self.preferences["val"] = validation
        self._log_counts()

    def encode_split(self, split: str) -> PreferenceSplit:
        trees: dict[str, list[Dialogue]] = {}
        for dialogue in self.splits.get(split, ()):
            trees.setdefault(dialogue.tree_id, []).append(dialogue)
        report = self.counts.setdefault(split, PreferenceReport())
        encoder = PreferenceEncoder(self.turns, split, report, single_replies=self.single_replies)
        preferences = PreferenceSplit([encoder.encode_tree(tree) for tree in trees.values()], self.objective)
        self.turns.report(split).warn(split)
        return preferences

    def _log_counts(self) -> None:
        for split, report in self.counts.items():
            shared = f", {report.shared_pairs} shared by dialogues of a tree" if report.shared_pairs else ""
            log.info("%s: %d pairs at %d turns%s", split, report.pairs, report.turns, shared)
            unjudged, inverted = report.unjudged_pairs, report.inverted_pairs
            if equal := report.equal_pairs_dropped:
                log.warning("%s: %d pairs dropped, rejected reply equal to the chosen one", split, equal)
            if report.unlabelled_chosen:
                log.warning(
                    "%s: %d chosen replies without a strategy left out, and with them %d pairs",
                    split, report.unlabelled_chosen, report.unlabelled_pairs,
                )  # fmt: skip
            if report.unlabelled_rejected:
                log.warning("%s: %d rejected replies have no strategy", split, report.unlabelled_rejected)
            if report.too_long_rejected:
                log.warning("%s: %d rejected replies left out, too long", split, report.too_long_rejected)
            if self.objective.value_margin and unjudged + inverted:
                log.warning(
                    "%s: %d pairs without search values and %d with the chosen value below the other left out",
                    split, unjudged, inverted,
                )  # fmt: skip

    def _nothing_to_compare(self) -> UserError:
        report = self.counts["train"]
        if self.objective.value_margin and report.pairs:
            counts = f"{report.unjudged_pairs} unjudged, {report.inverted_pairs} with the chosen value below the other"
            message = f"none of {report.pairs} pairs has a value gap ({counts})"
            return UserError(message, fix="set objective.value_margin=0")
        if report.unlabelled_pairs:
            message = (
                f"none of the {report.unlabelled_chosen} chosen replies with a rejected one beside it has a strategy "
                f"({report.unlabelled_pairs} pairs of the train split are left out)"
            )
            fix = "write the strategies into the data, in pairs as (strategy) text; see docs/data-format.md"
            return UserError(message, where="data.path", fix=fix)
        fix = "use data with alternatives (ESC-Pro), or let the model write them: data.negatives=gold_contrast"
        message = "the train split has no rejected reply, so there is nothing to prefer"
        return UserError(message, where="data.negatives=recorded", fix=fix)

    def plan_epoch(self, epoch: int) -> list[list[int]]:
        tree = self.preferences["train"].tree
        rank = np.random.default_rng(derive_seed(self.seed, "epoch", epoch)).permutation(int(tree.max()) + 1)
        return equal_parts(np.argsort(rank[tree], kind="stable"), self.data.step_pairs)

    def step_batch(self, numbers: Sequence[int], rank: int = 0, world: int = 1) -> PreferenceBatch:
        # A process that would have no row repeats one without comparisons, to take part in the gradient exchange.
        return self._batch(self.preferences["train"], np.array(numbers, dtype=np.int64), rank, world)

    def validation(self) -> list[PreferenceBatch]:
        split = self.preferences.get("val")
        return [] if split is None else [self._batch(split, np.arange(len(split.comparisons)))]

    def _batch(self, split: PreferenceSplit, numbers: IntArray, rank: int = 0, world: int = 1) -> PreferenceBatch:
        comparisons = by_turn(split.comparisons[numbers])
        units, separate, desirable = [], 0, 0
        for number, entries in comparisons.items():
            turn = split.turns[number]
            units.append([turn.replies[reply] for reply in sorted({reply for *_, a, b in entries for reply in (a, b)})])
            separate += sum(len(turn.replies[reply].input_ids) for *_, a, b in entries for reply in {a, b})
            desirable += sum(turn.desirable[a] for _, _, a, _ in entries)
        packed = pack_units(units, self.turns.row_tokens)
        rows = [split.row(row, comparisons) for row in packed[rank::world]]
        mismatched = self._mismatched_rows(split, sorted(comparisons)) if self.single_replies else []
        chosen = desirable if self.single_replies else len(numbers)
        return PreferenceBatch(
            tuple(rows or [split.row(packed[0], {})]),
            tuple(mismatched[rank::world]),
            len(numbers),
            chosen,
            len(numbers) - chosen if self.single_replies else len(numbers),
            sum(map(len, packed)) + sum(len(row.row) for row in mismatched),
            separate,
            tuple(dict.fromkeys(reply.replies[0].key.dialogue for unit in units for reply in unit)),
        )

    def _mismatched_rows(self, split: PreferenceSplit, turns: Sequence[int]) -> list[PreferenceRow]:
        units = [[split.turns[number].replies[split.turns[number].mismatched or 0]] for number in turns]
        longest = max(len(unit[0].input_ids) for unit in units)
        return [split.row(row, {}) for row in pack_units(units, max(self.turns.row_tokens, longest))]
