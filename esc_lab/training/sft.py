"""Supervised fine-tuning on all supporter turns of a dialogue in one pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from esc_lab.models.log_probs import reply_log_probs
from esc_lab.tokens import PackedRow
from esc_lab.training.module import TrainingModule
from esc_lab.training.sft_data import StepBatch


class SFTModule(TrainingModule):
    """Minimises the mean negative log-likelihood of the reply tokens of each optimizer step.

    With strategy weights w the loss is `-sum_t w_t log p(t) / sum_t w_t` over the step's reply tokens t. Logged:
    `train/loss`, `train/lr`, `tokens_per_s` (unique tokens of the packed rows), and `val/loss` over all validation
    tokens, unweighted.
    """

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        tokens = sum(len(row) for row in batch.rows)
        loss = self.optimize(self._losses(batch), len(batch.rows), tokens, batch.dialogues)
        self.log("train/loss", loss, prog_bar=True, reduce_fx="sum", sync_dist=True)

    def _losses(self, batch: StepBatch) -> Iterator[Tensor]:
        for row, weights in zip(batch.rows, batch.weights, strict=True):
            log_probs = reply_log_probs(self.model, row)
            weight = torch.from_numpy(weights[row.reply]).to(log_probs.device)
            yield -(weight * log_probs).sum() / batch.total_weight

    def on_validation_epoch_start(self) -> None:
        self._loss_sum, self._tokens = 0.0, 0

    def validation_step(self, row: PackedRow, batch_idx: int) -> None:
        self._loss_sum -= float(reply_log_probs(self.model, row).sum())
        self._tokens += len(row.target)

    def on_validation_epoch_end(self) -> None:
        # Every process sees all validation rows: the data loader is a plain list.
        self.log("val/loss", self._loss_sum / self._tokens, prog_bar=True, sync_dist=True)
