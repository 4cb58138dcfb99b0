"""The comparisons of a split step by step.

A step holds a given number of comparisons: preference pairs, for KTO single replies, for group objectives the siblings
of a turn. They are taken tree by tree, in an order of trees that follows from (seed, epoch); so the pairs of a tree
stay together and share its tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from esc_lab.config import DataConfig
from esc_lab.config.training import ObjectiveConfig
from esc_lab.data.dialogue import Dialogue
from esc_lab.errors import UserError
from esc_lab.seeds import derive_seed
from esc_lab.tokens import pack_units
from esc_lab.tokens.encode import IntArray
from esc_lab.training.objectives import count_iterations, objective_of
from esc_lab.training.preference_split import PreferenceRow, PreferenceSplit, by_turn
from esc_lab.training.preference_turns import PreferenceEncoder, PreferenceReport, PreferenceTurn, map_replies
from esc_lab.training.steps import TurnEncoder, equal_parts

log = logging.getLogger(__name__)
_MAPPED = 256  # trees whose token ids share a file


@dataclass(frozen=True)
class PreferenceBatch:
    """Everything that one optimizer step sees.

    Attributes:
        rows, mismatched: rows of this process, and those with mismatched replies (KTO's reference point).
        comparisons: pairs (single replies, groups) of the step, over all processes.
        chosen, rejected: how many chosen and rejected replies are compared: one each in a pair, and in a group the best
            and the worst; of single replies the desirable and the undesirable ones.
        tokens, separate_tokens: tokens of all rows, and of all replies that are compared with a prompt each.
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
        self.compares = objective_of(objective).compares
        self.preferences: dict[str, PreferenceSplit] = {}
        self.counts: dict[str, PreferenceReport] = {}

    def setup(self) -> None:
        """Raises UserError if there is nothing to compare in the training dialogues, or a turn exceeds the budget."""
        if self.preferences:
            return
        self._check_pairs()
        train = self.encode_split("train")
        if not len(train.comparisons):
            raise self._nothing_to_compare()
        self.preferences["train"] = train
        validation = self.encode_split("val")
        if len(validation.comparisons):
            self.preferences["val"] = validation
        for split, preferences in self.preferences.items() if self.data.shuffle_pairs else ():
            preferences.shuffle(derive_seed(self.seed, split))
        if self.data.balance_pairs:  # of what is trained on: turning pairs round would undo it
            self._balance(train)
        self._log_counts()

    def _check_pairs(self) -> None:
        fix = "an objective of pairs, such as cso"
        if self.data.shuffle_pairs and (self.compares != "pairs" or self.objective.value_margin):
            what = f"data.shuffle_pairs turns pairs round, not {self.compares}, and values do not follow"
            fix += ", with objective.value_margin=0"
            raise UserError(what, where=f"objective={self.objective.name}", fix=fix)
        if self.data.balance_pairs and self.compares != "pairs":
            what = f"data.balance_pairs leaves out pairs, not {self.compares}"
            raise UserError(what, where=f"objective={self.objective.name}", fix=fix)

    def _balance(self, train: PreferenceSplit) -> None:
        pairs = len(train.comparisons)
        train.balance(self.seed)
        kept = len(train.comparisons)
        log.info("train: %d of %d pairs kept, in which each strategy is chosen as often as rejected", kept, pairs)
        if not kept:
            what = f"no strategy is both chosen and rejected in the {pairs} pairs of train"
            raise UserError(what, where="data.balance_pairs=true", fix="leave it out, or search from more dialogues")

    def encode_split(self, split: str) -> PreferenceSplit:
        trees: dict[str, list[Dialogue]] = {}
        for dialogue in self.splits.get(split, ()):
            trees.setdefault(dialogue.tree_id, []).append(dialogue)
        report = self.counts.setdefault(split, PreferenceReport())
        encoder = PreferenceEncoder(self.turns, split, report, self.compares)
        left, turns = iter(trees.values()), list[list[PreferenceTurn]]()
        while some := [encoder.encode_tree(tree) for tree in islice(left, _MAPPED)]:
            map_replies([turn for tree in some for turn in tree])
            turns += some
        preferences = PreferenceSplit(turns, self.objective)
        self.turns.report(split).warn(split)
        return preferences

    def _log_counts(self) -> None:
        for split, report in self.counts.items():
            shared = f", {report.shared_pairs} shared by dialogues of a tree" if report.shared_pairs else ""
            log.info("%s: %d pairs at %d turns%s", split, report.pairs, report.turns, shared)
            unjudged, inverted = report.unjudged_pairs, report.inverted_pairs
            if equal := report.equal_pairs_dropped:
                log.warning("%s: %d pairs dropped, rejected reply equal to the chosen one", split, equal)
            if tied := report.tied_pairs_dropped:
                log.warning("%s: %d pairs dropped, both replies have the same value", split, tied)
            if report.unlabelled_chosen:
                log.warning(
                    "%s: %d chosen replies without a strategy left out, and with them %d pairs",
                    split, report.unlabelled_chosen, report.unlabelled_pairs,
                )  # fmt: skip
            if report.unlabelled_rejected:
                log.warning("%s: %d rejected replies have no strategy", split, report.unlabelled_rejected)
            if report.too_long_rejected:
                log.warning("%s: %d rejected replies left out, too long", split, report.too_long_rejected)
            if report.flat_turns:
                log.warning(
                    "%s: %d turns without replies of different search values left out", split, report.flat_turns
                )
            if self.objective.value_margin and unjudged + inverted:
                log.warning(
                    "%s: %d pairs without search values and %d with the chosen value below the other left out",
                    split, unjudged, inverted,
                )  # fmt: skip

    def _nothing_to_compare(self) -> UserError:
        report = self.counts["train"]
        if report.flat_turns:
            what = f"none of {report.flat_turns} turns with rejected replies has two of different search values"
            fix = "use what a search left with its values (RUN/esc_pro/train.jsonl), or pairs: objective=cso"
            raise UserError(what, where=f"objective={self.objective.name}", fix=fix)
        if self.objective.value_margin and report.pairs:
            counts = f"{report.unjudged_pairs} unjudged, {report.inverted_pairs} with the chosen value below the other"
            message = f"none of {report.pairs} pairs has a value gap ({counts})"
            return UserError(message, fix="set objective.value_margin=0")
        if report.tied_pairs_dropped:
            message = f"the replies of all {report.tied_pairs_dropped} pairs have the same value: neither is better"
            return UserError(message, where="data.path", fix="use data with preferences")
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
        size = self.data.step_pairs
        if self.compares == "groups":  # a group of K siblings weighs as much as K - 1 pairs, on average
            size = max(size * len(tree) // self._count_siblings(), 1)
        steps = equal_parts(np.argsort(rank[tree], kind="stable"), size)
        return [step for step in steps for _ in range(count_iterations(self.objective))]

    def _count_siblings(self) -> int:
        """How many siblings the groups of the training split have beside their best."""
        split = self.preferences["train"]
        return sum(len(split.turns[turn].siblings) - 1 for turn in split.comparisons[:, 0])

    def step_batch(self, numbers: Sequence[int], rank: int = 0, world: int = 1) -> PreferenceBatch:
        return self._batch(self.preferences["train"], np.array(numbers, dtype=np.int64), rank, world)

    def validation(self) -> list[PreferenceBatch]:
        split = self.preferences.get("val")
        return [] if split is None else [self._batch(split, np.arange(len(split.comparisons)))]

    def _batch(self, split: PreferenceSplit, numbers: IntArray, rank: int = 0, world: int = 1) -> PreferenceBatch:
        comparisons = by_turn(split.comparisons[numbers])
        units, separate, desirable = [], 0, 0
        for number, entries in comparisons.items():
            turn = split.turns[number]
            groups = [set(split.members(*entry)) for _, *entry in entries]
            units.append([turn.replies[reply] for reply in sorted(set().union(*groups))])
            separate += sum(len(turn.replies[reply].input_ids) for group in groups for reply in group)
            desirable += sum(turn.desirable[a] for _, _, a, _ in entries)
        packed = pack_units(units, self.turns.budget)
        rows = [split.row(row, comparisons) for row in packed[rank::world]]
        if len(rows) < -(-len(packed) // world):  # all processes make as many passes, to gather weights and gradients
            rows.append(split.row(min(packed, key=len), {}))
        single_replies = self.compares == "replies"
        mismatched = self._mismatched_rows(split, sorted(comparisons)) if single_replies else []
        others = mismatched[rank::world]
        if len(others) < -(-len(mismatched) // world):
            shortest = min(mismatched, key=lambda row: len(row.row))
            others.append(replace(shortest, reply_of=shortest.reply_of[:0]))
        chosen = desirable if single_replies else len(numbers)
        return PreferenceBatch(
            tuple(rows),
            tuple(others),
            len(numbers),
            chosen,
            len(numbers) - chosen if single_replies else len(numbers),
            sum(map(len, packed)) + sum(len(row.row) for row in mismatched),
            separate,
            tuple(dict.fromkeys(reply.replies[0].key.dialogue for unit in units for reply in unit)),
        )

    def _mismatched_rows(self, split: PreferenceSplit, turns: Sequence[int]) -> list[PreferenceRow]:
        units = [[split.turns[number].replies[split.turns[number].mismatched or 0]] for number in turns]
        longest = max(len(unit[0].input_ids) for unit in units)
        return [split.row(row, {}) for row in pack_units(units, max(self.turns.budget, longest))]
