"""Preference objectives: losses of replies from their log-probabilities. Pure functions of tensors.

A pair objective takes the log-probabilities of P preference pairs and returns P losses; `kto` takes N replies with a
label each and returns N losses. None of them takes a mean: the loss of an optimizer step is the mean over all pairs of
that step, and only the caller knows how many those are. Everywhere below, for reply y after history x,

    log pi(y)   log-probability under the policy, summed over the reply's tokens and its end-of-turn token
    log ref(y)  the same under the frozen reference model
    |y|         number of these tokens; y_w is the chosen reply and y_l the rejected one
    h           = [log pi(y_w) - log ref(y_w)] - [log pi(y_l) - log ref(y_l)]

Log-probabilities should be float32 or wider. Remarks on TRL are about version 1.16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from esc_lab.errors import UserError


@dataclass(frozen=True, eq=False)
class PairLogProbs:
    """Log-probabilities of P preference pairs, each tensor [P].

    Attributes:
        chosen, rejected: log pi of the reply, summed over its tokens (end-of-turn token included).
        chosen_tokens, rejected_tokens: number of these tokens, 1 or more; fractions if tokens are weighted
            (`weighted_log_prob`).
        reference_chosen, reference_rejected: log ref, or None for the objectives outside `NEEDS_REFERENCE`.
        margin: offset >= 0 in units of the reward margin (`value_gap_margin`), 0 for a pair without one; None if no
            pair has one. Only `dpo` takes it.

    Raises:
        ValueError: a tensor is not [P], or one reference tensor comes without the other.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None
    margin: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.reference_chosen is None) != (self.reference_rejected is None):
            raise ValueError("reference_chosen and reference_rejected come together or not at all")
        _same_length(**vars(self))


@dataclass(frozen=True, eq=False)
class ReplyLogProbs:
    """Log-probabilities of N replies that are judged one by one, each tensor [N].

    Attributes:
        policy, reference: log pi and log ref of the reply, summed over its tokens.
        desirable: bool, whether the reply is a good one. CSO: preferred replies are, rejected ones are not.

    Raises:
        ValueError: a tensor is not [N], or `desirable` is not bool.
    """

    policy: Tensor
    reference: Tensor
    desirable: Tensor

    def __post_init__(self) -> None:
        _same_length(**vars(self))
        if self.desirable.dtype != torch.bool:
            raise ValueError(f"desirable must be bool, got {self.desirable.dtype}")


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

    Raises:
        ValueError: beta is not positive, or label_smoothing lies outside [0, 0.5).
        UserError: no reference log-probabilities.

    Example:
        >>> one = torch.ones(1)
        >>> pairs = PairLogProbs(-9 * one, -14 * one, 6 * one, 8 * one, -10 * one, -12 * one)
        >>> dpo(pairs, beta=0.1)  # h = (-9 + 10) - (-14 + 12) = 3
        tensor([0.5544])
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5), got {label_smoothing}")
    chosen, rejected = _rewards(pairs, beta, "dpo (cso)")
    logit = chosen - rejected
    if pairs.margin is not None:
        logit = logit - pairs.margin
    return -(1 - label_smoothing) * F.logsigmoid(logit) - label_smoothing * F.logsigmoid(-logit)


cso = dpo


def ipo(pairs: PairLogProbs, *, beta: float, normalisation: Literal["sum", "mean"]) -> Tensor:
    """Losses [P] of IPO (Azar et al. 2024, eq. 17; beta is the paper's tau).

        sum:   loss = (h - 1 / (2 beta))^2
        mean:  the same, with both log-ratios in h divided by their reply's number of tokens

    "sum" is the paper's formula; "mean" is TRL's, whose source says that IPO's authors confirmed it as what they ran.
    The target 1 / (2 beta) is a margin per reply under "sum", per token under "mean": they need different betas.

    Raises:
        ValueError: beta is not positive, or the normalisation is neither "sum" nor "mean".
        UserError: no reference log-probabilities, or there are margins.
    """
    if normalisation not in ("sum", "mean"):
        raise ValueError(f"normalisation must be 'sum' or 'mean', got {normalisation!r}")
    _positive(beta=beta)
    _no_margin(pairs, "ipo")
    chosen, rejected = _log_ratios(pairs, "ipo")
    if normalisation == "mean":
        chosen, rejected = chosen / pairs.chosen_tokens, rejected / pairs.rejected_tokens
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge(pairs: PairLogProbs, *, beta: float) -> Tensor:
    """Hinge losses [P] on DPO's reward margin: RSO (Liu et al. 2024); SLiC-HF (Zhao et al. 2023) has no reference.

        loss = max(0, 1 - beta h)

    TRL's `loss_type="hinge"` is the same.

    Raises:
        ValueError: beta is not positive.
        UserError: no reference log-probabilities, or there are margins.
    """
    _no_margin(pairs, "hinge")
    chosen, rejected = _rewards(pairs, beta, "hinge")
    return F.relu(1 - (chosen - rejected))


