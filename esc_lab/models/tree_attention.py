"""Attention over token trees: token i attends to token j iff `j <= i < leave[j]`, in a trie in depth-first order.

In a sliding-window layer also `position[i] - position[j] < window`. The attention function is registered with
transformers as `token_tree`. On CUDA it is FlexAttention (`block_masks`). On the CPU it uses that depth-first order
puts all keys that a block of consecutive queries can see into the block itself and the ancestors of its first node:
each block of queries runs SDPA over those keys alone, so the cost follows the depth of the tree, not the square of
the row, and no T x T mask exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from esc_lab.models.attention_boost import BoostedPass, LayerBoost, ScoreMod
from esc_lab.models.block_masks import block_mask, flex_kernel, uses_flex
from esc_lab.models.devices import move
from esc_lab.tokens.encode import IntArray

IMPLEMENTATION = "token_tree"
BLOCK = 256  # queries per block: large enough for the kernels, small enough to skip most masked keys
# From so many queries on the CPU's fused kernel, which does not use bfloat16 instructions, loses against two products,
# forwards and backwards (benchmarks/attention.py).
UNFUSED_ROWS = 48


@dataclass(frozen=True)
class QueryBlock:
    """Queries `start:stop` of a row, the keys [K] that any of them sees, and which it does: additive [1, 1, Q, K].

    Neighbouring keys may be given as a slice; they are not gathered then.
    """

    start: int
    stop: int
    keys: Tensor | slice
    mask: Tensor
    _kept: dict[Any, Any] = field(default_factory=dict)

    def mask_for(self, groups: int) -> Tensor:
        """The mask for query heads laid out as more queries, [1, 1, groups x Q, K]: the same tensor in all layers."""
        mask: Tensor = self._keep(groups, lambda: self.mask.repeat(1, 1, groups, 1))
        return mask

    def boosted(self, boost: LayerBoost, groups: int) -> tuple[Tensor, Tensor | None]:
        """The same with a boost, [1, 1 or key-value heads, groups x Q, K], and the pairs that are boosted, if any."""
        rows, device = slice(self.start, self.stop), self.mask.device
        chosen = self._keep("chosen", lambda: boost.of.choose(rows, self.keys, device))
        if chosen is None:
            return self.mask_for(groups), None

        def fold() -> tuple[Tensor, Tensor]:
            pairs = boost.fold(chosen, groups)
            return boost.of.boost.shift(self.mask_for(groups), pairs), pairs

        folded: tuple[Tensor, Tensor] = fold() if boost.heads is not None else self._keep("boosted", fold)
        return folded

    def _keep(self, name: Any, make: Callable[[], Any]) -> Any:
        """What `make` makes, once for all layers of the pass that the block is of."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def select(self, states: Tensor) -> Tensor:
        """Keys or values of the block, of those [1, heads, T, dim] of the row."""
        return states[:, :, self.keys] if isinstance(self.keys, slice) else states.index_select(2, self.keys)


# For each sliding window of a model (None = full attention) the query blocks of a row, or its BlockMask on CUDA.
TreeMasks = Mapping[int | None, Sequence[QueryBlock] | BlockMask]


def tree_masks(
    leave: IntArray, position: IntArray, windows: set[int | None], dtype: torch.dtype, device: torch.device
) -> TreeMasks:
    """What the tokens [T] of a row may attend to: `leave` and `position` are those of a `TokenTree`.

    Args:
        windows: sliding windows of the model's layers, None for full attention.
    """
    make = block_mask if uses_flex(dtype, device) else query_blocks
    return {window: make(leave, position, window, dtype, device) for window in windows}


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Booleans as an additive float mask (a boolean one is silently wrong in eager attention)."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


def query_blocks(
    leave: IntArray, position: IntArray, window: int | None, dtype: torch.dtype, device: torch.device
) -> Sequence[QueryBlock]:
    nodes = np.arange(len(leave))
    blocks = []
    for start in range(0, len(leave), BLOCK):
        stop = min(start + BLOCK, len(leave))
        # Later nodes of the block have no other ancestors before it: their parents are in the block or above its start.
        ancestors = np.flatnonzero(leave[:start] > start)
        if window is not None:
            ancestors = ancestors[position[start:stop].min() - position[ancestors] < window]
        keys = np.concatenate([ancestors, nodes[start:stop]])
        query = nodes[start:stop, None]
        allowed = (keys <= query) & (query < leave[keys])
        if window is not None:
            allowed &= position[start:stop, None] - position[keys] < window
        mask = additive(move(allowed, device), dtype)[None, None]
        blocks.append(QueryBlock(start, stop, move(keys, device), mask))
    return blocks


