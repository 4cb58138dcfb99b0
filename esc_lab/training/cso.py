"""Chain of Strategy Optimization: preference optimisation on whole dialogue trees in one pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esc_lab.config.training import ObjectiveConfig, OptimizerConfig, SchedulerConfig
from esc_lab.models.devices import move
from esc_lab.models.log_probs import reply_log_probs
from esc_lab.training.module import TrainingModule
from esc_lab.training.objectives import apply_settings, objective_of
from esc_lab.training.preference_split import PreferenceRow
from esc_lab.training.preference_steps import PreferenceBatch
from esc_lab.training.processes import gather_objects
from esc_lab.training.reference import LiveReference
from esc_lab.training.reply_log_probs import (
    GroupLogProbs,
    PairLogProbs,
    ReplyLogProbs,
    TokenLogProbs,
    compare_pairs,
    split_replies,
    value_gap_margin,
    weigh_tokens,
)
from esc_lab.training.sharding import ShardedStrategy


class CSOModule(TrainingModule):
    """Minimises the mean of a preference objective over the pairs (replies, groups) of each optimizer step.

    Logged, as means over the step's pairs (of groups, over best and worst sibling): `loss`; `reward_chosen`,
    `reward_rejected`, `margin` and `accuracy` of the objective's rewards (for KTO: of desirable and undesirable
    replies, and the share on the right side of the reference point); `logp_chosen`, `logp_rejected` per reply; `kl`,
    the mean log-ratio of policy and reference over these replies (an estimate of how far the policy has moved on them,
    not of its own samples' KL divergence); `pairs_per_s`; and `tokens_saved`, the share of tokens that separate
    sequences would need on top.

    Args:
        reference: live reference model; None if the batches bring its log-probabilities or the objective needs none.

    Attributes:
        before_fit: what all processes do together before the first step.

    Raises:
        UserError: there is no such objective, or it does not take what the settings ask for.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        objective: ObjectiveConfig,
        optimizer: OptimizerConfig,
        scheduler: SchedulerConfig,
        gradient_clip: float,
        seed: int,
        reference: LiveReference | None = None,
    ) -> None:
        super().__init__(model, optimizer, scheduler, gradient_clip, seed)
        self.settings, self.objective = objective, objective_of(objective)
        self.reference = reference
        self.before_fit: Callable[[], None] | None = None
        self.old_policy: dict[int, Tensor] = {}  # by row of the step, before the first step on the same trees

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        started = time.perf_counter()
        kl = self._reference_point(batch, distributed=True)
        sums: dict[str, Tensor] = {}
        tokens = sum(len(row.row) for row in (*batch.rows, *batch.mismatched))
        self.optimize(self._losses(batch, kl, sums), len(batch.rows), tokens, batch.dialogues)
        for name, value in _means(sums, batch).items():
            self.log(f"train/{name}", value, prog_bar=name in ("loss", "accuracy"), reduce_fx="sum", sync_dist=True)
        self.log("train/tokens_saved", 1 - batch.tokens / batch.separate_tokens)
        self.log("pairs_per_s", batch.comparisons / (time.perf_counter() - started), prog_bar=True)

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        # Every process sees all validation rows.
        kl = self._reference_point(batch, distributed=False)
        sums: dict[str, Tensor] = {}
        for _ in self._losses(batch, kl, sums):
            pass
        for name, value in _means(sums, batch).items():
            self.log(f"val/{name}", value, prog_bar=name == "loss", sync_dist=True, batch_size=1)

    def _losses(self, batch: PreferenceBatch, kl: Tensor, sums: dict[str, Tensor]) -> Iterator[Tensor]:
        """Summed loss of each row over the number of comparisons of the step; adds the row's metrics to `sums`."""
        for number, row in enumerate(batch.rows):
            tokens = self._score(row)
            if self.objective.takes_iterations:
                tokens = self._add_old_policy(tokens, number if len(row.members) else None)
            values = self._compare(row, tokens, kl)
            for name, value in values.items():
                sums[name] = value.detach().sum().double() + sums.get(name, 0.0)
            # A row without comparisons still takes part in the gradient exchange.
            yield values["loss"].sum() / batch.comparisons if len(row.members) else 0.0 * tokens.policy.sum()

    def _score(self, row: PreferenceRow) -> TokenLogProbs:
        """Log-probabilities of the row's replies, [replies, tokens]."""
        policy, reference = reply_log_probs(self.model, row.row), self._reference_log_probs(row)
        lengths, label_tokens = (self._tensor(array) for array in (row.lengths, row.label_tokens))
        longest = int(row.lengths.max())
        return TokenLogProbs(
            split_replies(policy, lengths, longest),
            weigh_tokens(lengths, label_tokens, self.settings.strategy_weight, policy.dtype, longest),
            None if reference is None else split_replies(reference, lengths, longest),
        )

    def _reference_log_probs(self, row: PreferenceRow) -> Tensor | None:
        """Log-probabilities [N] of the row's reply tokens under the reference model, from the row or the live model."""
        if not self.objective.needs_reference:
            return None
        if row.reference is not None:
            return self._tensor(row.reference)
        assert self.reference is not None
        with self.reference() as model:
            return reply_log_probs(model, row.row)

    def _add_old_policy(self, tokens: TokenLogProbs, number: int | None) -> TokenLogProbs:
        """The tokens with those of the policy before the first step on these trees; in validation of the reference.

        So have those of a row without comparisons, which has no number.

        The first step needs no other pass: its policy is the old one. At validation every advantage would cancel
        out beside it, and the loss say nothing but how far the policy has moved.
        """
        if number is None or not self.trainer.training:
            return replace(tokens, old_policy=tokens.reference)
        if self.trainer.global_step % self.settings.iterations == 0:
            self.old_policy[self._row_of_step(number)] = tokens.policy.detach()
        return replace(tokens, old_policy=self.old_policy[self._row_of_step(number)].to(self.device))

    def _row_of_step(self, number: int) -> int:
        """Number in the whole step of a row of this process."""
        return self.global_rank + number * self.trainer.world_size

    def configure_model(self) -> None:
        super().configure_model()
        if self.reference is not None and isinstance(self.trainer.strategy, ShardedStrategy):
            self.reference.shard(self.trainer.strategy.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        if self.before_fit is not None:  # with the weights that training starts from, also in a run that goes on
            self.before_fit()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.objective.takes_iterations:
            checkpoint["old_policy"] = gather_rows(self.old_policy)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.old_policy = checkpoint.get("old_policy", {})

    def _reference_point(self, batch: PreferenceBatch, *, distributed: bool) -> Tensor:
        """KTO's reference point (see `kto`): the mismatched replies of the step's turns count once each."""
        sums = torch.zeros(2, device=self.device)
        if self.objective.compares != "replies":
            return sums[0]
        with torch.no_grad():
            for row in batch.mismatched:
                policy, _, reference = self._score(row).sums()
                assert reference is not None
                replies = self._tensor(row.reply_of)
                sums += torch.stack([(policy - reference)[replies].sum(), sums.new_full((), len(replies))])
        if distributed:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        return (sums[0] / sums[1]).clamp(min=0)

    def _compare(self, row: PreferenceRow, tokens: TokenLogProbs, kl: Tensor) -> dict[str, Tensor]:
        """Loss [P] of what is compared in the row, and the values of each that are logged."""
        match self.objective.compares:
            case "replies":
                return self._compare_replies(row, tokens, kl)
            case "groups":
                groups = GroupLogProbs(tokens.select(self._tensor(row.members)), self._tensor(row.values))
                losses = apply_settings(self.objective.loss, self.settings, groups)
                return {"loss": losses, **self._describe_pairs(row, tokens, self._pairs(row, tokens))}
            case "pairs":
                pairs = self._pairs(row, tokens)
                losses = apply_settings(self.objective.loss, self.settings, pairs)
                return {"loss": losses, **self._describe_pairs(row, tokens, pairs)}

    def _pairs(self, row: PreferenceRow, tokens: TokenLogProbs) -> PairLogProbs:
        """The row's pairs; of groups the best and the worst sibling."""
        sides = (self._tensor(row.lengths), self._tensor(row.chosen), self._tensor(row.rejected))
        return replace(pair_log_probs(self.settings, tokens, *sides), margin=self._margins(row))

    def _describe_pairs(self, row: PreferenceRow, tokens: TokenLogProbs, pairs: PairLogProbs) -> dict[str, Tensor]:
        policy, _, reference = tokens.sums()
        members = self._tensor(row.members[:, :2])
        reward_chosen, reward_rejected = pair_rewards(self.settings, pairs)
        values = {
            "reward_chosen": reward_chosen,
            "reward_rejected": reward_rejected,
            "accuracy": (reward_chosen > reward_rejected).float(),
            "logp_chosen": policy[members[:, 0]],
            "logp_rejected": policy[members[:, 1]],
        }
        if reference is not None:
            values["kl"] = (policy - reference)[members].mean(dim=1)
        return values

    def _margins(self, row: PreferenceRow) -> Tensor | None:
        if not self.settings.value_margin:
            return None
        chosen, rejected = self._tensor(row.values).unbind(dim=1)
        return value_gap_margin(chosen, rejected, self.settings.value_margin)

    def _compare_replies(self, row: PreferenceRow, tokens: TokenLogProbs, kl: Tensor) -> dict[str, Tensor]:
        """Loss [N] of the row's single replies, and the values of each that are logged."""
        policy, _, reference = tokens.sums()
        assert reference is not None
        replies, desirable = self._tensor(row.chosen), self._tensor(row.desirable)
        good, bad = (self._tensor(np.flatnonzero(kind)) for kind in (row.desirable, ~row.desirable))
        labelled = ReplyLogProbs(policy[replies], reference[replies], desirable)
        log_ratio = labelled.policy - labelled.reference
        reward = self.settings.beta * log_ratio
        return {
            "loss": apply_settings(self.objective.loss, self.settings, labelled, kl),
            "reward_chosen": reward[good],
            "reward_rejected": reward[bad],
            "accuracy": ((log_ratio > kl) == desirable).float(),
            "logp_chosen": labelled.policy[good],
            "logp_rejected": labelled.policy[bad],
            "kl": log_ratio,
            "kl_mismatched": kl.expand(len(log_ratio)),
        }

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return move(array, self.device)


def pair_log_probs(
    settings: ObjectiveConfig, tokens: TokenLogProbs, lengths: Tensor, chosen: Tensor, rejected: Tensor
) -> PairLogProbs:
    """Log-probabilities of pairs, without margins, as the objective of these settings weighs them."""
    excess_weight = settings.excess_weight if objective_of(settings).weighs_excess else 1.0
    return compare_pairs(tokens, lengths, chosen, rejected, excess_weight)


def gather_rows(rows: dict[int, Tensor]) -> dict[int, Tensor]:
    """The rows of all processes."""
    parts = gather_objects({number: row.cpu() for number, row in rows.items()})
    return {number: row for part in parts for number, row in part.items()}


def pair_rewards(settings: ObjectiveConfig, pairs: PairLogProbs) -> tuple[Tensor, Tensor]:
    """What the objective of these settings compares in chosen and rejected replies, [P] each."""
    chosen, rejected = apply_settings(objective_of(settings).rewards, settings, pairs)
    return chosen, rejected


def _means(sums: dict[str, Tensor], batch: PreferenceBatch) -> dict[str, float]:
    """This process' share of each mean over the step; these shares add up over processes."""
    counts = {"chosen": batch.chosen, "rejected": batch.rejected}
    values = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True)) if sums else {}
    means = {
        name: value / max(counts.get(name.rpartition("_")[2], batch.comparisons), 1) for name, value in values.items()
    }
    if all(counts.values()):
        means["margin"] = means["reward_chosen"] - means["reward_rejected"]
    return means
