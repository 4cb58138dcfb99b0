"""Chain of Strategy Optimization: preference optimisation on whole dialogue trees in one pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from esc_lab.config.training import ObjectiveConfig, OptimizerConfig, SchedulerConfig
from esc_lab.models.log_probs import reply_log_probs
from esc_lab.training.cso_data import PreferenceBatch
from esc_lab.training.module import TrainingModule
from esc_lab.training.objectives import (
    NEEDS_REFERENCE,
    PairLogProbs,
    ReplyLogProbs,
    dpo,
    hinge,
    ipo,
    kto,
    kto_kl,
    orpo,
    rewards,
    simpo,
    value_gap_margin,
    weighted_log_prob,
)
from esc_lab.training.preference_split import PreferenceRow
from esc_lab.training.reference import LiveReference


@dataclass(frozen=True)
class ReplyScores:
    """Log-probabilities [replies] of a row's replies, their (weighted) token counts, and those of the reference."""

    policy: Tensor
    tokens: Tensor
    reference: Tensor | None


class CSOModule(TrainingModule):
    """Minimises a preference objective over the chosen and rejected replies of dialogue trees.

    One forward pass over a packed row gives the log-probabilities of all its replies; a pair is two indices. The loss
    of a step is the mean over its pairs (for KTO over its replies).

    Logged, as means over the step's pairs: `loss`; `reward_chosen`, `reward_rejected`, `margin` and `accuracy` of the
    objective's rewards (for KTO: of desirable and undesirable replies, and the share on the right side of the
    reference point); `logp_chosen`, `logp_rejected` per reply; `kl`, the mean log-ratio of policy and reference over
    these replies (an estimate of how far the policy has moved on them, not of its own samples' KL divergence);
    `pairs_per_s`; and `tokens_saved`, the share of tokens that separate sequences would need on top.

    Args:
        reference: live reference model; None if the batches bring its log-probabilities or the objective needs none.
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
        self.objective = objective
        self.reference = reference

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        started = time.perf_counter()
        kl = self._reference_point(batch, distributed=True)
        sums: dict[str, float] = {}
        tokens = sum(len(row.row) for row in (*batch.rows, *batch.mismatched))
        self.optimize(self._losses(batch, kl, sums), len(batch.rows), tokens, batch.dialogues)
        for name, value in self._means(sums, batch).items():
            self.log(f"train/{name}", value, prog_bar=name in ("loss", "accuracy"), reduce_fx="sum", sync_dist=True)
        self.log("train/tokens_saved", 1 - batch.tokens / batch.separate_tokens)
        self.log("pairs_per_s", batch.comparisons / (time.perf_counter() - started), prog_bar=True)

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        # Every process sees all validation rows.
        kl = self._reference_point(batch, distributed=False)
        sums: dict[str, float] = {}
        for _ in self._losses(batch, kl, sums):
            pass
        for name, value in self._means(sums, batch).items():
            self.log(f"val/{name}", value, prog_bar=name == "loss", sync_dist=True, batch_size=1)

    def _losses(self, batch: PreferenceBatch, kl: Tensor, sums: dict[str, float]) -> Iterator[Tensor]:
        """Summed loss of each row over the number of comparisons of the step; adds the row's metrics to `sums`."""
        for row in batch.rows:
            scores = self._score(row)
            losses, measured = self._compare(row, scores, kl)
            measured["loss"] = losses
            for name, values in measured.items():
                sums[name] = sums.get(name, 0.0) + float(values.detach().sum())
            # A row without comparisons still takes part in the gradient exchange.
            yield losses.sum() / batch.comparisons if len(losses) else 0.0 * scores.policy.sum()

    def _score(self, row: PreferenceRow) -> ReplyScores:
        reference = self._reference(row)
        policy, tokens = self._weighted(reply_log_probs(self.model, row.row), row)
        return ReplyScores(policy, tokens, reference)

    def _weighted(self, token_log_probs: Tensor, row: PreferenceRow) -> tuple[Tensor, Tensor]:
        device = token_log_probs.device
        reply, is_label = torch.from_numpy(row.row.reply).to(device), torch.from_numpy(row.is_label).to(device)
        return weighted_log_prob(token_log_probs, reply, is_label, len(row.row.keys), self.objective.strategy_weight)

    def _reference(self, row: PreferenceRow) -> Tensor | None:
        """Log-probabilities [replies] under the reference model, from the row or from the live model."""
        if self.objective.name not in NEEDS_REFERENCE:
            return None
        if row.reference is not None:
            label, text = torch.from_numpy(row.reference).to(self.device).unbind(dim=1)
            return self.objective.strategy_weight * label + text
        assert self.reference is not None
        with self.reference() as model:
            return self._weighted(reply_log_probs(model, row.row), row)[0]

    def _reference_point(self, batch: PreferenceBatch, *, distributed: bool) -> Tensor:
        """KTO's reference point: the mismatched replies of the step's turns, one each (`kto_kl`)."""
        found = torch.zeros(3, device=self.device)
        if self.objective.name == "kto":
            with torch.no_grad():
                for row in batch.mismatched:
                    scores = self._score(row)
                    assert scores.reference is not None
                    each = torch.from_numpy(row.reply_of).to(found.device)
                    sums = [scores.policy[each].sum(), scores.reference[each].sum()]
                    found += torch.stack([*sums, found.new_tensor(len(each))])
            if distributed:
                found = self.trainer.strategy.reduce(found, reduce_op="sum")
            return kto_kl(found[0:1] / found[2], found[1:2] / found[2])
        return found[0]

    def _compare(self, row: PreferenceRow, scores: ReplyScores, kl: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses [P] of the row's comparisons, and the values of each that are logged."""
        chosen = torch.from_numpy(row.chosen).to(scores.policy.device)
        rejected = torch.from_numpy(row.rejected).to(scores.policy.device)
        if self.objective.name == "kto":
            return self._compare_single(row, scores, chosen, kl)
        reference = scores.reference
        pairs = PairLogProbs(
            scores.policy[chosen],
            scores.policy[rejected],
            scores.tokens[chosen],
            scores.tokens[rejected],
            None if reference is None else reference[chosen],
            None if reference is None else reference[rejected],
            self._margins(row),
        )
        good, bad = pair_rewards(self.objective, pairs)
        measured = {
            "reward_chosen": good,
            "reward_rejected": bad,
            "margin": good - bad,
            "accuracy": (good > bad).float(),
            "logp_chosen": pairs.chosen,
            "logp_rejected": pairs.rejected,
        }
        if reference is not None:
            measured["kl"] = (pairs.chosen - reference[chosen] + pairs.rejected - reference[rejected]) / 2
        return pair_losses(self.objective, pairs), measured

    def _margins(self, row: PreferenceRow) -> Tensor | None:
        if not self.objective.value_margin:
            return None
        chosen, rejected = torch.from_numpy(row.values).to(self.device).unbind(dim=1)
        margin, _ = value_gap_margin(chosen, rejected, self.objective.value_margin)
        return margin  # pairs without a valid gap were left out when the data was read

    def _compare_single(
        self, row: PreferenceRow, scores: ReplyScores, replies: Tensor, kl: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert scores.reference is not None
        settings = self.objective
        good = torch.from_numpy(row.desirable).to(replies.device)
        judged = ReplyLogProbs(scores.policy[replies], scores.reference[replies], good)
        losses = kto(
            judged,
            beta=settings.beta,
            desirable_weight=settings.desirable_weight,
            undesirable_weight=settings.undesirable_weight,
            kl=kl,
        )
        ratio = judged.policy - judged.reference
        reward = settings.beta * ratio
        return losses, {
            "reward_chosen": reward[good],
            "reward_rejected": reward[~good],
            "accuracy": ((ratio > kl) == good).float(),
            "logp_chosen": judged.policy[good],
            "logp_rejected": judged.policy[~good],
            "kl": ratio,
            "kl_mismatched": kl.expand(len(ratio)),
        }

    def _means(self, sums: dict[str, float], batch: PreferenceBatch) -> dict[str, float]:
        """This process' share of each mean over the step; these shares add up over processes."""
        if self.objective.name != "kto":
            return {name: value / batch.comparisons for name, value in sums.items()}
        counts = {"chosen": batch.desirable, "rejected": batch.comparisons - batch.desirable}
        means = {
            name: value / max(counts.get(name.rpartition("_")[2], batch.comparisons), 1) for name, value in sums.items()
        }
        if all(counts.values()):
            means["margin"] = means["reward_chosen"] - means["reward_rejected"]
        return means


def pair_losses(objective: ObjectiveConfig, pairs: PairLogProbs) -> Tensor:
    """Losses [P] of a pair objective with its settings."""
    match objective.name:
        case "ipo":
            return ipo(pairs, beta=objective.beta, normalisation=objective.normalisation)  # type: ignore[arg-type]
        case "hinge":
            return hinge(pairs, beta=objective.beta)
        case "simpo":
            return simpo(pairs, beta=objective.beta, gamma=objective.gamma)
        case "orpo":
            return orpo(pairs, lambda_=objective.lambda_)
    return dpo(pairs, beta=objective.beta, label_smoothing=objective.label_smoothing)


def pair_rewards(objective: ObjectiveConfig, pairs: PairLogProbs) -> tuple[Tensor, Tensor]:
    """What the objective compares, [P] each: log-ratios times beta, or without a reference mean log-probabilities.

    SimPO scales the mean log-probability of a token by beta, ORPO does not.
    """
    if objective.name in NEEDS_REFERENCE:
        return rewards(pairs, objective.beta)
    scale = objective.beta if objective.name == "simpo" else 1.0
    return scale * pairs.chosen / pairs.chosen_tokens, scale * pairs.rejected / pairs.rejected_tokens
