"""The strategy classifier learns from labelled replies, and is scored on held-out ones."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from esc_lab.config.training import OptimizerConfig, SchedulerConfig
from esc_lab.data.dialogue import Dialogue
from esc_lab.errors import UserError
from esc_lab.metrics import StrategyProficiency
from esc_lab.models.devices import find_device
from esc_lab.scorers.adherence import LabelledReply, ReplyReport, labelled_replies
from esc_lab.scorers.classifier import StrategyClassifier, batches_by_length, choose_strategies
from esc_lab.seeds import derive_seed
from esc_lab.terminal import print_table
from esc_lab.training.module import TrainingModule
from esc_lab.training.steps import equal_parts

log = logging.getLogger(__name__)
_METRICS = {
    "accuracy": "accuracy", "Q": "macro_f1", "Q_W": "weighted_f1", "n": "n", "classes_predicted": "classes_predicted",
}  # fmt: skip


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
        cut: replies of each split that were too long and are read only in part.

    Args:
        splits: dialogues of `train`, `val`, `test`; missing splits are empty.
        step_replies: replies in one optimizer step.
        row_tokens: budget of one forward pass in padded tokens.
        last: only replies that are the last turn of their dialogue.

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
        last: bool = False,
    ) -> None:
        self.step_replies, self.row_tokens, self.seed = step_replies, row_tokens, seed
        self.strategies = classifier.inventory.names
        self.examples: dict[str, list[LabelledReply]] = {}
        self.reports: dict[str, ReplyReport] = {}
        for split in ("train", "val", "test"):
            dialogues = splits.get(split, ())
            self.examples[split], self.reports[split] = labelled_replies(dialogues, classifier.inventory, last=last)
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
        reports = {split: {"cut": self.cut[split], **asdict(report)} for split, report in self.reports.items()}
        return {f"{split}_{name}": float(value) for split, counts in reports.items() for name, value in counts.items()}

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


def score_classifier(
    classifier: StrategyClassifier, training: Sequence[LabelledReply], test: Sequence[LabelledReply], row_tokens: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics of the predictions on the test replies, and a row for each strategy.

    `majority_accuracy` is that of always naming the most frequent strategy of the training replies.
    """
    classifier.model.to(find_device())
    predicted = choose_strategies(classifier.predict([example.text for example in test], row_tokens=row_tokens))
    proficiency = StrategyProficiency(classifier.inventory.names)
    proficiency.update(predicted, torch.tensor([example.strategy for example in test]))
    scores = proficiency.compute()
    ((majority, _),) = Counter(example.strategy for example in training).most_common(1)
    metrics = {name: float(scores[score]) for name, score in _METRICS.items()}
    metrics["majority_accuracy"] = sum(example.strategy == majority for example in test) / len(test)
    per_class = {name: values.tolist() for name, values in proficiency.per_class().items()}
    columns = {"strategy": classifier.inventory.names, **per_class}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {f"classifier/{name}": value for name, value in metrics.items()}, rows


NOTES = (
    "precision: of the replies that it takes for the strategy, the share that has it; recall: of those that have it, "
    "the share that it takes for it; F1: high where both are. gold, predicted: how many have it, are taken for it.",
    "Q: mean of F1 over the strategies. n: replies. Most frequent strategy: the accuracy of always answering that.",
)


def print_scores(title: str, metrics: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> None:
    """The metrics and rows of `score_classifier` as a table."""
    caption = ("accuracy {accuracy:.3f} (most frequent strategy {majority_accuracy:.3f})  Q {Q:.3f}  n {n:.0f}").format(
        **{name.removeprefix("classifier/"): value for name, value in metrics.items()}
    )
    decimals = {"precision": 3, "recall": 3, "f1": 3, "support": 0, "predicted": 0}
    print_table(
        title,
        ["strategy", "precision", "recall", "F1", "gold", "predicted"],
        [[row["strategy"], *(f"{row[key]:.{digits}f}" for key, digits in decimals.items())] for row in rows],
        caption=caption,
        meanings=NOTES,
    )
