"""Optimizer steps of preference optimisation: packed rows that hold every reply once, and pairs as indices into them.

A step holds a given number of comparisons: preference pairs, or for KTO single replies. They are taken tree by tree, in
an order of trees that follows from (seed, epoch); so the pairs of a tree stay together and share its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from esc_lab.config import TemplateConfig
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.seeds import derive_seed
from esc_lab.tokens import ChatEncoder, EncodeReport, pack_units
from esc_lab.tokens.encode import IntArray
from esc_lab.training.preference_split import PreferenceRow, PreferenceSettings, PreferenceSplit
from esc_lab.training.preference_turns import PreferenceEncoder, PreferenceReport


@dataclass(frozen=True)
class PreferenceBatch:
    """Everything that one optimizer step sees.

    Attributes:
        rows: rows of this process.
        mismatched: rows of this process with mismatched replies (KTO's reference point).
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
        encoded.warn(split)
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
            desirable if self.settings.unpaired else len(comparisons),
            len(comparisons) - (desirable if self.settings.unpaired else 0),
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
