"""Preference objectives of siblings: losses of groups of replies to one history, from their search values.

Symbols and rules are those of `objectives`; the records are there too. V(y) is the search value of reply y.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from esc_lab.errors import UserError
from esc_lab.training.limits import check_not_negative, check_positive

if TYPE_CHECKING:
    from torch import Tensor

    from esc_lab.training.reply_log_probs import GroupLogProbs, TokenLogProbs


def listwise(groups: GroupLogProbs, *, beta: float) -> Tensor:
    """Losses [G] of DPO under the Plackett-Luce model: the siblings are to be ranked as their search values V are.

        r(y) = beta (log pi(y) - log ref(y))
        loss = -sum_i log (exp r(y_i) / (exp r(y_i) + sum of exp r(y_j) over all j with V(y_j) < V(y_i)))

    Rafailov et al. 2023, appendix A.3, eq. 20; the same as ListMLE (Xia et al. 2008) on the scores r. Siblings of equal
    value are not compared with each other: in the formula of the papers their order would be arbitrary. Without equal
    values this is that formula, with two siblings DPO. TRL 1.16 has no listwise loss.
    """
    check_positive(beta=beta)
    tokens, values = groups.tokens, groups.values
    rewards = beta * (tokens.weights * (tokens.policy - _require_reference(tokens))).sum(-1)
    # [G, i, j]: the scores in i's denominator, its own (j = i) and those of lower siblings. NaN, a missing sibling, is
    # neither lower nor higher: its loss is log 1.
    lower = values[:, None, :] < values[:, :, None]
    scores = rewards[:, None, :].masked_fill(~lower, -math.inf).diagonal_scatter(rewards, dim1=1, dim2=2)
    return (scores.logsumexp(-1) - rewards).sum(-1)


def grpo(
    groups: GroupLogProbs,
    *,
    clip_range: float,
    kl_weight: float,
    advantage: Literal["mean_std", "mean"],
    normalisation: Literal["mean", "sum"],
) -> Tensor:
    """Losses [G] of tree-GRPO: GRPO (Shao et al. 2024, DeepSeekMath, eq. 3 and 4) whose groups are siblings.

        A(y) = (V(y) - mean V) / (std V + 1e-4)  over the siblings; "mean": without the division
        rho = pi(t) / old(t) and d = log ref(t) - log pi(t)  of each token t
        loss = mean over siblings of  1 / |y| sum_t (kl_weight (exp d - d - 1) - min(rho A, clip(rho) A))

    V are the search values, old is the policy before the first of the `objective.iterations` steps, clip keeps rho in
    [1 - clip_range, 1 + clip_range], and exp d - d - 1 is Schulman's estimator k3 of KL(pi || ref) where t is drawn
    from pi. `advantage="mean"` with `normalisation="sum"` (no 1 / |y|) is Dr. GRPO (Liu et al. 2025), whose constant
    is left to the learning rate.

    In the paper the group is drawn from the old policy. The search draws siblings strategy by strategy, with texts of
    the model that played it: neither the gradient nor the KL is unbiased for such a group.

    TRL: `loss_type="grpo"` with `scale_rewards="group"` or "none" is the same, with the same std (n - 1) and 1e-4 and,
    by default, no KL; its mean runs over the replies of a batch, here over groups of different sizes.
    """
    if not 0 < clip_range < 1:
        raise ValueError(f"clip_range must lie in (0, 1), got {clip_range}")
    if normalisation not in ("sum", "mean"):
        raise ValueError(f"normalisation must be 'sum' or 'mean', got {normalisation!r}")
    check_not_negative(kl_weight=kl_weight)
    tokens, siblings = groups.tokens, ~groups.values.isnan()
    distance = _require_reference(tokens) - tokens.policy
    if tokens.old_policy is None:
        raise ValueError("grpo clips the ratio to an old policy, but there is none")
    gain = group_advantages(groups.values, advantage=advantage)[..., None]
    ratio = (tokens.policy - tokens.old_policy).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    losses = kl_weight * (distance.exp() - distance - 1) - (ratio * gain).minimum(clipped * gain)
    losses = (tokens.weights * losses).sum(-1)
    if normalisation == "mean":
        losses = losses / tokens.weights.sum(-1)
    return losses.where(siblings, 0).sum(-1) / siblings.sum(-1)


def group_advantages(values: Tensor, *, advantage: Literal["mean_std", "mean"]) -> Tensor:
    """GRPO's advantages [G, K] of siblings with values [G, K].

    They are 0 where there is no sibling (NaN), where one is alone, and where all are equal.

    Example:
        >>> import torch
        >>> group_advantages(torch.tensor([[1.0, 0.0, math.nan]]), advantage="mean")
        tensor([[ 0.5000, -0.5000,  0.0000]])
    """
    if advantage not in ("mean_std", "mean"):
        raise ValueError(f"advantage must be 'mean_std' or 'mean', got {advantage!r}")
    siblings = ~values.isnan()
    count = siblings.sum(-1, keepdim=True)
    centred = (values - values.nansum(-1, keepdim=True) / count).where(siblings, 0)
    if advantage == "mean":
        return centred
    variance = centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return centred / (variance.sqrt() + 1e-4)


def _require_reference(tokens: TokenLogProbs) -> Tensor:
    if tokens.reference is None:
        raise UserError(
            "the objective compares the policy with a reference model, but there are no reference log-probabilities",
            fix="compute those of the reference model",
        )
    return tokens.reference