def token_tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    tree: TreeMasks | None = None,
    probe: Any = None,
    boost: BoostedPass | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers: along the tree where one is given, else ordinary masked attention.

    Args:
        query: [batch, heads, Q, dim]; key, value: [batch, key-value heads, K, dim].
        tree: the masks of a single row (batch 1).
        softcap: soft-capping of the attention logits (Gemma 2), which SDPA lacks.
        probe: an `AttentionProbe` that measures attention on the way, as it is with the boost.
        boost: what is done to the attention of chosen queries on chosen keys; everything else stays as it is.

    Returns:
        [batch, Q, heads, dim], and None in place of attention weights.
    """
    window = kwargs.get("sliding_window")
    if probe is not None:
        probe.observe(module, query, key, scaling, softcap, window, boost)
    groups = query.shape[1] // key.shape[1]
    steer = None if boost is None else boost.in_layer(module.layer_idx, query)
    if tree is None and softcap is None and steer is None:
        output: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )[0]
        return output, None
    pairs: Tensor | None = None
    if tree is None:
        mask = _causal(query, key) if attention_mask is None else attention_mask
        mask = (additive(mask, query.dtype) if mask.dtype == torch.bool else mask).repeat(1, 1, groups, 1)
        chosen = None if steer is None else steer.of.choose_last(query.shape[2], key.shape[2], query.device)
        if steer is not None and chosen is not None:
            pairs = steer.fold(chosen, groups)
            mask = steer.of.boost.shift(mask, pairs)
        output = _attend(query, key, value, mask, dropout, scaling, softcap, _raise_share(steer, pairs))
    elif isinstance(masks := tree[window], BlockMask):
        output = _flex(query, key, value, masks, scaling, softcap, steer)
    else:
        parts = []
        for block in masks:
            part, states = query[:, :, block.start : block.stop], (block.select(key), block.select(value))
            mask, pairs = (block.mask_for(groups), None) if steer is None else block.boosted(steer, groups)
            share = _raise_share(steer, pairs)
            parts.append(_attend(part, *states, mask, dropout, scaling, softcap, share))
        output = torch.cat(parts, dim=2)
    return output.transpose(1, 2).contiguous(), None


def _raise_share(steer: LayerBoost | None, pairs: Tensor | None) -> Callable[[Tensor], Tensor] | None:
    """What a boost does to attention weights, if it does anything to them."""
    if steer is None or pairs is None or steer.of.boost.mode != "share":
        return None
    return partial(steer.of.boost.raise_share, chosen=pairs)


def _fold(query: Tensor, key: Tensor) -> Tensor:
    """Queries [batch, heads, Q, dim] with the heads that share a key-value head laid out as more queries."""
    return query.reshape(len(query), key.shape[1], -1, query.shape[3])


def _logits(folded: Tensor, key: Tensor, scaling: float | None, softcap: float | None) -> Tensor:
    """Attention logits [batch, key-value heads, groups x Q, K] before the mask."""
    scores = (folded @ key.transpose(2, 3)) * (key.shape[-1] ** -0.5 if scaling is None else scaling)
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    raise_share: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Masked attention [batch, heads, Q, dim]; query heads that share a key-value head are laid out as more queries.

    Args:
        mask: additive, [batch or 1, 1 or key-value heads, groups x Q, K].
        raise_share: what is done to the weights [batch, key-value heads, groups x Q, K].
    """
    batch, heads, length, dim = query.shape
    groups = heads // key.shape[1]
    folded = _fold(query, key)
    scale = dim**-0.5 if scaling is None else scaling
    if softcap is not None or raise_share is not None:
        scores = _logits(folded, key, scaling, softcap) + mask
        wider = torch.float32 if query.dtype in (torch.bfloat16, torch.float16) else query.dtype
        weights = torch.softmax(scores, dim=-1, dtype=wider)
        weights = (weights if raise_share is None else raise_share(weights)).to(query.dtype)
        output = torch.dropout(weights, dropout, dropout > 0) @ value
    elif batch == 1 and dropout == 0 and _unfused(query) and groups * length >= UNFUSED_ROWS:
        scores = torch.baddbmm(mask[0].expand(key.shape[1], -1, -1), folded[0], key[0].transpose(1, 2), alpha=scale)
        output = (torch.softmax(scores, dim=-1) @ value[0])[None]
    else:
        output = scaled_dot_product_attention(folded, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
    return output.reshape(batch, heads, length, dim)


def _unfused(query: Tensor) -> bool:
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


def _causal(query: Tensor, key: Tensor) -> Tensor:
    queries, keys = query.shape[2], key.shape[2]
    return torch.ones(1, 1, queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)


def _flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask,
    scaling: float | None,
    softcap: float | None,
    steer: LayerBoost | None,
) -> Tensor:
    score_mod = _capped(softcap)
    if steer is not None:
        places, heads = torch.arange(key.shape[2], device=query.device), query.shape[1]
        missing = steer.missing(
            query.shape[2],
            lambda rows: _logits(_fold(query[:, :, rows], key), key, scaling, softcap).view(heads, len(rows), -1),
            lambda rows: mask.mask_mod(rows[:1] * 0, rows[:1] * 0, rows[:, None], places),
            query.device,
        )
        score_mod = steer.score_mod(score_mod, missing, query.device)
    output: Tensor = flex_kernel(query.device.type)(
        query, key, value, score_mod=score_mod, block_mask=mask, scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return output


@cache
def _capped(softcap: float | None) -> ScoreMod | None:
    if softcap is None:
        return None
    return lambda score, batch, head, query, key: softcap * torch.tanh(score / softcap)


AttentionInterface.register(IMPLEMENTATION, token_tree_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
