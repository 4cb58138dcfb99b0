"""Log-probabilities of replies, as the preference objectives take them, and what is computed from them beforehand.

Symbols are those of `objectives`. Log-probabilities should be float32 or wider.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esc_lab.training.limits import check_not_negative


@dataclass(frozen=True, eq=False)
class PairLogProbs:
    """Log-probabilities of P preference pairs, each tensor [P].

    Attributes:
        chosen, rejected: log pi(y).
        chosen_tokens, rejected_tokens: |y|, 1 or more; fractions if tokens are weighted (`weigh_tokens`).
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


@dataclass(frozen=True, eq=False)
class TokenLogProbs:
    """Log-probabilities of the tokens of replies, each tensor [..., T]; 0 past the end of a reply.

    Attributes:
        policy: log pi of each token, given all before it.
        weights: what the token counts (`weigh_tokens`).
        reference: the same as policy under the reference model, or None for the objectives that need none.
        old_policy: the same before the first of the `objective.iterations` steps on them; only `grpo` takes it.
    """

    policy: Tensor
    weights: Tensor
    reference: Tensor | None = None
    old_policy: Tensor | None = None

    def select(self, replies: Tensor) -> TokenLogProbs:
        """The tokens of the replies with these numbers, [*replies.shape, T]."""
        return TokenLogProbs(**{name: tensor[replies] for name, tensor in vars(self).items() if tensor is not None})

    def weigh(self, factors: Tensor) -> TokenLogProbs:
        """The same with weights multiplied by factors [..., T]."""
        return replace(self, weights=self.weights * factors)

    def sums(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """log pi(y) = sum_t w_t log pi(t), |y| = sum_t w_t, and log ref(y) if there is a reference; [...] each."""
        reference = None if self.reference is None else (self.weights * self.reference).sum(-1)
        return (self.weights * self.policy).sum(-1), self.weights.sum(-1), reference


@dataclass(frozen=True, eq=False)
class GroupLogProbs:
    """Siblings, the replies to one history that a search has tried, of G decisions.

    Attributes:
        tokens: of the siblings, [G, K, T].
        values: [G, K] search values; NaN where a group has fewer than K siblings. Their tokens are any.
    """

    tokens: TokenLogProbs
    values: Tensor


def split_replies(values: Tensor, lengths: Tensor, longest: int | None = None) -> Tensor:
    """Values [N] of the tokens of replies, one reply after the other, as [R, T] with 0 past the end of each.

    Args:
        lengths: [R] tokens of each reply, N in all.
        longest: the largest of them, T, where it is known: a GPU has to be waited for to ask it.

    Example:
        >>> split_replies(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([2, 1]))
        tensor([[-1., -2.],
                [-3.,  0.]])
    """
    inside = _places(lengths, longest) < lengths[:, None]
    return values.new_zeros(inside.shape).masked_scatter(inside, values)


def weigh_tokens(
    lengths: Tensor,
    label_tokens: Tensor,
    strategy_weight: float,
    dtype: torch.dtype = torch.float32,
    longest: int | None = None,
) -> Tensor:
    """Weights [R, T] of replies in which the tokens of the strategy label weigh more or less than the text.

        log pi(y) = sum_t w_t log pi(t),  |y| = sum_t w_t,  w_t = strategy_weight on the label, 1 elsewhere

    A label is a few tokens beside a text of dozens; the weight sets how much of the preference is about the strategy.
    With any weight but 1 the sum is no log-probability, so weigh the policy's and the reference's tokens alike.
    Length-normalised objectives must divide by the weighted counts, so that they compare weighted means.

    Args:
        lengths: [R] tokens of each reply.
        label_tokens: [R] how many of its first tokens are the strategy label.
        longest: as in `split_replies`.

    Raises:
        ValueError: strategy_weight is negative.

    Example:
        >>> weigh_tokens(torch.tensor([2, 1]), torch.tensor([1, 0]), strategy_weight=4)
        tensor([[4., 1.],
                [1., 0.]])
    """
    check_not_negative(strategy_weight=strategy_weight)
    places = _places(lengths, longest)
    weights = torch.ones(len(lengths), len(places), dtype=dtype, device=lengths.device)
    return weights.masked_fill(places < label_tokens[:, None], strategy_weight).masked_fill(
        places >= lengths[:, None], 0
    )


def compare_pairs(
    tokens: TokenLogProbs, lengths: Tensor, chosen: Tensor, rejected: Tensor, excess_weight: float = 1.0
) -> PairLogProbs:
    """Log-probabilities of P pairs, without margins; with an excess_weight below 1 those of LD-DPO.

        log pi(y) = sum of w_t log pi(t) over the first l tokens + excess_weight times that over the others
        l = the smaller number of tokens of y_w and y_l

    Liu et al. 2024 (LD-DPO, arXiv 2409.06411), for policy and reference alike: what a reply is longer
    by has a part of its say, since in DPO a long reply's tokens outweigh a short one's. Weight 1 is DPO, weight 0 cuts
    the longer reply. |y| is not touched. TRL: `ld_alpha` is excess_weight; the same.

    Args:
        tokens: of R replies, [R, T].
        lengths: [R] tokens of each.
        chosen, rejected: [P] numbers of replies.

    Raises:
        ValueError: excess_weight is not in [0, 1].
    """
    if not 0 <= excess_weight <= 1:
        raise ValueError(f"excess_weight must lie in [0, 1], got {excess_weight}")
    counts = tokens.weights.sum(-1)
    shared = torch.minimum(lengths[chosen], lengths[rejected])[:, None]
    excess = torch.arange(tokens.policy.shape[-1], device=shared.device) >= shared
    factors = 1 - (1 - excess_weight) * excess.to(tokens.weights.dtype)
    own, _, own_reference = tokens.select(chosen).weigh(factors).sums()
    other, _, other_reference = tokens.select(rejected).weigh(factors).sums()
    return PairLogProbs(own, other, counts[chosen], counts[rejected], own_reference, other_reference)


def _places(lengths: Tensor, longest: int | None) -> Tensor:
    """[T] numbers of tokens in the longest reply."""
    if longest is None:
        longest = int(lengths.max()) if len(lengths) else 0
    return torch.arange(longest, device=lengths.device)


def _check_lengths(**tensors: Tensor | None) -> None:
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    first = next(iter(shapes.values()))
    if len(first) != 1 or any(shape != first for shape in shapes.values()):
        raise ValueError(f"all tensors must be one-dimensional and of one length, got {shapes}")
