"""Which attention heads go with adherence, and whether a choice of heads holds up on dialogues it was not made on.

All correlations are Pearson's, between the log of an attention and adherence over replies, about each run's means.
`heads` [n, L, H] is the Strategy-Relevant Attention of each reply by layer and head; the mean over L and H is its own.

A head whose attention is zero for any reply has no logarithm there, as happens beyond a sliding window. It gets nan and
is not chosen: a small number in place of zero would be a far outlier that measures only how far back the strategy is.
It still counts in means over heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from esc_lab.seeds import derive_seed
from esc_lab.sra.sample import number_labels
from esc_lab.statistics.correlation import center_within, correlate_centered
from esc_lab.statistics.intervals import BoolArray, FloatArray, IntArray

RANDOM_CHOICES = 20


@dataclass(frozen=True)
class TopHeads:
    """Correlations with the mean over some heads, on dialogues that had no part in choosing them.

    Attributes:
        chosen: over the k heads with the highest correlation on the other half of the dialogues.
        random: over k heads drawn at random, mean of 20 draws.
        all_heads: over all heads.
    """

    k: int
    chosen: float
    random: float
    all_heads: float


def relate_heads(heads: FloatArray, adheres: BoolArray, run: Sequence[str]) -> FloatArray:
    """Correlation [L, H] of each head's log attention with adherence; nan for a head with a zero, or without variance.

    Of heads [n, L, H], adherence [n] and labels of runs [n]. Raises ValueError if their shapes do not agree.
    """
    attention, group = _split_heads(heads, adheres, run)
    relation = np.full(len(attention), math.nan)
    usable = _find_usable(attention)
    relation[usable] = _correlate(attention[usable], adheres, group)
    return relation.reshape(heads.shape[1:])


def leave_heads_out(heads: FloatArray, adheres: BoolArray, run: Sequence[str]) -> FloatArray:
    """What leaving a head out of the mean adds to the correlation [L, H]: below 0 where the head supports the relation.

    nan for a head without which a reply has no attention left. Arguments and errors as in `relate_heads`.
    """
    attention, group = _split_heads(heads, adheres, run)
    total = attention.sum(axis=0)  # a correlation of logs is the same for sums and means
    rest = total - attention
    rest[rest <= 1e-12 * total] = math.nan  # only rounding is left
    change = _correlate(rest, adheres, group) - _correlate(total, adheres, group)
    return change.reshape(heads.shape[1:])


def score_top_heads(
    heads: FloatArray,
    adheres: BoolArray,
    run: Sequence[str],
    dialogue: Sequence[str],
    ks: Sequence[int] = (1, 4, 16, 64),
    *,
    seed: int = 0,
) -> list[TopHeads]:
    """How well the mean over few heads goes with adherence, where the choice of heads cannot flatter the result.

    The dialogues are halved at random. Heads are chosen on one half and scored on the other, then the other way round;
    each number is the mean of both, nan where one is. A `k` above the number of heads without zeros is left out.
    Arguments and errors as in `relate_heads`; `dialogue` [n] labels.
    """
    attention, group = _split_heads(heads, adheres, run)
    if len(dialogue) != len(run):
        raise ValueError(f"{len(dialogue)} dialogue labels for {len(run)} replies")
    usable = _find_usable(attention)
    first = _draw_half(dialogue, seed)

    def score(chosen: IntArray | slice, members: BoolArray) -> float:
        total = attention[chosen][:, members].sum(axis=0)
        return float(_correlate(total, adheres[members], group[members]))

    directions = []
    for learn, test in ((first, ~first), (~first, first)):
        relation = _correlate(attention[usable][:, learn], adheres[learn], group[learn])
        directions.append((usable[np.argsort(-relation, kind="stable")], test))  # nan comes last
    all_heads = float(np.mean([score(slice(None), test) for _, test in directions]))
    rows = []
    for k in ks:
        if k > len(usable):
            continue
        draw = np.random.default_rng(derive_seed(seed, "random heads", k))
        random = [draw.choice(usable, k, replace=False) for _ in range(RANDOM_CHOICES)]
        rows.append(
            TopHeads(
                k,
                chosen=float(np.mean([score(best[:k], test) for best, test in directions])),
                random=float(np.mean([score(drawn, test) for drawn in random for _, test in directions])),
                all_heads=all_heads,
            )
        )
    return rows


def _draw_half(dialogue: Sequence[str], seed: int) -> BoolArray:
    """Which replies [n] are of the first half of the dialogues; the order of the replies has no say in it."""
    names, number = np.unique(dialogue, return_inverse=True)
    place = np.random.default_rng(derive_seed(seed, "halves of the dialogues")).permutation(len(names))
    return np.asarray(place[number] < len(names) / 2)


def _split_heads(heads: FloatArray, adheres: BoolArray, run: Sequence[str]) -> tuple[FloatArray, IntArray]:
    """Attention [L * H, n] in float64, and the run's index [n]."""
    if heads.ndim != 3 or adheres.shape != heads.shape[:1] or len(run) != len(heads):
        raise ValueError(f"heads [n, L, H] {heads.shape}, adheres [n] {adheres.shape} and {len(run)} runs do not agree")
    _, group = number_labels(run)
    return heads.reshape(len(heads), -1).T.astype(np.float64), group


def _find_usable(attention: FloatArray) -> IntArray:
    """Indices of the heads [L * H, n] that are above zero for every reply."""
    return np.flatnonzero((attention > 0).all(axis=-1))


def _correlate(attention: FloatArray, adheres: BoolArray, group: IntArray) -> FloatArray:
    """Of log attention [..., n] with adherence [n], about the means of each group [n]."""
    with np.errstate(divide="ignore"):
        log = np.log(attention)
    return correlate_centered(center_within(log, group), center_within(adheres.astype(np.float64), group))
