"""Attention that is steered at inference: chosen keys get more of it, at least a share of it, or none.

A boost acts on the attention of chosen queries on chosen keys, behind scaling, soft-capping and mask, in chosen layers
and heads. A token is chosen by its place in a sequence. As sequences share their prefixes in a token tree, the choice
is part of what they share: the trie is built over tokens with their marks (`mark`), so that a node has one choice,
whoever looks at it; `split_tree` and `split_row` take the marks off again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from esc_lab.statistics.intervals import BoolArray
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.packing import PackedRow
from esc_lab.tokens.trie import TokenTree

MODES = ("add", "share", "block")
# Above all ids of tokens: a marked token is another one to the trie.
_KEY, _QUERY = 1 << 40, 1 << 41
ScoreMod = Callable[..., Tensor]  # of FlexAttention


@dataclass(frozen=True)
class AttentionBoost:
    """What becomes of the attention of chosen queries on chosen keys.

    Attributes:
        mode: `add`: `amount` is added to the keys' logits, which multiplies their attention by exp(amount) before it is
            renormalised (InstABoost, arXiv 2506.13734). `share`: where the keys together have less than the share
            `amount` of a query's attention in a head, they get just that, and the other keys what is left, each in
            proportion (after Spotlight, arXiv 2505.12025, which adds log(amount / share) to the logits and so falls
            short of the target). A query that sees none of the keys, or nothing else, stays as it is. `block`: the keys
            are not seen.
        heads: bool [layers, heads], where it acts.

    Raises:
        ValueError: an unknown mode, no finite amount, or a share that is not between 0 and 1.
    """

    mode: str
    amount: float
    heads: Tensor

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"no mode '{self.mode}' of a boost: {', '.join(MODES)}")
        if not math.isfinite(self.amount) or (self.mode == "share" and not 0 < self.amount < 1):
            raise ValueError(f"no amount of a boost by {self.mode}: {self.amount}")

    def shift(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """Logits, or an additive mask, [..., queries, keys] with what is added to the chosen pairs (bool)."""
        if self.mode == "add":
            return logits + self.amount * chosen.to(logits.dtype)
        return logits.masked_fill(chosen, torch.finfo(logits.dtype).min) if self.mode == "block" else logits

    def raise_share(self, weights: Tensor, chosen: Tensor) -> Tensor:
        """Attention weights [..., queries, keys] with the share of the chosen pairs raised; by `share` alone."""
        if self.mode != "share":
            return weights
        own = (weights * chosen).sum(dim=-1, keepdim=True)
        factor = self.factor(own)
        rest = 1 / (1 + own * (factor - 1))  # renormalises
        return weights * torch.where(chosen, factor * rest, rest)

    def factor(self, own: Tensor) -> Tensor:
        """What chosen weights with the share `own` are multiplied by before all are renormalised: a ratio of odds."""
        factor = self.amount * (1 - own) / (own * (1 - self.amount))
        return torch.where(factor.isfinite(), factor.clamp(min=1), 1.0)


@dataclass(frozen=True)
class BoostedPass:
    """A boost in one forward pass.

    Attributes:
        keys: bool [batch, keys], those that are boosted. In a token tree they are counted as its nodes or slots; else
            they are the tokens of the whole sequence so far, of which a layer with a cache may have the last ones only.
        queries: bool [batch, queries], those that are boosted; of a pass with a cache, the new tokens last.
    """

    boost: AttentionBoost
    keys: BoolArray
    queries: BoolArray

    def in_layer(self, layer: int, query: Tensor) -> LayerBoost | None:
        """What it does to the queries [batch, heads, Q, dim] of a layer; None if nothing.

        Raises:
            ValueError: gradients are recorded, or the model has other layers or heads.
        """
        if torch.is_grad_enabled() and query.requires_grad:
            raise ValueError("attention is boosted at inference only: no gradient goes through it (torch.no_grad())")
        layers, heads = self.boost.heads.shape
        if not (layer < layers and query.shape[1] == heads):
            message = f"a boost of {layers} layers with {heads} heads in layer {layer} with {query.shape[1]}"
            raise ValueError(message)
        chosen = self.boost.heads[layer]
        return LayerBoost(self, None if chosen.all() else chosen.to(query.device)) if chosen.any() else None

    def choose(self, rows: slice, columns: slice | Tensor, device: torch.device) -> Tensor | None:
        """The pairs of queries and keys that are boosted, bool [batch, 1, rows, columns]; None if there are none."""
        chosen = columns if isinstance(columns, slice) else columns.cpu().numpy()
        queries, keys = self.queries[:, rows], self.keys[:, chosen]
        if not (queries.any() and keys.any()):
            return None
        return torch.from_numpy(queries[:, None, :, None] & keys[:, None, None, :]).to(device)

    def choose_last(self, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """The same of the last queries and keys: a layer with a sliding window may have cropped the ones before."""
        total = self.keys.shape[1]
        if keys > total or queries > self.queries.shape[1]:
            raise ValueError(
                f"{keys} keys and {queries} queries, of {total} and {self.queries.shape[1]} that are known"
            )
        return self.choose(slice(self.queries.shape[1] - queries, None), slice(total - keys, None), device)


@dataclass(frozen=True)
class LayerBoost:
    """A boost in one layer of a pass: of all heads (None) or of some, bool [heads]."""

    of: BoostedPass
    heads: Tensor | None

    def in_heads(self, chosen: Tensor) -> Tensor:
        """Chosen pairs, bool [..., 1, Q, K], of the heads that it acts in: [..., heads, Q, K] if these are not all."""
        return chosen if self.heads is None else chosen & self.heads[:, None, None]

    def fold(self, chosen: Tensor, groups: int) -> Tensor:
        """The same with the heads that share a key-value head laid out as more queries.

        Args:
            chosen: bool [batch, 1, Q, K].
            groups: heads of a key-value head.

        Returns:
            [batch, 1 or key-value heads, groups x Q, K].
        """
        chosen = self.in_heads(chosen)
        batch, heads, queries, keys = chosen.shape
        if heads == 1:
            return chosen.repeat(1, 1, groups, 1)
        return chosen.reshape(batch, heads // groups, groups * queries, keys)

    def score_mod(self, cap: ScoreMod | None, missing: Tensor | None, device: torch.device) -> ScoreMod:
        """For FlexAttention, batch 1.

        Args:
            cap: what is done to the logits before.
            missing: [heads, Q], what `share` adds.
        """
        boost, (keys, queries) = self.of.boost, self._flags(device)
        everywhere = torch.ones(boost.heads.shape[1], dtype=torch.bool, device=device)
        heads = everywhere if self.heads is None else self.heads
        # A tensor: a number would be a part of the compiled kernel, and each dose compile one of its own.
        amount = torch.tensor(-math.inf if boost.mode == "block" else boost.amount, device=device)

        def adjust(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            if cap is not None:
                score = cap(score, batch, head, query, key)
            added = (amount if missing is None else missing[head, query]).to(score.dtype)
            return torch.where(keys[key] & queries[query] & heads[head], score + added, score)

        return adjust

    def missing(
        self, rows: int, logits: Callable[[Tensor], Tensor], visible: Callable[[Tensor], Tensor], device: torch.device
    ) -> Tensor | None:
        """What `share` adds to the logits of the chosen keys [heads, rows]; None in another mode.

        Args:
            logits: those [heads, R, keys] of R of the queries.
            visible: what they see, bool [R, keys].
        """
        if self.of.boost.mode != "share":
            return None
        keys, queries = self._flags(device)
        missing = torch.zeros(self.of.boost.heads.shape[1], rows, device=device)
        for part in queries[:rows].nonzero()[:, 0].split(256):
            weights = logits(part).float().masked_fill(~visible(part), -math.inf).softmax(dim=-1)
            missing[:, part] = self.of.boost.factor((weights * keys[: weights.shape[-1]]).sum(dim=-1)).log()
        return missing

    def _flags(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Boosted keys [K] and queries [Q] of the first sequence."""
        return torch.from_numpy(self.of.keys[0]).to(device), torch.from_numpy(self.of.queries[0]).to(device)


