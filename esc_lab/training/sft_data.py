"""Optimizer steps of supervised fine-tuning: every supporter turn of some dialogues, packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from esc_lab.config import TemplateConfig
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.seeds import derive_seed
from esc_lab.tokens import ChatEncoder, EncodeReport, PackedRow, TokenSequence, encode_split, pack_rows
from esc_lab.tokens.supporter_turns import build_examples


@dataclass(frozen=True)
class StepBatch:
    """Everything that one optimizer step sees.

    Attributes:
        rows: packed rows of this process.
        weights: for each row the loss weight of each reply, [replies].
        total_weight: sum over all reply tokens of the step, over all processes, of their weight; 1 if all weigh 0.
        dialogues: ids of the step's dialogues.
    """

    rows: tuple[PackedRow, ...]
    weights: tuple[npt.NDArray[np.float32], ...]
    total_weight: float
    dialogues: tuple[str, ...]


class SFTSteps:
    """Dialogues as optimizer steps and validation rows.

    Args:
        step_dialogues: dialogues in one optimizer step.
        strategy_weights: loss weight of replies by strategy; 1 for the others.
        reports: gets an encoding report for each split.
    """

    def __init__(
        self,
        splits: Mapping[str, Sequence[Dialogue]],
        encoder: ChatEncoder,
        inventory: Inventory,
        prompt: TemplateConfig,
        reports: dict[str, EncodeReport],
        *,
        row_tokens: int,
        step_dialogues: int,
        seed: int,
        strategy_weights: Mapping[str, float] | None = None,
    ) -> None:
        self.splits, self.encoder, self.inventory, self.prompt = splits, encoder, inventory, prompt
        self.reports, self.row_tokens, self.step_dialogues, self.seed = reports, row_tokens, step_dialogues, seed
        self.strategy_weights = dict(strategy_weights or {})
        self._training: list[tuple[Dialogue, list[TokenSequence]]] = []
        self.validation: list[PackedRow] = []

    def setup(self) -> None:
        """Encode the training and validation dialogues, once.

        Raises:
            UserError: there is nothing to train on, or an example exceeds the budget.
        """
        if self._training:
            return
        self._training = self.encode_split("train")
        validation = self.encode_split("val") if self.splits.get("val") else []
        self.validation = pack_rows([[s for _, sequences in validation for s in sequences]], self.row_tokens)

    def encode_split(self, split: str) -> list[tuple[Dialogue, list[TokenSequence]]]:
        """Dialogues of a split with their sequences, those without any strategy left out."""
        dialogues = list(self.splits.get(split, ()))
        examples = [build_examples(dialogue, self.inventory, self.prompt) for dialogue in dialogues]
        if not any(examples):
            raise UserError(
                f"the {split} split has no supporter turn with a strategy", fix="check the data and its split"
            )
        sequences = encode_split(self.encoder, split, examples, self.row_tokens, self.reports)
        return [(dialogue, found) for dialogue, found in zip(dialogues, sequences, strict=True) if found]

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._training) // self.step_dialogues)

    def plan_epoch(self, epoch: int) -> list[list[int]]:
        """Training dialogues (by number) of each optimizer step of an epoch, from (seed, epoch) alone."""
        order = np.random.default_rng(derive_seed(self.seed, "epoch", epoch)).permutation(len(self._training))
        # Equal steps: the last one is not a small remainder with a noisy gradient.
        return [[int(number) for number in part] for part in np.array_split(order, self.steps_per_epoch)]

    def step_batch(self, numbers: Sequence[int], rank: int = 0, world: int = 1) -> StepBatch:
        """The packed rows of an optimizer step. Dialogues of a step share one trie: their system message is common.

        With several processes each takes every `world`-th row; one that would have none repeats a row at weight zero,
        so that all of them take part in the gradient exchange.
        """
        members = [self._training[number] for number in numbers]
        dialogues = {dialogue.id: dialogue for dialogue, _ in members}
        rows = pack_rows([[sequence for _, sequences in members for sequence in sequences]], self.row_tokens)
        weights = [self._reply_weights(row, dialogues) for row in rows]
        total = sum(float(weight[row.reply].sum()) for row, weight in zip(rows, weights, strict=True))
        mine = list(range(rank, len(rows), world))
        if not mine:
            mine, weights = [0], [np.zeros_like(weights[0])]
        return StepBatch(
            tuple(rows[number] for number in mine),
            tuple(weights[number] for number in mine),
            total or 1.0,
            tuple(dialogues),
        )

    def _reply_weights(self, row: PackedRow, dialogues: Mapping[str, Dialogue]) -> npt.NDArray[np.float32]:
        keys: list[Any] = [keys[0] for keys in row.keys]
        strategies = [dialogues[key.dialogue].turns[key.turn].reply.strategies[0] for key in keys]
        return np.array([self.strategy_weights.get(name, 1.0) for name in strategies], dtype=np.float32)
