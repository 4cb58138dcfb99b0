"""Training of the strategy classifier: labelled replies in, optimizer steps out, cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from esc_lab.config.training import OptimizerConfig, SchedulerConfig
from esc_lab.data.dialogue import Dialogue
from esc_lab.errors import UserError
from esc_lab.scorers.adherence import LabelledReply, ReplyReport, labelled_replies
from esc_lab.scorers.classifier import StrategyClassifier, batches_by_length
from esc_lab.seeds import derive_seed
from esc_lab.training.datamodule import StepLoader
from esc_lab.training.module import TrainingModule


@dataclass(frozen=True)
class ReplyBatch:
    """Replies of similar length that one forward pass reads: token ids and strategy index of each."""

    replies: tuple[tuple[int, ...], ...]
    strategies: tuple[int, ...]


@dataclass(frozen=True)
class ReplyStep:
    """Everything that one optimizer step sees: its forward passes and the ids of its dialogues."""

    batches: tuple[ReplyBatch, ...]
    dialogues: tuple[str, ...]


class ReplyData(pl.LightningDataModule):
    """Labelled replies of `train` and `val` as optimizer steps and batches. `test` is only collected.

    Attributes:
        examples: replies of each split.
        reports: what became of the utterances of each split.
        cut: replies of each encoded split that were too long and are read only in part.

    Args:
        splits: dialogues of `train`, `val`, `test`; missing splits are empty.
        batch: replies in one optimizer step.
        row_tokens: budget of one forward pass in padded tokens.
        seed: the run's seed.

    Raises:
        UserError: no training reply has a strategy.
    """

    def __init__(
        self,
        splits: Mapping[str, Sequence[Dialogue]],
        classifier: StrategyClassifier,
        *,
        batch: int,
        row_tokens: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.splits, self.batch, self.row_tokens, self.seed = splits, batch, row_tokens, seed
        self.examples: dict[str, list[LabelledReply]] = {}
        self.reports: dict[str, ReplyReport] = {}
        for split in ("train", "val", "test"):
            dialogues = splits.get(split, ())
            self.examples[split], self.reports[split] = labelled_replies(dialogues, classifier.inventory)
        if not self.examples["train"]:
            raise UserError("the train split has no reply with a strategy", fix="check the data and its split")
        self._encoded: dict[str, list[tuple[int, ...]]] = {}
        self.cut: dict[str, int] = {}
        for split, examples in self.examples.items():
            self._encoded[split], self.cut[split] = classifier.encode([example.text for example in examples])

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.examples["train"]) // self.batch)

    def plan_epoch(self, epoch: int) -> list[list[int]]:
        """Training replies (by number) of each optimizer step of an epoch, from (seed, epoch) alone."""
        draw = np.random.default_rng(derive_seed(self.seed, "classifier epoch", epoch))
        order = draw.permutation(len(self.examples["train"]))
        return [[int(number) for number in part] for part in np.array_split(order, self.steps_per_epoch)]

    def step_batch(self, numbers: Sequence[int], rank: int = 0, world: int = 1) -> ReplyStep:
        """The forward passes of an optimizer step, on one process."""
        dialogues = dict.fromkeys(self.examples["train"][number].dialogue for number in numbers)
        return ReplyStep(tuple(self._batches("train", numbers)), tuple(dialogues))

    def _batches(self, split: str, numbers: Sequence[int]) -> Iterator[ReplyBatch]:
        replies, examples = self._encoded[split], self.examples[split]
        for batch in batches_by_length([len(replies[number]) for number in numbers], self.row_tokens):
            chosen = [numbers[position] for position in batch]
            yield ReplyBatch(tuple(replies[n] for n in chosen), tuple(examples[n].strategy for n in chosen))

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Batches stay plain numbers; the classifier makes its tensors where its weights are."""
        return batch

    def train_dataloader(self) -> StepLoader:
        return StepLoader(self)  # type: ignore[arg-type]  # all that it asks for is here too

    def val_dataloader(self) -> DataLoader[Any]:
        batches: Any = list(self._batches("val", range(len(self.examples["val"]))))
        return DataLoader(batches, batch_size=None, collate_fn=_as_is)


def _as_is(item: Any) -> Any:
    return item


class ClassifierModule(TrainingModule):
    """Minimises the mean cross-entropy of the strategies over the replies of each optimizer step, all weighed alike.

    Logged: `train/loss`, `train/lr`, `train/grad_norm`, `tokens_per_s`, and `val/loss` over all validation replies.
    """

    def __init__(
        self,
        classifier: StrategyClassifier,
        optimizer: OptimizerConfig,
        scheduler: SchedulerConfig,
        gradient_clip: float,
        seed: int,
    ) -> None:
        super().__init__(classifier.model, optimizer, scheduler, gradient_clip, seed)
        self.classifier = classifier

    def training_step(self, batch: ReplyStep, batch_idx: int) -> None:
        replies = sum(len(part.replies) for part in batch.batches)
        tokens = sum(len(reply) for part in batch.batches for reply in part.replies)
        losses = (self._loss(part) / replies for part in batch.batches)
        loss = self.optimize(losses, len(batch.batches), tokens, batch.dialogues)
        self.log("train/loss", loss, prog_bar=True)

    def _loss(self, batch: ReplyBatch) -> Tensor:
        """Sum of the cross-entropy over the replies of a batch."""
        logits = self.classifier.logits(batch.replies)
        return cross_entropy(logits, torch.tensor(batch.strategies, device=logits.device), reduction="sum")

    def on_validation_epoch_start(self) -> None:
        self._loss_sum, self._replies = 0.0, 0

    def validation_step(self, batch: ReplyBatch, batch_idx: int) -> None:
        self._loss_sum += float(self._loss(batch))
        self._replies += len(batch.replies)

    def on_validation_epoch_end(self) -> None:
        self.log("val/loss", self._loss_sum / self._replies, prog_bar=True)
