"""The reward model learns from comparisons: optimizer steps of dialogues, the loss of pairs with ties, validation."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from esc_lab.config.reward import RATED, RewardConfig
from esc_lab.config.training import OptimizerConfig, SchedulerConfig
from esc_lab.data.dialogue import Reply
from esc_lab.models.devices import move
from esc_lab.scorers.comparisons import Comparison, ComparisonPool, outcome_weights
from esc_lab.scorers.conversations import Candidate
from esc_lab.scorers.reward_model import RewardModel
from esc_lab.seeds import EVALUATION_SEED, derive_seed
from esc_lab.statistics.intervals import BoolArray, FloatArray
from esc_lab.tokens import PackedRow, TokenSequence
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.packing import pack_unit_trees
from esc_lab.training.module import TrainingModule
from esc_lab.training.steps import equal_parts

log = logging.getLogger(__name__)
Right: TypeAlias = dict[str, list[bool]]  # kind -> whether each pair is ordered rightly


@dataclass(frozen=True)
class RewardRow:
    """A packed row with what is compared in it.

    Attributes:
        better, worse: [C] replies of the row.
        tie: [C], bool, whether neither is the better one.
        kinds: [C], what the worse one is to the better one.
        weight: [C] of each comparison in the loss.
    """

    row: PackedRow
    better: IntArray
    worse: IntArray
    tie: BoolArray
    weight: FloatArray
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class RewardBatch:
    """Everything that one optimizer step sees.

    Attributes:
        weight: of all comparisons in its rows.
        dialogues: their ids.
        alone: rows of its replies without their dialogues (`RewardModel.pack_alone`).
    """

    rows: tuple[RewardRow, ...]
    weight: float
    dialogues: tuple[str, ...]
    alone: tuple[PackedRow, ...]


def pair_loss(difference: Tensor, tie: Tensor, log_ties: Tensor | None) -> Tensor:
    """Negative log-likelihood [C] of comparisons by the model of Bradley and Terry (1952), with ties after Davidson.

    With d the difference of the scores and v >= 0 the parameter of ties (Davidson 1970, JASA 65, eq. 2.4)

        P(first is better) = e^(d/2) / (e^(d/2) + e^(-d/2) + v),        P(tie) = v / (e^(d/2) + e^(-d/2) + v)

    so that without ties (v = 0) the probability of the first is the logistic of d.

    Args:
        difference: [C], score of the better less that of the worse reply; of a tie in any order.
        tie: [C], bool.
        log_ties: logarithm of v, [C] or a scalar; minus infinity, or None, where there can be no tie.
    """
    if log_ties is None:
        losses: Tensor = softplus(-difference)
        return losses
    half = difference / 2
    total = torch.logsumexp(torch.stack([half, -half, log_ties.expand_as(half)]), dim=0)
    return total - torch.where(tie, log_ties, half)


class RewardSteps:
    """Dialogues with their comparisons as optimizer steps and validation batches.

    Args:
        pools: of `train` and `val`; without anything to compare in `val` there is no validation.

    Raises:
        UserError: there is nothing to compare in the training dialogues.
    """

    def __init__(
        self, pools: Mapping[str, ComparisonPool], reward: RewardModel, settings: RewardConfig, seed: int
    ) -> None:
        pools["train"].check()
        self.pools = {split: pool for split, pool in pools.items() if any(pool.counts().values())}
        self.reward, self.settings, self.seed = reward, settings, seed
        self.weights = outcome_weights(pools["train"].dialogues, settings.outcome_weight)

    def setup(self) -> None:
        """Log what there is to compare."""
        for split, pool in self.pools.items():
            counts = ", ".join(f"{count} {kind}" for kind, count in pool.counts().items())
            log.info("%s: replies with foils: %s", split, counts)
            if pool.shared:
                log.info("%s: %d replies that dialogues of a tree share are taken once", split, pool.shared)
            if absent := [kind for kind, count in pool.counts().items() if not count]:
                log.warning("%s: no reply has a foil of kind %s", split, ", ".join(absent))

    def plan_epoch(self, epoch: int) -> list[list[int]]:
        """Numbers are those of the training dialogues, plus as many as there are for each epoch before."""
        count = len(self.pools["train"].dialogues)
        order = np.random.default_rng(derive_seed(self.seed, "epoch", epoch)).permutation(count)
        return equal_parts(order + epoch * count, self.settings.step_dialogues)

    def step_batch(self, numbers: Sequence[int], rank: int = 0, world: int = 1) -> RewardBatch:
        """The rows of an optimizer step, on one process."""
        return self._batch("train", numbers, self.weights)

    def validation(self) -> list[RewardBatch]:
        """Comparisons of the validation dialogues, the same in every epoch."""
        if "val" not in self.pools:
            return []
        count = len(self.pools["val"].dialogues)
        batches = [
            self._batch("val", numbers, np.ones(count))
            for numbers in equal_parts(np.arange(count), self.settings.step_dialogues)
        ]
        return [batch for batch in batches if batch.weight]

    def _batch(self, split: str, numbers: Sequence[int], weights: FloatArray) -> RewardBatch:
        pool = self.pools[split]
        trees: list[list[list[TokenSequence]]] = []
        replies: dict[Any, Reply] = {}
        compared: list[tuple[Any, Any, Comparison, float]] = []
        for number in numbers:
            epoch, index = divmod(number, len(pool.dialogues))
            seed = derive_seed(self.seed if split == "train" else EVALUATION_SEED, "foils", epoch)
            candidates, units, pairs = self._encode(pool, index, seed)
            replies |= {each.key: each.reply for each in candidates}
            trees += [units] if units else []
            compared += [(first, second, each, float(weights[index])) for first, second, each in pairs]
        rows = [self._row(row, compared) for row in pack_unit_trees(trees, self.reward.row_tokens)]
        total = sum(float(row.weight.sum()) for row in rows)
        names = tuple(pool.dialogues[number % len(pool.dialogues)].id for number in numbers)
        return RewardBatch(tuple(rows), total, names, self.reward.pack_alone(replies))

    def _encode(
        self, pool: ComparisonPool, index: int, seed: int
    ) -> tuple[list[Candidate], list[list[TokenSequence]], list[tuple[Any, Any, Comparison]]]:
        """The replies of a dialogue that are compared, also by turn; comparisons, with the keys of their replies."""
        dialogue = pool.dialogues[index]
        candidates: dict[tuple[int, Reply], Candidate] = {}

        def add(turn: int, reply: Reply) -> Any:
            key = (index, turn, len(candidates))
            return candidates.setdefault((turn, reply), Candidate(turn, reply, key)).key

        drawn = pool.draw(index, seed)
        pairs = [(add(each.turn, each.better), add(each.turn, each.worse), each) for each in drawn]
        sequences = self.reward.conversations.encode(dialogue.turns, [*candidates.values()], dialogue.where)
        units: dict[int, list[TokenSequence]] = {}
        for candidate, sequence in zip(candidates.values(), sequences, strict=True):
            units.setdefault(candidate.turn, []).append(sequence)
        return [*candidates.values()], [*units.values()], pairs

    def _row(self, row: PackedRow, compared: Sequence[tuple[Any, Any, Comparison, float]]) -> RewardRow:
        """A row with those comparisons whose replies are in it; replies of equal tokens are not compared."""
        place = {key: number for number, keys in enumerate(row.keys) for key in keys}
        here = [
            (place[first], place[second], each, weight)
            for first, second, each, weight in compared
            if first in place and second in place and place[first] != place[second]
        ]
        return RewardRow(
            row,
            np.array([better for better, _, _, _ in here], dtype=np.int64),
            np.array([worse for _, worse, _, _ in here], dtype=np.int64),
            np.array([each.tie for _, _, each, _ in here], dtype=np.bool_),
            np.array([weight for _, _, _, weight in here], dtype=np.float32),
            tuple(each.kind for _, _, each, _ in here),
        )


class RewardModule(TrainingModule):
    """Minimises the weighted mean of `pair_loss` over the comparisons of each optimizer step, and that with the anchor.

    The anchor is an imagined reply of score 0, which the better reply of a pair beats and the worse one loses to; ties
    are not compared with it. Logged: `train/loss`, `train/accuracy` and `train/accuracy_KIND` (share of pairs, ties
    apart, with the higher score on the better reply; foils are new in each epoch), `train/lr`, `train/grad_norm`,
    `tokens_per_s`, and the first three of validation.

    Attributes:
        ties: whether there may be any. Only comparisons of kind `rated` can end in one; for the others their parameter
            is 0: that a given reply is never as good as a foil, by construction, says nothing of ties.
    """

    def __init__(
        self,
        reward: RewardModel,
        settings: RewardConfig,
        optimizer: OptimizerConfig,
        scheduler: SchedulerConfig,
        gradient_clip: float,
        seed: int,
    ) -> None:
        super().__init__(reward.model, optimizer, scheduler, gradient_clip, seed)
        self.reward, self.settings = reward, settings
        self.head = reward.head
        self.ties = settings.kinds.get(RATED, 0) > 0

    def parameter_groups(self) -> list[dict[str, Any]]:
        own = {id(parameter) for parameter in self.head.parameters()}
        others = [parameter for parameter in self._trained() if id(parameter) not in own]
        return [{"params": others}, {"params": [*self.head.parameters()], "lr": self.settings.head_lr}]

    def training_step(self, batch: RewardBatch, batch_idx: int) -> None:
        right: Right = defaultdict(list)
        tokens = sum(len(row.row) for row in batch.rows)
        alone = self.reward.score_alone(batch.alone)
        losses = (self._loss(row, alone, right) / (batch.weight or 1.0) for row in batch.rows)
        loss = self.optimize(losses, len(batch.rows), tokens, batch.dialogues)
        self.log("train/loss", loss, prog_bar=True)
        self._log_accuracy("train", right)

    def _loss(self, row: RewardRow, alone: Mapping[Any, float], right: Right) -> Tensor:
        """Weighted sum of the losses of a row; adds to `right` whether each pair is ordered rightly, ties apart."""
        scores = self.reward.raw_scores(row.row, alone)
        better, worse, tie, weight = (
            move(array, scores.device) for array in (row.better, row.worse, row.tie, row.weight)
        )
        difference = scores[better] - scores[worse]
        losses = pair_loss(difference, tie, self._log_ties(row, difference) if self.ties else None)
        anchored = (softplus(-scores[better]) + softplus(scores[worse])) / 2
        losses = losses + self.settings.anchor * anchored * ~tie
        for kind, is_right, is_tie in zip(row.kinds, (difference > 0).tolist(), row.tie.tolist(), strict=True):
            if not is_tie:
                right[kind].append(is_right)
        return (weight * losses).sum()

    def _log_ties(self, row: RewardRow, like: Tensor) -> Tensor:
        rated = torch.tensor([kind == RATED for kind in row.kinds], dtype=torch.bool, device=like.device)
        return torch.where(rated, self.head.tie, -torch.inf)

    def _log_accuracy(self, split: str, right: Right) -> None:
        for kind, those in right.items():
            self.log(f"{split}/accuracy_{kind}", float(np.mean(those)))
        if every := [is_right for those in right.values() for is_right in those]:
            self.log(f"{split}/accuracy", float(np.mean(every)), prog_bar=True)

    def on_validation_epoch_start(self) -> None:
        self._loss_sum, self._weight = 0.0, 0.0
        self._right: Right = defaultdict(list)

    def validation_step(self, batch: RewardBatch, batch_idx: int) -> None:
        alone = self.reward.score_alone(batch.alone)
        for row in batch.rows:
            self._loss_sum += float(self._loss(row, alone, self._right))
        self._weight += batch.weight

    def on_validation_epoch_end(self) -> None:
        self.log("val/loss", self._loss_sum / self._weight, prog_bar=True)
        self._log_accuracy("val", self._right)
