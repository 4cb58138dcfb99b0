"""Attention over token trees: token i attends to token j iff `enter[j] <= enter[i] < leave[j]`.

In a sliding-window layer also `position[i] - position[j] < window`. The attention function is registered with
transformers as `token_tree`. On CUDA it is FlexAttention with a block mask. On the CPU it uses that depth-first order
puts all keys that a block of consecutive queries can see into the block itself and the ancestors of its first node:
each block of queries runs SDPA over those keys alone, so the cost follows the depth of the tree, not the square of
the row, and no T x T mask exists.

Models with sliding-window layers take masks as a dict by layer type: a bare mask would be used in all layers alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from esc_lab.errors import UserError
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.trie import build_tree

IMPLEMENTATION = "token_tree"
BLOCK = 256  # queries per block: large enough for the kernels, small enough to skip most masked keys
# From so many queries on the CPU's fused kernel, which does not use bfloat16 instructions, loses against two products.
UNFUSED_ROWS = 48


def base_model(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper (its layers carry the adapters), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def layer_windows(model: Any) -> dict[str, int | None]:
    """Attention layer types of a model with their sliding window; only `full_attention` where it names no types.

    Raises:
        UserError: the model has layers of another type.
    """
    config = base_model(model).config.get_text_config()
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    unknown = types - {"full_attention", "sliding_attention"}
    if unknown:
        raise UserError(f"no tree attention for layers of type {', '.join(sorted(unknown))}", where=config.model_type)
    return {kind: config.sliding_window if kind == "sliding_attention" else None for kind in sorted(types)}


@dataclass(frozen=True)
class QueryBlock:
    """Queries `start:stop` of a row, the keys [K] that any of them sees, and which it does: additive [1, 1, Q, K].

    Neighbouring keys may be given as a slice; they are not gathered then. `inference`: there will be no gradient.
    """

    start: int
    stop: int
    keys: Tensor | slice
    mask: Tensor
    inference: bool = False
    _wide: dict[int, Tensor] = field(default_factory=dict)

    def wide(self, groups: int) -> Tensor:
        """The mask for query heads laid out as more queries, [1, 1, groups x Q, K]: made once for all layers."""
        if groups not in self._wide:
            self._wide[groups] = _widened(self.mask, groups)
        return self._wide[groups]


@dataclass(frozen=True)
class TreeBlocks:
    """The query blocks of a row for each sliding window that occurs in the model (None = full attention)."""

    by_window: dict[int | None, tuple[QueryBlock, ...]]


@dataclass(frozen=True)
class FlexTree:
    """The same for FlexAttention: a BlockMask for each sliding window."""

    by_window: dict[int | None, Any]


def tree_arguments(model: Any, leave: IntArray, position: IntArray) -> dict[str, Any]:
    """Keyword arguments for the decoder's forward that make it attend along the tree.

    Args:
        leave: [T] one past the last node of each node's subtree.
        position: [T] position of each token in its own sequence.
    """
    windows = layer_windows(model)
    inner = base_model(model)
    device = inner.device
    # A 4-D tensor is passed on as it is, so that transformers does not make a mask that nobody reads.
    placeholder = by_layer_type(dict.fromkeys(windows, torch.zeros(1, 1, 1, 1, device=device)))
    tree: TreeBlocks | FlexTree
    if device.type == "cuda":
        ends, places = torch.from_numpy(leave).to(device), torch.from_numpy(position).to(device)
        tree = FlexTree({window: _block_mask(ends, places, window) for window in windows.values()})
    else:
        tree = TreeBlocks(
            {window: _query_blocks(leave, position, window, inner.dtype, device) for window in windows.values()}
        )
    return {"attention_mask": placeholder, "tree": tree}


def by_layer_type(masks: dict[str, Any]) -> Any:
    """Masks in the form that the model's forward takes: a dict where layers differ, else the one mask."""
    return masks if "sliding_attention" in masks else masks["full_attention"]


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """[Q, K] booleans as an additive float mask [1, 1, Q, K] (a boolean one is silently wrong in eager attention)."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[None, None]


def _query_blocks(
    leave: IntArray, position: IntArray, window: int | None, dtype: torch.dtype, device: torch.device
) -> tuple[QueryBlock, ...]:
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
        mask = additive(torch.from_numpy(allowed).to(device), dtype)
        blocks.append(QueryBlock(start, stop, torch.from_numpy(keys).to(device), mask))
    return tuple(blocks)


def token_tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    tree: TreeBlocks | FlexTree | None = None,
    probe: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers: along the tree where one is given, else ordinary masked attention.

    Args:
        query: [batch, heads, Q, dim]; key, value: [batch, key-value heads, K, dim].
        tree: the mask of a single row (batch 1) whose keys are its queries.
        softcap: soft-capping of the attention logits (Gemma 2), which SDPA lacks.
        probe: an `AttentionProbe` that measures attention on the way.

    Returns:
        [batch, Q, heads, dim], and None in place of attention weights.
    """
    if probe is not None:
        probe.observe(module, query, key, scaling, softcap, kwargs.get("sliding_window"))
    if tree is None:
        # A few queries on many cached keys: SDPA's way would copy the keys and values for every query head.
        few = attention_mask is not None and query.shape[2] < key.shape[2]
        if softcap is None and not few:
            output: Tensor = sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )[0]
            return output, None
        mask = _causal(query, key) if attention_mask is None else _as_additive(attention_mask, query.dtype)
        mask = _widened(mask, query.shape[1] // key.shape[1])
        return _attend(query, key, value, mask, dropout, scaling, softcap).transpose(1, 2).contiguous(), None
    if isinstance(tree, FlexTree):
        mask = tree.by_window[kwargs.get("sliding_window")]
        return _flex(query, key, value, mask, scaling, softcap).transpose(1, 2).contiguous(), None
    outputs = []
    groups = query.shape[1] // key.shape[1]
    for block in tree.by_window[kwargs.get("sliding_window")]:
        seen = (_selected(key, block.keys), _selected(value, block.keys))
        part = query[:, :, block.start : block.stop]
        outputs.append(_attend(part, *seen, block.wide(groups), dropout, scaling, softcap, block.inference))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _selected(states: Tensor, keys: Tensor | slice) -> Tensor:
    return states[:, :, keys] if isinstance(keys, slice) else states.index_select(2, keys)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    inference: bool = False,
) -> Tensor:
    """Masked attention [batch, heads, Q, dim]; query heads that share a key-value head are laid out as more queries.

    Args:
        mask: additive, [batch or 1, 1, groups x Q, K].
        inference: there will be no gradient.
    """
    batch, heads, length, dim = query.shape
    groups = heads // key.shape[1]
    folded = query.reshape(batch, key.shape[1], groups * length, dim)
    if inference and softcap is None and query.dtype == torch.bfloat16 and groups * length >= UNFUSED_ROWS:
        scale = dim**-0.5 if scaling is None else scaling
        scores = torch.baddbmm(mask[0].expand(key.shape[1], -1, -1), folded[0], key[0].transpose(1, 2), alpha=scale)
        output = (torch.softmax(scores, dim=-1) @ value[0])[None]
    elif softcap is None:
        output = scaled_dot_product_attention(folded, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    else:
        scores = (folded @ key.transpose(2, 3)) * (dim**-0.5 if scaling is None else scaling)
        wider = torch.float32 if query.dtype in (torch.bfloat16, torch.float16) else query.dtype
        weights = torch.softmax(softcap * torch.tanh(scores / softcap) + mask, dim=-1, dtype=wider).to(query.dtype)
        output = torch.dropout(weights, dropout, dropout > 0) @ value
    return output.reshape(batch, heads, length, dim)


def _widened(mask: Tensor, groups: int) -> Tensor:
    return mask.repeat(1, 1, groups, 1) if groups > 1 else mask


def _as_additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _causal(query: Tensor, key: Tensor) -> Tensor:
    queries, keys = query.shape[2], key.shape[2]
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    return additive(allowed, query.dtype)


def _flex(query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float | None, softcap: float | None) -> Tensor:
    output: Tensor = _flex_kernel(query.device.type)(
        query, key, value, score_mod=_capped(softcap), block_mask=mask, scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return output


@cache
def _flex_kernel(device: str) -> Any:
    """Compiled for any length at once on CUDA: otherwise each new length costs a compilation."""
    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


@cache
def _capped(softcap: float | None) -> Callable[..., Tensor] | None:
    if softcap is None:
        return None
    return lambda score, batch, head, query, key: softcap * torch.tanh(score / softcap)


AttentionInterface.register(IMPLEMENTATION, token_tree_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def _block_mask(leave: Tensor, position: Tensor, window: int | None) -> Any:
    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (query < leave[key])
        return seen if window is None else seen & (position[query] - position[key] < window)

    return create_block_mask(allowed, None, None, len(leave), len(leave), device=str(leave.device))


def check_tree_attention(model: Any, forward: Callable[..., Tensor], logits: Callable[[Any, Tensor], Tensor]) -> None:
    """Compare one two-branch tree with its two sequences, run separately; the model's own logits are the reference.

    The trunk reaches past the sliding window where that is short enough to be cheap (up to 1,024 tokens).

    Args:
        forward: `tree_hidden_states`.
        logits: `head_logits`.

    Raises:
        UserError: the logits differ, so this model's attention cannot be used with token trees.
    """
    inner = base_model(model)
    windows = [window for window in layer_windows(model).values() if window]
    trunk = max([window for window in windows if window <= 1024], default=8) + 4
    vocabulary = inner.get_input_embeddings().weight.shape[0]
    draw = np.random.default_rng(0).integers(0, vocabulary, trunk + 8)
    sequences = [draw[: trunk + 4], np.concatenate([draw[:trunk], draw[trunk + 4 :]])]
    tree = build_tree(sequences)
    device = inner.device
    with torch.no_grad():
        hidden = forward(model, tree.input_ids, tree.position_ids, tree.leave)
        worst, scale = 0.0, 0.0
        for sequence, path in zip(sequences, tree.paths, strict=True):
            ids = torch.from_numpy(sequence)[None].to(device)
            expected = model(input_ids=ids, use_cache=False, logits_to_keep=4).logits[0].float()
            found = logits(inner, hidden[torch.from_numpy(path[-4:]).to(device)]).float()
            worst = max(worst, float((expected - found).abs().max()))
            scale = max(scale, float(expected.abs().max()))
    limit = (1e-3 if inner.dtype == torch.float32 else 0.1) * max(scale, 1.0)
    if not worst <= limit:
        raise UserError(
            f"logits of a token tree differ from separate sequences by {worst:.2g} (allowed {limit:.2g})",
            where=f"model type {inner.config.model_type}",
            fix="this architecture is not supported; report it with its config.json",
        )
