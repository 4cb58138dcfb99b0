"""Optimizer steps of preference optimisation: packed rows that hold every reply once, and pairs as indices into them.

A step holds a given number of comparisons: preference pairs, or for KTO single replies. They are taken tree by tree, in
an order of trees that follows from (seed, epoch); so the pairs of a tree stay together and share its tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from esc_lab.config import TemplateConfig
from esc_lab.dialogue import Dialogue
from esc_lab.errors import UserError
from esc_lab.preference_turns import PreferenceEncoder, PreferenceReport, PreferenceTurn
from esc_lab.seeds import derive_seed
from esc_lab.strategies import Inventory
from esc_lab.supporter_turns import warn_of_shortened
from esc_lab.tokens import ChatEncoder, EncodeReport, PackedRow, TokenSequence, pack_rows, pack_units
from esc_lab.tokens.encode import IntArray

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PreferenceSettings:
    """What a step compares.

    Attributes:
        step_pairs: comparisons in one optimizer step.
        unpaired: replies one by one (KTO) instead of pairs.
        value_margin: keep only pairs whose replies are both judged, the chosen one not below the rejected one.
    """

    step_pairs: int = 32
    unpaired: bool = False
    value_margin: bool = False


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


@dataclass(frozen=True)
class PreferenceBatch:
    """Everything that one optimizer step sees.

    Attributes:
        rows: rows of this process.
        mismatched: rows of this process with mismatched replies (KTO's reference point).
        comparisons: pairs (or single replies) of the step, over all processes.
        desirable: how many of the single replies are desirable.
        tokens, separate_tokens: tokens of all rows, and of all chosen and rejected replies with a prompt each.
        dialogues: ids of the step's dialogues.
    """

    rows: tuple[PreferenceRow, ...]
    mismatched: tuple[PreferenceRow, ...]
    comparisons: int
    desirable: int
    tokens: int
    separate_tokens: int
    dialogues: tuple[str, ...]


class PreferenceSplit:
    """The preference turns of a split, and everything that may be compared in it.

    Attributes:
        turns: by tree, depth first.
        comparisons: [C, 3] turn, chosen and rejected reply; of single replies turn and twice the reply.
        tree: [C] which tree each comparison belongs to.
        first_reply: [turns] number of each turn's first reply in the split.
        reference: [replies, 2], set once the reference log-probabilities are known.
    """

    def __init__(self, trees: Sequence[Sequence[PreferenceTurn]], settings: PreferenceSettings) -> None:
        self.turns = [turn for tree in trees for turn in tree]
        if settings.unpaired:
            _mismatch(self.turns)
        sizes = [len(turn.replies) for turn in self.turns]
        self.first_reply = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        comparisons, membership = [], []
        number = 0
        for index, tree in enumerate(trees):
            for turn in tree:
                for first, second in _comparisons(turn, settings):
                    comparisons.append((number, first, second))
                    membership.append(index)
                number += 1
        self.comparisons = np.array(comparisons, dtype=np.int64).reshape(-1, 3)
        self.tree = np.array(membership, dtype=np.int64)
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

    def row(self, packed: PackedRow, comparisons: IntArray) -> PreferenceRow:
        """A packed row of replies of this split, with those of the comparisons whose turn is in it."""
        places = [self.place[key] for keys in packed.keys for key in keys]
        reply_of = np.repeat(np.arange(len(packed.keys)), [len(keys) for keys in packed.keys])
        index = dict(zip(places, reply_of.tolist(), strict=True))
        numbers = np.array([self.first_reply[turn] + reply for turn, reply in places], dtype=np.int64)
        first = np.searchsorted(reply_of, np.arange(len(packed.keys)))  # replies of equal tokens have equal labels
        labels = np.array([self.turns[turn].label_tokens[reply] for turn, reply in places], dtype=np.int64)[first]
        starts = np.concatenate([[0], np.cumsum(np.bincount(packed.reply, minlength=len(labels)))[:-1]])
        within = np.arange(len(packed.reply)) - starts[packed.reply]
        turns = {turn for turn, _ in places}
        here = [(int(turn), int(a), int(b)) for turn, a, b in comparisons if int(turn) in turns]
        values = [(self.turns[turn].values[a], self.turns[turn].values[b]) for turn, a, b in here]
        return PreferenceRow(
            packed,
            within < labels[packed.reply],
            numbers,
            reply_of,
            None if self.reference is None else self.reference[numbers[first]],
            np.array([index[turn, a] for turn, a, _ in here], dtype=np.int64),
            np.array([index[turn, b] for turn, _, b in here], dtype=np.int64),
            np.array(values, dtype=np.float32).reshape(-1, 2),
            np.array([self.turns[turn].desirable[a] for turn, a, _ in here], dtype=np.bool_),
        )

    def reference_rows(self, row_tokens: int) -> list[PreferenceRow]:
        """Rows that hold every reply of the split once, with nothing to compare."""
        longest = max(len(sequence.input_ids) for sequence in self.sequences)
        rows = pack_rows([self.sequences], max(row_tokens, longest))
        return [self.row(packed, self.comparisons[:0]) for packed in rows]


class PreferenceSteps:
    """Search trees as optimizer steps and validation batches.

    Args:
        reports: gets an encoding report for each split.
        settings: what a step compares.

    Attributes:
        found: the preference turns of `train` and `val`.
        counted: for each split what it offers and what was dropped.
    """

    def __init__(
        self,
        splits: Mapping[str, Sequence[Dialogue]],
        encoder: ChatEncoder,
        inventory: Inventory,
        prompt: TemplateConfig,
        reports: dict[str, EncodeReport],
        settings: PreferenceSettings,
        *,
        row_tokens: int,
        seed: int,
    ) -> None:
        self.splits, self.encoder, self.inventory, self.prompt = splits, encoder, inventory, prompt
        self.reports, self.settings, self.row_tokens, self.seed = reports, settings, row_tokens, seed
        self.found: dict[str, PreferenceSplit] = {}
        self.counted: dict[str, PreferenceReport] = {}

    def setup(self) -> None:
        """Encode the training and validation dialogues, once.

        Raises:
            UserError: there is nothing to compare in the training dialogues, or a turn exceeds the budget.
        """
        if self.found:
            return
        train = self.encode_split("train")
        if not len(train.comparisons):
            raise self._nothing_to_compare()
        self.found["train"] = train
        validation = self.encode_split("val")
        if len(validation.comparisons):
            self.found["val"] = validation

    def encode_split(self, split: str) -> PreferenceSplit:
        encoded = self.reports.setdefault(split, EncodeReport())
        report = self.counted.setdefault(split, PreferenceReport())
        trees: dict[str, list[Dialogue]] = {}
        for dialogue in self.splits.get(split, ()):
            trees.setdefault(dialogue.tree_id, []).append(dialogue)
        turns = PreferenceEncoder(
            self.encoder, self.inventory, self.prompt, encoded, report,
            row_tokens=self.row_tokens, unpaired=self.settings.unpaired,
        )  # fmt: skip
        found = PreferenceSplit([turns.tree(dialogues) for dialogues in trees.values()], self.settings)
        warn_of_shortened(split, encoded)
        return found

    def _nothing_to_compare(self) -> UserError:
        report = self.counted["train"]
        if self.settings.value_margin and report.pairs:
            counts = f"{report.unjudged_pairs} unjudged, {report.inverted_pairs} with the chosen value below the other"
            return UserError(
                f"none of {report.pairs} pairs has a value gap ({counts})", fix="set objective.value_margin=0"
            )
        return UserError(
            "the train split has no rejected reply, so there is nothing to prefer",
            where="data.negatives=recorded",
            fix="use data with alternatives (ESC-Pro), or let the model write them: data.negatives=gold_contrast",
        )

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.found["train"].comparisons) // self.settings.step_pairs)

    def plan_epoch(self, epoch: int) -> list[list[int]]:
        """Comparisons (by number) of each optimizer step of an epoch, from (seed, epoch) alone."""
        tree = self.found["train"].tree
        rank = np.random.default_rng(derive_seed(self.seed, "epoch", epoch)).permutation(int(tree.max()) + 1)
        order = np.argsort(rank[tree], kind="stable")
        return [[int(number) for number in part] for part in np.array_split(order, self.steps_per_epoch)]

    def step_batch(self, numbers: Sequence[int], rank: int = 0, world: int = 1) -> PreferenceBatch:
        """The packed rows of an optimizer step; with several processes each takes every `world`-th row.

        A process that would have none repeats a row without comparisons, so that all of them take part in the gradient
        exchange.
        """
        return self._batch(self.found["train"], np.array(numbers, dtype=np.int64), rank, world)

    @property
    def validation(self) -> list[PreferenceBatch]:
        """All comparisons of the validation split as one batch, for every process."""
        split = self.found.get("val")
        return [] if split is None else [self._batch(split, np.arange(len(split.comparisons)))]

    def _batch(self, split: PreferenceSplit, numbers: IntArray, rank: int = 0, world: int = 1) -> PreferenceBatch:
        comparisons = split.comparisons[numbers]
        used: dict[int, set[int]] = {}
        separate = desirable = 0
        for turn, first, second in comparisons.tolist():
            used.setdefault(turn, set()).update((first, second))
            separate += sum(len(split.turns[turn].replies[reply].input_ids) for reply in {first, second})
            desirable += split.turns[turn].desirable[first]
        units = [[split.turns[turn].replies[reply] for reply in sorted(replies)] for turn, replies in used.items()]
        packed = pack_units(units, self.row_tokens)
        rows = [split.row(row, comparisons) for row in packed[rank::world]]
        others = self._mismatched_rows(split, sorted(used)) if self.settings.unpaired else []
        return PreferenceBatch(
            tuple(rows or [split.row(packed[0], comparisons[:0])]),
            tuple(others[rank::world]),
            len(comparisons),
            desirable,
            sum(map(len, packed)) + sum(len(other.row) for other in others),
            separate,
            tuple(dict.fromkeys(reply.replies[0].key.dialogue for unit in units for reply in unit)),
        )

    def _mismatched_rows(self, split: PreferenceSplit, turns: Sequence[int]) -> list[PreferenceRow]:
        units = [[split.turns[number].replies[split.turns[number].mismatched or 0]] for number in turns]
        longest = max(len(unit[0].input_ids) for unit in units)
        packed = pack_units(units, max(self.row_tokens, longest))
        return [split.row(row, split.comparisons[:0]) for row in packed]


def preference_counts(steps: PreferenceSteps) -> dict[str, float]:
    """What each split offers and what was dropped."""
    return {
        f"{split}_{name}": float(value)
        for split, report in steps.counted.items()
        for name, value in asdict(report).items()
    }


def _comparisons(turn: PreferenceTurn, settings: PreferenceSettings) -> list[tuple[int, int]]:
    if settings.unpaired:
        return [(reply, reply) for reply in turn.desirable]
    if settings.value_margin:
        return [(a, b) for a, b in turn.pairs if turn.values[a] >= turn.values[b]]  # NaN compares as false
    return turn.pairs


def _mismatch(turns: Sequence[PreferenceTurn]) -> None:
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