@dataclass(frozen=True)
class BoostedSpan:
    """Tokens of a sequence whose attention is boosted, by their positions, and the first query that it is boosted of.

    Queries come after the keys, so that a token sees itself whatever is blocked.

    Raises:
        ValueError: they do not.
    """

    keys: IntArray
    first_query: int

    def __post_init__(self) -> None:
        if len(self.keys) and not 0 <= self.keys.min() <= self.keys.max() < self.first_query:
            raise ValueError(f"keys {self.keys.tolist()} with queries from {self.first_query} on")


def mark(sequences: Iterable[IntArray], spans: Iterable[BoostedSpan | None]) -> list[IntArray]:
    """The tokens of sequences with the marks of their spans (None: nothing is boosted in it), to be put into a trie."""
    marked = []
    for ids, span in zip(sequences, spans, strict=True):
        marks = np.zeros_like(ids)
        if span is not None:
            marks[span.keys] = _KEY
            marks[span.first_query :] = _QUERY
        marked.append(ids + marks)
    return marked


def split_tree(tree: TokenTree, boost: AttentionBoost | None) -> tuple[TokenTree, BoostedPass | None]:
    """A trie of marked sequences without the marks, and the boost of a pass over it; without a boost there are none."""
    if boost is None:
        return tree, None
    return replace(tree, input_ids=tree.input_ids % _KEY), _boost_marked(tree.input_ids, boost)


def split_row(row: PackedRow, boost: AttentionBoost | None) -> tuple[PackedRow, BoostedPass | None]:
    """The same of a packed row."""
    if boost is None:
        return row, None
    ids, target = row.input_ids % _KEY, row.target % _KEY
    return replace(row, input_ids=ids, target=target), _boost_marked(row.input_ids, boost)


def _boost_marked(ids: IntArray, boost: AttentionBoost) -> BoostedPass:
    """The boost of a pass over token ids with marks."""
    return BoostedPass(boost, (ids & _KEY > 0)[None], (ids & _QUERY > 0)[None])
