"""Masks of FlexAttention for token trees, from the intervals of the tree, and its kernel.

A mask says for each pair of blocks of 128 queries and 128 keys whether all, some or none of the queries attend to the
keys. All of it follows from `leave` and `position`, block by block: nothing here is as large as tokens x tokens.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from esc_lab.models.devices import move
from esc_lab.statistics.intervals import BoolArray
from esc_lab.tokens.encode import IntArray

SIZE = 128  # queries, and keys, of a block
# Kernels that are kept: forward, backward and without gradients, by model, kind of layer and dtype.
_KERNELS = 64


def uses_flex(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether trees go through FlexAttention: its backward pass needs a GPU, and its kernels know no float64."""
    return device.type == "cuda" and dtype != torch.float64


def block_mask(
    leave: IntArray, position: IntArray, window: int | None, dtype: torch.dtype, device: torch.device
) -> BlockMask:
    """What the tokens [T] of a row may attend to; arguments as in `tree_attention.query_blocks`.

    The same as `create_block_mask` finds by trying each query with each key.
    """
    some, every = compare_blocks(leave, position, window)
    # Tensors of their own: of views, a compiled kernel would ask what they are views of.
    parts: dict[str, Any] = {}
    for side, blocks in (("kv", some), ("full_kv", every), ("q", some.T), ("full_q", every.T)):
        count, order = _in_order(blocks)
        parts |= {f"{side}_num_blocks": move(count, device), f"{side}_indices": move(order, device)}
    ends, places = (move(array.astype(np.int32), device) for array in (leave, position))

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        visible = (key <= query) & (query < ends[key])
        return visible if window is None else visible & (places[query] - places[key] < window)

    return BlockMask((len(leave), len(leave)), **parts, BLOCK_SIZE=(SIZE, SIZE), mask_mod=allowed)


def compare_blocks(leave: IntArray, position: IntArray, window: int | None) -> tuple[BoolArray, BoolArray]:
    """Blocks of queries and of keys, [T / 128, T / 128] each: where some pairs attend, and where every pair does.

    Keys before a block of queries that any of them sees are ancestors of its first: one that ends before the first has
    none later. An ancestor is seen by the queries of the block up to its end, of which the least deep is the nearest.
    """
    size = -(-len(leave) // SIZE)
    some, every = np.eye(size, dtype=np.bool_), np.zeros((size, size), dtype=np.bool_)
    for block in range(size):
        start, stop = block * SIZE, min((block + 1) * SIZE, len(leave))
        keys = np.flatnonzero(leave[:start] > start)
        seen, by_all = np.ones(len(keys), dtype=np.bool_), leave[keys] >= stop
        if window is not None:
            depth = position[start:stop]
            last = np.minimum(leave[keys], stop) - start - 1
            seen = np.minimum.accumulate(depth)[last] - position[keys] < window
            by_all &= depth.max() - position[keys] < window
        some[block, keys[seen] // SIZE] = True
        if stop - start == SIZE:
            every[block] = np.bincount(keys[by_all] // SIZE, minlength=size) == SIZE
    return some & ~every, every


def _in_order(blocks: BoolArray) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """How many blocks each row has [1, 1, rows], and their numbers, before all others [1, 1, rows, blocks]."""
    numbers = np.argsort(~blocks, axis=1, kind="stable")
    return blocks.sum(axis=1, dtype=np.int32)[None, None], numbers.astype(np.int32)[None, None]


def pad_row(input_ids: IntArray, position_ids: IntArray, leave: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """A row [T] with roots at its end that nobody sees, so that rows come in few lengths.

    A kernel that is compiled for one length of many then serves all, matrix products meet full tiles, and memory that
    one row gives back fits the next. The row gets longer by 1/16 or 255 tokens at most.
    """
    size = len(leave)
    step = max(SIZE, (1 << (size.bit_length() - 1)) // 16)
    new = np.arange(size, max(-(-size // step) * step, 2 * SIZE))  # one block alone would be a kernel of its own
    zeros = np.zeros_like(new)
    padded = zip((input_ids, position_ids, leave), (zeros, zeros, new + 1), strict=True)
    ids, positions, ends = (np.concatenate(parts) for parts in padded)
    return ids, positions, ends


@cache
def flex_kernel(device: str) -> Any:
    """FlexAttention, on a GPU compiled for any length at once: otherwise each new length costs a compilation.

    Dynamo would fall back to the whole T x T matrix when it has compiled eight, which several models in one process or
    layers of several kinds, with and without gradients, may need.
    """
    if device != "cuda":
        return flex_attention
    limits: dict[str, Any] = {"recompile_limit": _KERNELS, "isolate_recompiles": True}
    return torch.compile(flex_attention, dynamic=True, **limits)
