"""Optimizer steps of preference optimisation: packed rows that hold every reply once, and pairs as indices into them.

A step holds a given number of comparisons: preference pairs, or for KTO single replies. They are taken tree by tree, in
an order of trees that follows from (seed, epoch); so the pairs of a tree stay together and share its tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from esc_lab.config import DataConfig
from esc_lab.config.training import ObjectiveConfig
from esc_lab.data.dialogue import Dialogue
from esc_lab.errors import UserError
from esc_lab.seeds import derive_seed
from esc_lab.tokens import pack_units
from esc_lab.tokens.encode import IntArray
from esc_lab.training.objectives import objective_of
from esc_lab.training.preference_split import PreferenceRow, PreferenceSplit, by_turn
from esc_lab.training.preference_turns import PreferenceEncoder, PreferenceReport
from esc_lab.training.steps import TurnEncoder, equal_parts

log = logging.getLogger(__name__)


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
        data: its `step_pairs`.
        seed: the run's seed.

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
        """Encode the training and validation dialogues, once.

        Raises:
            UserError: there is nothing to compare in the training dialogues, or a turn exceeds the budget.
        """
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
            if report.equal_pairs_dropped:
                log.warning(
                    "%s: %d pairs dropped, rejected reply equal to the chosen one", split, report.equal_pairs_dropped
                )
            if self.objective.value_margin and report.unjudged_pairs + report.inverted_pairs:
                log.warning(
                    "%s: %d pairs without search values and %d with the chosen value below the other left out",
                    split, report.unjudged_pairs, report.inverted_pairs,
                )  # fmt: skip

    def _nothing_to_compare(self) -> UserError:
        report = self.counts["train"]
        if self.objective.value_margin and report.pairs:
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
        return -(-len(self.preferences["train"].comparisons) // self.data.step_pairs)

    def plan_epoch(self, epoch: int) -> list[list[int]]:
        """Comparisons (by number) of each optimizer step of an epoch, from (seed, epoch) alone."""
        tree = self.preferences["train"].tree
        rank = np.random.default_rng(derive_seed(self.seed, "epoch", epoch)).permutation(int(tree.max()) + 1)
        return equal_parts(np.argsort(rank[tree], kind="stable"), self.data.step_pairs)

    def step_batch(self, numbers: Sequence[int], rank: int = 0, world: int = 1) -> PreferenceBatch:
        """The packed rows of an optimizer step; with several processes each takes every `world`-th row.

        A process that would have none repeats a row without comparisons, so that all of them take part in the gradient
        exchange.
        """
        return self._batch(self.preferences["train"], np.array(numbers, dtype=np.int64), rank, world)

    def validation(self) -> list[PreferenceBatch]:
        """All comparisons of the validation split as one batch, for every process."""
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
