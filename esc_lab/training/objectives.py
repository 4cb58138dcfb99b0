"""Preference objectives: losses of replies from their log-probabilities, and the record of each. Pure functions.

A pair objective takes the log-probabilities of P preference pairs and returns P losses; `kto` takes N replies with a
label each and returns N losses; `listwise` and `grpo` (`group_objectives`) take G groups of siblings, the replies that
a search has tried and valued at a decision, and return G losses. None of them takes a mean: the loss of an optimizer
step is the mean over all pairs (replies, groups) of that step, and only the caller knows how many those are. Everywhere
below, for reply y after history x,

    log pi(y)   log-probability under the policy, summed over the reply's tokens and its end-of-turn token
    log ref(y)  the same under the frozen reference model
    |y|         number of these tokens; y_w is the chosen reply and y_l the rejected one
    h           = [log pi(y_w) - log ref(y_w)] - [log pi(y_l) - log ref(y_l)]

Keyword arguments are settings of the section `objective`; one out of range is a ValueError. It is a UserError if an
objective that compares with a reference model gets no reference log-probabilities, or one that has no offset gets pairs
with margins. Remarks on TRL are about version 1.16.

A new objective is a function here with its record in `OBJECTIVES`, and a preset in `conf/objective`. Torch is imported
when a loss is computed, so that a configuration can be checked without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from esc_lab.config.training import ObjectiveConfig
from esc_lab.errors import UserError, nearest
from esc_lab.training.group_objectives import grpo, listwise
from esc_lab.training.limits import check_not_negative, check_positive

if TYPE_CHECKING:
    from torch import Tensor

    from esc_lab.training.reply_log_probs import PairLogProbs, ReplyLogProbs


def dpo(pairs: PairLogProbs, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Losses [P] of DPO, with which CSO trains on the pairs of its strategy search (ESC-Pro): `cso` is this function.

        z = beta h - margin
        loss = -(1 - e) log sigmoid(z) - e log sigmoid(-z)

    Rafailov et al. 2023, eq. 7; with e = label_smoothing > 0 conservative DPO (Mitchell 2023), for labels that are
    wrong with probability e; with a margin offset DPO (Amini et al. 2024). CSO (Zhao et al. 2025) changes where the
    pairs come from, not the loss. Smoothing and margin together: z is the logit of "the reward margin exceeds the
    offset", and that event gets the probability 1 - e.

    TRL: `loss_type="sigmoid"` is this with e = 0 (it ignores `label_smoothing`) and no margin. Its "robust" is another
    loss (Chowdhury et al. 2024: unbiased under flipped labels, not bounded below).

    Example:
        >>> import torch
        >>> from esc_lab.training.reply_log_probs import PairLogProbs
        >>> one = torch.ones(1)
        >>> pairs = PairLogProbs(-9 * one, -14 * one, 6 * one, 8 * one, -10 * one, -12 * one)
        >>> dpo(pairs, beta=0.1)  # h = (-9 + 10) - (-14 + 12) = 3
        tensor([0.5544])
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), got {label_smoothing}")
    chosen, rejected = implicit_rewards(pairs, beta=beta)
    logit = chosen - rejected
    if pairs.margin is not None:
        logit = logit - pairs.margin
    return -(1 - label_smoothing) * _log_sigmoid(logit) - label_smoothing * _log_sigmoid(-logit)


def dpop(pairs: PairLogProbs, *, beta: float, lambda_: float) -> Tensor:
    """Losses [P] of DPO-Positive (Pal et al. 2024): DPO in which no chosen reply is to become less probable.

        loss = -log sigmoid(beta (h - lambda max(0, log ref(y_w) - log pi(y_w))))

    In DPO a chosen reply may lose probability as long as the rejected one loses more, above all where the two differ in
    few tokens. The paper takes lambda = 50 and beta = 0.3. TRL 1.16 has no such loss.
    """
    check_not_negative(lambda_=lambda_)
    _refuse_margin(pairs)
    chosen, rejected = implicit_rewards(pairs, beta=beta)
    return -_log_sigmoid(chosen - rejected - lambda_ * (-chosen).relu())


def ipo(pairs: PairLogProbs, *, beta: float, normalisation: Literal["sum", "mean"]) -> Tensor:
    """Losses [P] of IPO (Azar et al. 2024, eq. 17; beta is the paper's tau).

        sum:   loss = (h - 1 / (2 beta))^2
        mean:  the same, with both log-ratios in h divided by their reply's number of tokens

    "sum" is the paper's formula; "mean" is TRL's, whose source says that IPO's authors confirmed it as what they ran.
    The target 1 / (2 beta) is a margin per reply under "sum", per token under "mean": they need different betas.
    """
    if normalisation not in ("sum", "mean"):
        raise ValueError(f"normalisation must be 'sum' or 'mean', got {normalisation!r}")
    check_positive(beta=beta)
    _refuse_margin(pairs)
    chosen, rejected = _log_ratios(pairs)
    if normalisation == "mean":
        chosen, rejected = chosen / pairs.chosen_tokens, rejected / pairs.rejected_tokens
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge(pairs: PairLogProbs, *, beta: float) -> Tensor:
    """Hinge losses [P] on DPO's reward margin: RSO (Liu et al. 2024); SLiC-HF (Zhao et al. 2023) has no reference.

        loss = max(0, 1 - beta h)

    TRL's `loss_type="hinge"` is the same.
    """
    _refuse_margin(pairs)
    chosen, rejected = implicit_rewards(pairs, beta=beta)
    return (1 - (chosen - rejected)).relu()


def simpo(pairs: PairLogProbs, *, beta: float, gamma: float) -> Tensor:
    """Losses [P] of SimPO (Meng et al. 2024): rewards are mean log-probabilities of a token; no reference.

        loss = -log sigmoid(beta log pi(y_w) / |y_w| - beta log pi(y_l) / |y_l| - gamma)

    TRL's `CPOTrainer` (`loss_type="simpo"`, `cpo_alpha=0`) is the same; its `simpo_gamma` is gamma, not gamma / beta.
    """
    check_positive(beta=beta)
    check_not_negative(gamma=gamma)
    _refuse_margin(pairs)
    chosen, rejected = mean_log_probs(pairs)
    return -_log_sigmoid(beta * (chosen - rejected) - gamma)


def orpo(pairs: PairLogProbs, *, lambda_: float) -> Tensor:
    """Losses [P] of ORPO (Hong et al. 2024): SFT on the chosen reply and a log odds ratio; no reference.

        p(y) = exp(log pi(y) / |y|),  odds(y) = p(y) / (1 - p(y))
        loss = -log p(y_w) - lambda log sigmoid(log odds(y_w) - log odds(y_l))

    In the odds log p is kept below 0 by the dtype's epsilon, since they are infinite at p = 1; above that they give no
    gradient. TRL (`ORPOTrainer`, where lambda is named beta) has the same odds term, in float32 and without that guard.
    Its SFT term differs: it is the mean over all tokens of a batch, those of the prompt too.
    """
    check_not_negative(lambda_=lambda_)
    _refuse_margin(pairs)
    chosen, rejected = mean_log_probs(pairs)
    return -chosen - lambda_ * _log_sigmoid(_log_odds(chosen) - _log_odds(rejected))


def kto(
    replies: ReplyLogProbs, kl: Tensor, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> Tensor:
    """Losses [N] of KTO (Ethayarajh et al. 2024), for replies with a label each.

        r = log pi(y) - log ref(y)
        loss = desirable_weight   (1 - sigmoid(beta (r - kl)))   where desirable
               undesirable_weight (1 - sigmoid(beta (kl - r)))   elsewhere

    The weights are there to balance the two groups (`balance_weights`): ESC-Pro has 2.6 rejected replies for each
    preferred one.

    Args:
        kl: KTO's reference point, a scalar without gradient: max(0, mean of r over the mismatched replies of the step),
            those of all processes. *Mismatched* means that y is a reply of another turn, scored after this turn's
            history. This is KTO's own, biased estimator of KL(pi || ref). TRL has the same loss; it rotates the replies
            of each device's batch by one, in an order that is fixed before training, and averages over the devices.
    """
    check_positive(beta=beta)
    check_not_negative(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    if kl.ndim:
        raise ValueError(f"kl must be a scalar, got shape {list(kl.shape)}")
    gain = beta * (replies.policy - replies.reference - kl)
    # 1 - sigmoid(z) = sigmoid(-z), which keeps its digits where sigmoid(z) is near 1.
    desirable, undesirable = desirable_weight * (-gain).sigmoid(), undesirable_weight * gain.sigmoid()
    return desirable.where(replies.desirable, undesirable)


def implicit_rewards(pairs: PairLogProbs, *, beta: float) -> tuple[Tensor, Tensor]:
    """DPO's implicit rewards beta (log pi(y) - log ref(y)) of the chosen and the rejected replies, [P] each.

    Rafailov et al. 2023, eq. 5 without its term that depends on the history only.
    """
    check_positive(beta=beta)
    chosen, rejected = _log_ratios(pairs)
    return beta * chosen, beta * rejected


def mean_log_probs(pairs: PairLogProbs) -> tuple[Tensor, Tensor]:
    """What ORPO compares: log pi(y) / |y| of the chosen and the rejected replies, [P] each."""
    return pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens


def scaled_mean_log_probs(pairs: PairLogProbs, *, beta: float) -> tuple[Tensor, Tensor]:
    """SimPO's rewards beta log pi(y) / |y| of the chosen and the rejected replies, [P] each."""
    return beta * pairs.chosen / pairs.chosen_tokens, beta * pairs.rejected / pairs.rejected_tokens


Comparison = Literal["pairs", "replies", "groups"]


@dataclass(frozen=True)
class Objective:
    """What there is to know of an objective.

    Attributes:
        loss: of PairLogProbs, of ReplyLogProbs and KTO's reference point, or of GroupLogProbs.
        rewards: of PairLogProbs: what the objective compares in chosen and rejected replies, for logs and evaluation.
        needs_reference: whether it compares the policy with a reference model.
        takes_margin: whether the pairs may carry margins (`objective.value_margin`).
        compares: pairs; replies one by one, each with a label; or groups, the siblings of a decision with their values.
        weighs_excess: whether what a reply is longer by counts less (`objective.excess_weight`; `compare_pairs`).
        takes_iterations: whether several steps in a row see the same comparisons (`objective.iterations`).
    """

    loss: Callable[..., Tensor]
    rewards: Callable[..., tuple[Tensor, Tensor]] = implicit_rewards
    needs_reference: bool = True
    takes_margin: bool = False
    compares: Comparison = "pairs"
    weighs_excess: bool = False
    takes_iterations: bool = False


OBJECTIVES: Mapping[str, Objective] = {
    "cso": Objective(dpo, takes_margin=True),
    "dpo": Objective(dpo, takes_margin=True),
    "dpop": Objective(dpop),
    "ld_dpo": Objective(dpo, takes_margin=True, weighs_excess=True),
    "ipo": Objective(ipo),
    "hinge": Objective(hinge),
    "simpo": Objective(simpo, scaled_mean_log_probs, needs_reference=False),
    "orpo": Objective(orpo, mean_log_probs, needs_reference=False),
    "kto": Objective(kto, compares="replies"),
    "listwise": Objective(listwise, compares="groups"),
    "grpo": Objective(grpo, compares="groups", takes_iterations=True),
}


def objective_of(settings: ObjectiveConfig) -> Objective:
    """The record of the objective that the settings name.

    Raises:
        UserError: there is no such objective, or it does not take what the settings ask for.
    """
    name = settings.name
    if name not in OBJECTIVES:
        raise UserError(
            f"there is no such objective{nearest(name, OBJECTIVES)}",
            where=f"objective.name={name}", fix=f"use one of {', '.join(OBJECTIVES)}",
        )  # fmt: skip
    if settings.value_margin and not OBJECTIVES[name].takes_margin:
        able = ", ".join(f"objective={other}" for other, record in OBJECTIVES.items() if record.takes_margin)
        raise UserError(
            f"{name} has no margin",
            where=f"objective.value_margin={settings.value_margin:g}", fix=f"{able}, or objective.value_margin=0",
        )  # fmt: skip
    return OBJECTIVES[name]


def count_iterations(settings: ObjectiveConfig) -> int:
    """How many optimizer steps in a row see the same comparisons."""
    return settings.iterations if objective_of(settings).takes_iterations else 1


def balance_weights(settings: ObjectiveConfig, desirable: int, undesirable: int) -> ObjectiveConfig:
    """The settings with KTO's weights filled in where they are null: both groups of replies count alike then.

    With n desirable and m undesirable training replies, desirable_weight n = undesirable_weight m: the lower end of the
    range [1, 4/3] that the KTO paper recommends for the ratio of the two (Ethayarajh et al. 2024). If
    both are null the larger group has the weight 1. With an empty group there is nothing to balance: null means 1.

    Args:
        desirable, undesirable: numbers of training replies.

    >>> settings = balance_weights(ObjectiveConfig(name="kto"), desirable=10, undesirable=26)
    >>> settings.desirable_weight, settings.undesirable_weight
    (2.6, 1.0)
    """
    own, other = settings.desirable_weight, settings.undesirable_weight
    ratio = undesirable / desirable if desirable and undesirable else 1.0
    if own is None:
        own = max(ratio, 1.0) if other is None else other * ratio
    if other is None:
        other = own / ratio
    return replace(settings, desirable_weight=own, undesirable_weight=other)


def apply_settings(function: Callable[..., Any], settings: ObjectiveConfig, *tensors: Any) -> Any:
    """A loss or reward of the tensors with those settings that the function has as keyword arguments."""
    parameters = inspect.signature(function).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    return function(*tensors, **{name: getattr(settings, name) for name in names})


def _log_ratios(pairs: PairLogProbs) -> tuple[Tensor, Tensor]:
    if pairs.reference_chosen is None or pairs.reference_rejected is None:
        free = ", ".join(name for name, objective in OBJECTIVES.items() if not objective.needs_reference)
        raise UserError(
            "the objective compares the policy with a reference model, but there are no reference log-probabilities",
            fix=f"compute those of the reference model, or choose an objective without one: {free}",
        )
    return pairs.chosen - pairs.reference_chosen, pairs.rejected - pairs.reference_rejected


def _refuse_margin(pairs: PairLogProbs) -> None:
    if pairs.margin is not None:
        able = ", ".join(name for name, objective in OBJECTIVES.items() if objective.takes_margin)
        raise UserError(
            "the objective has no offset, but the pairs carry margins", fix=f"leave them out, or use {able}"
        )


def _log_sigmoid(logits: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(logits)


def _log_odds(log_p: Tensor) -> Tensor:
    """log(p / (1 - p)); log1p(-p) for small p would be no better: there the absolute error counts, next to log p."""
    from torch import finfo

    log_p = log_p.clamp(max=-finfo(log_p.dtype).eps)
    return log_p - (-log_p.expm1()).log()
