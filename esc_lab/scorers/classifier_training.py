"""Training of the strategy classifier: labelled replies in, optimizer steps out, cross-entropy."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from esc_lab.config.training import OptimizerConfig, SchedulerConfig
from esc_lab.data.dialogue import Dialogue
from esc_lab.errors import UserError
from esc_lab.scorers.adherence import LabelledReply, ReplyReport, labelled_replies
from esc_lab.scorers.classifier import StrategyClassifier, batches_by_length
from esc_lab.seeds import derive_seed
from esc_lab.training.module import TrainingModule
from esc_lab.training.steps import equal_parts

log = logging.getLogger(__name__)


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


class ReplySteps:
    """Labelled replies of `train` and `val` as optimizer steps and validation batches. `test` is only collected.

    Attributes:
        examples: replies of each split.
        reports: what became of the utterances of each split.
        cut: replies of each split that were too long and are read only in part.

    Args:
        splits: dialogues of `train`, `val`, `test`; missing splits are empty.
        step_replies: replies in one optimizer step.
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
        step_replies: int,
        row_tokens: int,
        seed: int,
    ) -> None:
        self.step_replies, self.row_tokens, self.seed = step_replies, row_tokens, seed
        self.strategies = classifier.inventory.names
        self.examples: dict[str, list[LabelledReply]] = {}
        self.reports: dict[str, ReplyReport] = {}
        for split in ("train", "val", "test"):
            self.examples[split], self.reports[split] = labelled_replies(splits.get(split, ()), classifier.inventory)
        if not self.examples["train"]:
            raise UserError("the train split has no reply with a strategy", fix="check the data and its split")
        self._encoded: dict[str, list[tuple[int, ...]]] = {}
        self.cut: dict[str, int] = {}
        for split, examples in self.examples.items():
            self._encoded[split], self.cut[split] = classifier.encode([example.text for example in examples])

    def setup(self) -> None:
        """Log what the replies are, and which strategies the classifier cannot learn or be scored on."""
        for split, report in self.reports.items():
            counts = ", ".join(f"{value} {name}" for name, value in asdict(report).items())
            log.info("%s: %s, %d cut", split, counts, self.cut[split])
        present = {example.strategy for example in self.examples["train"]}
        absent = [name for number, name in enumerate(self.strategies) if number not in present]
        if absent:
            log.warning("no reply to learn these strategies from: %s", ", ".join(absent))
        if not self.examples["test"]:
            log.warning("the test split has no labelled reply, so nobody will know how far to trust the classifier")

    def counts(self) -> dict[str, float]:
        """What became of the utterances, by split."""
        counts = {f"{split}_cut": float(value) for split, value in self.cut.items()}
        for split, report in self.reports.items():
            counts |= {f"{split}_{name}": float(value) for name, value in asdict(report).items()}
        return counts

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.examples["train"]) // self.step_replies)

    def plan_epoch(self, epoch: int) -> list[list[int]]:
        """Training replies (by number) of each optimizer step of an epoch, from (seed, epoch) alone."""
        draw = np.random.default_rng(derive_seed(self.seed, "classifier epoch", epoch))
        return equal_parts(draw.permutation(len(self.examples["train"])), self.step_replies)

    def step_batch(self, numbers: Sequence[int], rank: int = 0, world: int = 1) -> ReplyStep:
        """The forward passes of an optimizer step, on one process."""
        dialogues = dict.fromkeys(self.examples["train"][number].dialogue for number in numbers)
        return ReplyStep(tuple(self._batches("train", numbers)), tuple(dialogues))

    def validation(self) -> list[ReplyBatch]:
        """The forward passes over the validation split."""
        return list(self._batches("val", range(len(self.examples["val"]))))

    def _batches(self, split: str, numbers: Sequence[int]) -> Iterator[ReplyBatch]:
        replies, examples = self._encoded[split], self.examples[split]
        for batch in batches_by_length([len(replies[number]) for number in numbers], self.row_tokens):
            members = [numbers[position] for position in batch]
            yield ReplyBatch(tuple(replies[n] for n in members), tuple(examples[n].strategy for n in members))


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