def simpo(pairs: PairLogProbs, *, beta: float, gamma: float) -> Tensor:
    """Losses [P] of SimPO (Meng et al. 2024): rewards are mean log-probabilities of a token; no reference.

        loss = -log sigmoid(beta log pi(y_w) / |y_w| - beta log pi(y_l) / |y_l| - gamma)

    TRL's `CPOTrainer` (`loss_type="simpo"`, `cpo_alpha=0`) is the same; its `simpo_gamma` is gamma, not gamma / beta.

    Raises:
        ValueError: beta is not positive, or gamma is negative.
        UserError: there are margins.
    """
    _positive(beta=beta)
    _not_negative(gamma=gamma)
    _no_margin(pairs, "simpo")
    margin = pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens
    return -F.logsigmoid(beta * margin - gamma)


def orpo(pairs: PairLogProbs, *, lambda_: float) -> Tensor:
    """Losses [P] of ORPO (Hong et al. 2024): SFT on the chosen reply and a log odds ratio; no reference.

        p(y) = exp(log pi(y) / |y|),  odds(y) = p(y) / (1 - p(y))
        loss = -log p(y_w) - lambda log sigmoid(log odds(y_w) - log odds(y_l))

    In the odds log p is kept below 0 by the dtype's epsilon, since they are infinite at p = 1; above that they give no
    gradient. TRL (`ORPOTrainer`, where lambda is named beta) has the same odds term, in float32 and without that guard.
    Its SFT term differs: it is the mean over all tokens of a batch, those of the prompt too.

    Raises:
        ValueError: lambda_ is negative.
        UserError: there are margins.
    """
    _not_negative(lambda_=lambda_)
    _no_margin(pairs, "orpo")
    chosen = pairs.chosen / pairs.chosen_tokens
    rejected = pairs.rejected / pairs.rejected_tokens
    return -chosen - lambda_ * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def kto(
    replies: ReplyLogProbs, *, beta: float, desirable_weight: float, undesirable_weight: float, kl: Tensor
) -> Tensor:
    """Losses [N] of KTO (Ethayarajh et al. 2024), for replies with a label each.

        r = log pi(y) - log ref(y)
        loss = desirable_weight   (1 - sigmoid(beta (r - kl)))   where desirable
               undesirable_weight (1 - sigmoid(beta (kl - r)))   elsewhere

    kl is a scalar without gradient, from `kto_kl`; TRL has the same loss, with its own kl. The weights are there to
    balance the two groups: ESC-Pro has 2.6 rejected replies for each preferred one.

    Raises:
        ValueError: beta is not positive, a weight is negative, or kl is not a scalar.
    """
    _positive(beta=beta)
    _not_negative(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    if kl.ndim:
        raise ValueError(f"kl must be a scalar, got shape {list(kl.shape)}")
    gain = beta * (replies.policy - replies.reference - kl)
    # 1 - sigmoid(z) = sigmoid(-z), which keeps its digits where sigmoid(z) is near 1.
    desirable, undesirable = desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain)
    return torch.where(replies.desirable, desirable, undesirable)


def kto_kl(policy: Tensor, reference: Tensor) -> Tensor:
    """KTO's reference point: max(0, mean over M mismatched replies of log pi(y) - log ref(y)), without gradient.

    This is KTO's own estimator of KL(pi || ref), a biased one. *Mismatched* means that y is a reply of another turn,
    scored after this turn's history; callers bring these replies, policy and reference [M]. With several processes
    pass those of all of them: the mean comes before the maximum. TRL rotates the replies of each device's batch by one,
    in an order that is fixed before training, and averages over the devices.

    Raises:
        ValueError: shapes differ or are not [M], or M is 0.
    """
    return kl_estimate(policy.detach(), reference.detach()).clamp(min=0)


def kl_estimate(policy: Tensor, reference: Tensor) -> Tensor:
    """Mean over M replies of log pi(y) - log ref(y), in nats a reply: the plain Monte Carlo estimator ("k1").

    policy and reference are [M]. It is unbiased for KL(pi || ref) if the replies were sampled from the policy. Over the
    replies of a data set it is a mean log-ratio, which tells how far the policy has moved, but no divergence.

    Raises:
        ValueError: shapes differ or are not [M], or M is 0.
    """
    _same_length(policy=policy, reference=reference)
    if not len(policy):
        raise ValueError("no replies to estimate a KL divergence from")
    return (policy - reference).mean()


def rewards(pairs: PairLogProbs, beta: float) -> tuple[Tensor, Tensor]:
    """DPO's implicit rewards beta (log pi(y) - log ref(y)) of the chosen and the rejected replies, [P] each.

    Rafailov et al. 2023, eq. 5 without its term that depends on the history only.

    Raises:
        ValueError: beta is not positive.
        UserError: no reference log-probabilities.
    """
    return _rewards(pairs, beta, "reward")


