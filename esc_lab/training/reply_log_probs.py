"""Log-probabilities of replies, as the preference objectives take them, and what is computed from them beforehand.

Symbols are those of `objectives`. Log-probabilities should be float32 or wider.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from esc_lab.training.objectives import check_not_negative


@dataclass(frozen=True, eq=False)
class PairLogProbs:
    """Log-probabilities of P preference pairs, each tensor [P].

    Attributes:
        chosen, rejected: log pi(y).
        chosen_tokens, rejected_tokens: |y|, 1 or more; fractions if tokens are weighted (`weighted_log_prob`).
        reference_chosen, reference_rejected: log ref(y), or None for the objectives that need no reference.
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
        _check_lengths(**vars(self))


@dataclass(frozen=True, eq=False)
class ReplyLogProbs:
    """Log-probabilities of N replies that are judged one by one, each tensor [N].

    Attributes:
        policy, reference: log pi(y) and log ref(y).
        desirable: bool, whether the reply is a good one. CSO: preferred replies are, rejected ones are not.

    Raises:
        ValueError: a tensor is not [N], or `desirable` is not bool.
    """

    policy: Tensor
    reference: Tensor
    desirable: Tensor

    def __post_init__(self) -> None:
        _check_lengths(**vars(self))
        if self.desirable.dtype != torch.bool:
            raise ValueError(f"desirable must be bool, got {self.desirable.dtype}")


def value_gap_margin(chosen_value: Tensor, rejected_value: Tensor, scale: float) -> Tensor:
    """Margins [P] for offset DPO from the values that the strategy search gave the replies.

        margin = scale (V(y_w) - V(y_l))

    Amini et al. 2024 define the offset as alpha f(score(y_w) - score(y_l)) with an increasing f; their published code
    takes f = log. Here f is the identity: the search's values lie in [-3, 1], so many gaps are below 1, where the
    logarithm asks for *less* margin than DPO, without bound as the gap nears 0. The identity leaves pairs of equal
    value to plain DPO, and its scale has a meaning: reward margin per point of judged value.

    Args:
        chosen_value, rejected_value: [P]. Pairs with a reply that nobody judged (NaN), or whose chosen reply has the
            lower value, are left out before.
        scale: alpha, >= 0; 0 gives plain DPO.

    Raises:
        ValueError: shapes differ or are not [P], a pair has no gap >= 0, or scale is negative.
    """
    check_not_negative(scale=scale)
    _check_lengths(chosen_value=chosen_value, rejected_value=rejected_value)
    if not (chosen_value >= rejected_value).all():
        raise ValueError("a pair has no value gap of 0 or more")
    return scale * (chosen_value - rejected_value)


def weighted_log_prob(
    token_log_probs: Tensor, reply: Tensor, is_strategy: Tensor, replies: int, strategy_weight: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of replies in which the tokens of the strategy label weigh more or less than the text.

        log pi(y) = sum_t w_t log pi(t),  |y| = sum_t w_t,  w_t = strategy_weight on the label, 1 elsewhere

    A label is a few tokens beside a text of dozens; the weight sets how much of the preference is about the strategy.
    With any weight but 1 the sum is no log-probability, so weigh the policy's and the reference's tokens alike.
    Length-normalised objectives must divide by the weighted counts, so that they compare weighted means.

    Args:
        token_log_probs: [N] of the tokens of all replies.
        reply: [N], integer: which of the `replies` the token belongs to.
        is_strategy: [N], bool: whether the token belongs to the strategy label.

    Returns:
        log pi(y) and |y|, [replies] each.

    Raises:
        ValueError: shapes differ or are not [N], or strategy_weight is negative.

    Example:
        >>> log_probs, label = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([True, False, False])
        >>> weighted_log_prob(log_probs, torch.tensor([0, 0, 1]), label, 2, strategy_weight=4)
        (tensor([-6., -3.]), tensor([5., 1.]))
    """
    check_not_negative(strategy_weight=strategy_weight)
    _check_lengths(token_log_probs=token_log_probs, reply=reply, is_strategy=is_strategy)
    weights = torch.ones_like(token_log_probs).masked_fill(is_strategy, strategy_weight)
    zeros = token_log_probs.new_zeros(replies)
    return zeros.index_add(0, reply, weights * token_log_probs), zeros.index_add(0, reply, weights)


def _check_lengths(**tensors: Tensor | None) -> None:
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    first = next(iter(shapes.values()))
    if len(first) != 1 or any(shape != first for shape in shapes.values()):
        raise ValueError(f"all tensors must be one-dimensional and of one length, got {shapes}")
