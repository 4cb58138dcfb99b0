"""Chain of Strategy Optimization: preference optimisation on whole dialogue trees in one pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from esc_lab.config.training import ObjectiveConfig, OptimizerConfig, SchedulerConfig
from esc_lab.models.log_probs import reply_log_probs
from esc_lab.training.module import TrainingModule
from esc_lab.training.objectives import apply_settings, objective_of
from esc_lab.training.preference_steps import PreferenceBatch, PreferenceRow
from esc_lab.training.reference import LiveReference
from esc_lab.training.reply_log_probs import PairLogProbs, ReplyLogProbs, value_gap_margin, weighted_log_prob

# Log-probabilities [replies] of a row's replies, their (weighted) token counts, and log-probabilities of the reference.
ReplyScores = tuple[Tensor, Tensor, Tensor | None]


class CSOModule(TrainingModule):
    """Minimises the mean of a preference objective over the pairs (for KTO the replies) of each optimizer step.

    Logged, as means over the step's pairs: `loss`; `reward_chosen`, `reward_rejected`, `margin` and `accuracy` of the
    objective's rewards (for KTO: of desirable and undesirable replies, and the share on the right side of the
    reference point); `logp_chosen`, `logp_rejected` per reply; `kl`, the mean log-ratio of policy and reference over
    these replies (an estimate of how far the policy has moved on them, not of its own samples' KL divergence);
    `pairs_per_s`; and `tokens_saved`, the share of tokens that separate sequences would need on top.

    Args:
        reference: live reference model; None if the batches bring its log-probabilities or the objective needs none.

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

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        started = time.perf_counter()
        kl = self._reference_point(batch, distributed=True)
        sums: dict[str, float] = {}
        tokens = sum(len(row.row) for row in (*batch.rows, *batch.mismatched))
        self.optimize(self._losses(batch, kl, sums), len(batch.rows), tokens, batch.dialogues)
        for name, value in _means(sums, batch).items():
            self.log(f"train/{name}", value, prog_bar=name in ("loss", "accuracy"), reduce_fx="sum", sync_dist=True)
        self.log("train/tokens_saved", 1 - batch.tokens / batch.separate_tokens)
        self.log("pairs_per_s", batch.comparisons / (time.perf_counter() - started), prog_bar=True)

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        # Every process sees all validation rows.
        kl = self._reference_point(batch, distributed=False)
        sums: dict[str, float] = {}
        for _ in self._losses(batch, kl, sums):
            pass
        for name, value in _means(sums, batch).items():
            self.log(f"val/{name}", value, prog_bar=name == "loss", sync_dist=True, batch_size=1)

    def _losses(self, batch: PreferenceBatch, kl: Tensor, sums: dict[str, float]) -> Iterator[Tensor]:
        """Summed loss of each row over the number of comparisons of the step; adds the row's metrics to `sums`."""
        for row in batch.rows:
            scores = self._score(row)
            single = self.objective.single_replies
            values = self._compare_replies(row, scores, kl) if single else self._compare_pairs(row, scores)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach().sum())
            # A row without comparisons still takes part in the gradient exchange.
            yield values["loss"].sum() / batch.comparisons if len(row.chosen) else 0.0 * scores[0].sum()

    def _score(self, row: PreferenceRow) -> ReplyScores:
        reference = self._reference_log_probs(row)
        return *self._weighted_log_probs(self.model, row), reference

    def _weighted_log_probs(self, model: Any, row: PreferenceRow) -> tuple[Tensor, Tensor]:
        values = reply_log_probs(model, row.row)
        reply, is_label = (torch.from_numpy(array).to(values.device) for array in (row.row.reply, row.is_label))
        return weighted_log_prob(values, reply, is_label, len(row.row.keys), self.settings.strategy_weight)

    def _reference_log_probs(self, row: PreferenceRow) -> Tensor | None:
        """Log-probabilities [replies] under the reference model, from the row or from the live model."""
        if not self.objective.needs_reference:
            return None
        if row.reference is not None:
            label, text = torch.from_numpy(row.reference).to(self.device).unbind(dim=1)
            return self.settings.strategy_weight * label + text
        assert self.reference is not None
        with self.reference() as model:
            return self._weighted_log_probs(model, row)[0]

    def _reference_point(self, batch: PreferenceBatch, *, distributed: bool) -> Tensor:
        """KTO's reference point (see `kto`): the mismatched replies of the step's turns count once each."""
        sums = torch.zeros(2, device=self.device)
        if not self.objective.single_replies:
            return sums[0]
        with torch.no_grad():
            for row in batch.mismatched:
                policy, _, reference = self._score(row)
                assert reference is not None
                replies = torch.from_numpy(row.reply_of).to(sums.device)
                sums += torch.stack([(policy - reference)[replies].sum(), sums.new_tensor(len(replies))])
        if distributed:
            sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        return (sums[0] / sums[1]).clamp(min=0)

    def _compare_pairs(self, row: PreferenceRow, scores: ReplyScores) -> dict[str, Tensor]:
        """Loss [P] of the row's pairs, and the values of each that are logged."""
        policy, tokens, reference = scores
        chosen, rejected = (torch.from_numpy(side).to(policy.device) for side in (row.chosen, row.rejected))
        ours = (policy[chosen], policy[rejected], tokens[chosen], tokens[rejected])
        theirs = (None, None) if reference is None else (reference[chosen], reference[rejected])
        pairs = PairLogProbs(*ours, theirs[0], theirs[1], self._margins(row))
        reward_chosen, reward_rejected = pair_rewards(self.settings, pairs)
        values = {
            "loss": apply_settings(self.objective.loss, self.settings, pairs),
            "reward_chosen": reward_chosen,
            "reward_rejected": reward_rejected,
            "accuracy": (reward_chosen > reward_rejected).float(),
            "logp_chosen": pairs.chosen,
            "logp_rejected": pairs.rejected,
        }
        if reference is not None:
            values["kl"] = (pairs.chosen - reference[chosen] + pairs.rejected - reference[rejected]) / 2
        return values

    def _margins(self, row: PreferenceRow) -> Tensor | None:
        if not self.settings.value_margin:
            return None
        chosen, rejected = torch.from_numpy(row.values).to(self.device).unbind(dim=1)
        return value_gap_margin(chosen, rejected, self.settings.value_margin)

    def _compare_replies(self, row: PreferenceRow, scores: ReplyScores, kl: Tensor) -> dict[str, Tensor]:
        """Loss [N] of the row's single replies, and the values of each that are logged."""
        policy, _, reference = scores
        assert reference is not None
        replies = torch.from_numpy(row.chosen).to(policy.device)
        desirable = torch.from_numpy(row.desirable).to(replies.device)
        labelled = ReplyLogProbs(policy[replies], reference[replies], desirable)
        log_ratio = labelled.policy - labelled.reference
        reward = self.settings.beta * log_ratio
        return {
            "loss": apply_settings(self.objective.loss, self.settings, labelled, kl),
            "reward_chosen": reward[desirable],
            "reward_rejected": reward[~desirable],
            "accuracy": ((log_ratio > kl) == desirable).float(),
            "logp_chosen": labelled.policy[desirable],
            "logp_rejected": labelled.policy[~desirable],
            "kl": log_ratio,
            "kl_mismatched": kl.expand(len(log_ratio)),
        }


def pair_rewards(settings: ObjectiveConfig, pairs: PairLogProbs) -> tuple[Tensor, Tensor]:
    """What the objective of these settings compares in chosen and rejected replies, [P] each."""
    chosen, rejected = apply_settings(objective_of(settings).rewards, settings, pairs)
    return chosen, rejected


def _means(sums: dict[str, float], batch: PreferenceBatch) -> dict[str, float]:
    """This process' share of each mean over the step; these shares add up over processes."""
    counts = {"chosen": batch.chosen, "rejected": batch.rejected}
    means = {
        name: value / max(counts.get(name.rpartition("_")[2], batch.comparisons), 1) for name, value in sums.items()
    }
    if all(counts.values()):
        means["margin"] = means["reward_chosen"] - means["reward_rejected"]
    return means