def value_gap_margin(chosen_value: Tensor, rejected_value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Margins for offset DPO from the values that the strategy search gave the replies.

        margin = scale (V(y_w) - V(y_l))

    Amini et al. 2024 define the offset as alpha f(score(y_w) - score(y_l)) with an increasing f; their published code
    takes f = log. Here f is the identity: the search's values lie in [-3, 1], so many gaps are below 1, where the
    logarithm asks for *less* margin than DPO, without bound as the gap nears 0. The identity leaves pairs of equal
    value to plain DPO, and its scale has a meaning: reward margin per point of judged value.

    Args:
        chosen_value, rejected_value: [P], NaN for a reply that nobody judged.
        scale: alpha, >= 0; 0 gives plain DPO.

    Returns:
        margin [P], and valid [P], bool: false, with margin 0, where a value is NaN or the chosen one is the lower.
        Callers count these pairs and leave them out.

    Raises:
        ValueError: shapes differ or are not [P], or scale is negative.
    """
    _not_negative(scale=scale)
    _same_length(chosen_value=chosen_value, rejected_value=rejected_value)
    gap = chosen_value - rejected_value
    valid = gap >= 0
    return torch.where(valid, scale * gap, 0.0), valid


def weighted_log_prob(
    token_log_probs: Tensor, reply: Tensor, is_strategy: Tensor, replies: int, strategy_weight: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of replies in which the tokens of the strategy label weigh more or less than the text.

        log pi(y) = sum_t w_t log pi(t),  |y| = sum_t w_t,  w_t = strategy_weight on the label, 1 elsewhere

    A label is a few tokens beside a text of dozens; the weight sets how much of the preference is about the strategy.
    Weight 1 gives the plain log-probability. With any other the sum is no log-probability, so weigh the policy's and
    the reference's tokens alike. Length-normalised objectives must divide by the weighted counts returned here, so that
    they compare weighted means of token log-probabilities.

    Args:
        token_log_probs: [N] of the reply tokens of all replies, end-of-turn tokens included.
        reply: [N], integer: which of the `replies` the token belongs to.
        is_strategy: [N], bool: whether the token belongs to the strategy label.
        replies: number of replies.
        strategy_weight: 0 or more.

    Returns:
        Weighted log-probabilities [replies], and weighted token counts |y| [replies].

    Raises:
        ValueError: shapes differ or are not [N], or strategy_weight is negative.

    Example:
        >>> log_probs, label = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([True, False, False])
        >>> weighted_log_prob(log_probs, torch.tensor([0, 0, 1]), label, 2, strategy_weight=4)
        (tensor([-6., -3.]), tensor([5., 1.]))
    """
    _not_negative(strategy_weight=strategy_weight)
    _same_length(token_log_probs=token_log_probs, reply=reply, is_strategy=is_strategy)
    weights = torch.ones_like(token_log_probs).masked_fill(is_strategy, strategy_weight)
    zeros = token_log_probs.new_zeros(replies)
    return zeros.index_add(0, reply, weights * token_log_probs), zeros.index_add(0, reply, weights)


PAIR_OBJECTIVES: Mapping[str, Callable[..., Tensor]]
PAIR_OBJECTIVES = {"cso": cso, "dpo": dpo, "ipo": ipo, "hinge": hinge, "simpo": simpo, "orpo": orpo}
# `kto` is not a pair objective, but its stage must know as well.
NEEDS_REFERENCE: frozenset[str] = frozenset({"cso", "dpo", "ipo", "hinge", "kto"})


def _log_ratios(pairs: PairLogProbs, objective: str) -> tuple[Tensor, Tensor]:
    if pairs.reference_chosen is None or pairs.reference_rejected is None:
        free = ", ".join(sorted(PAIR_OBJECTIVES.keys() - NEEDS_REFERENCE))
        raise UserError(
            "it compares the policy with a reference model, but there are no reference log-probabilities",
            where=f"objective {objective}",
            fix=f"compute those of the reference model, or choose an objective without one: {free}",
        )
    return pairs.chosen - pairs.reference_chosen, pairs.rejected - pairs.reference_rejected


def _rewards(pairs: PairLogProbs, beta: float, objective: str) -> tuple[Tensor, Tensor]:
    _positive(beta=beta)
    chosen, rejected = _log_ratios(pairs, objective)
    return beta * chosen, beta * rejected


def _log_odds(log_p: Tensor) -> Tensor:
    """log(p / (1 - p)); log1p(-p) for small p would be no better: there the absolute error counts, next to log p."""
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    return log_p - torch.log(-torch.expm1(log_p))


def _no_margin(pairs: PairLogProbs, objective: str) -> None:
    if pairs.margin is not None:
        raise UserError(
            "it has no offset, but the pairs carry margins",
            where=f"objective {objective}",
            fix="leave the margins out, or choose cso or dpo",
        )


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}")


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be 0 or more, got {value}")


def _same_length(**tensors: Tensor | None) -> None:
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    first = next(iter(shapes.values()))
    if len(first) != 1 or any(shape != first for shape in shapes.values()):
        raise ValueError(f"all tensors must be one-dimensional and of one length, got {shapes}")
