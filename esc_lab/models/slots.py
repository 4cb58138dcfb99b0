"""Keys and values in slots: a cache that is written in place, groups of branches in it, and where earlier prompts are.

A group is a run of neighbouring slots, so that attention reads its keys where they are. Its branches are paths through
it, the slots of their tokens in order; what several of them share is there once. The queries of a pass attend to the
slots of their own group, each to its own path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache

from esc_lab.models.attention_boost import BoostedPass
from esc_lab.models.devices import move
from esc_lab.models.forward import base_model, hidden_states, layer_windows
from esc_lab.models.tree_attention import BLOCK, QueryBlock, additive
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.trie import shared_prefix

_SHARE = 0.7  # most memory of what is kept, in that of the model's weights
_ROOT = -1  # and below it, a root for each adapter


def choose_cache_tokens(model: Any, most: int) -> int:
    """How many tokens of earlier prompts to keep beside a model.

    At most so many that their keys and values take 0.7 of the memory of its weights: those of a small model are large
    beside it, and each of several adapters has its own.
    """
    weights = sum(weight.nbytes for weight in model.parameters())
    return min(most, int(_SHARE * weights / _token_bytes(model)))


def choose_working_tokens(model: Any, batch: int, least: int) -> int:
    """How many tokens of prompts and replies to work on at once: 2,048 for each reply of a batch.

    Fewer would have long dialogues wait for each other. A GPU, whose memory is taken at once, gives half of what is
    free.
    """
    wanted = 2048 * batch
    if model.device.type == "cuda":
        wanted = min(wanted, torch.cuda.mem_get_info(model.device)[0] // 2 // _token_bytes(model))
    return max(wanted, least)


def _token_bytes(model: Any) -> int:
    """What the keys and values of a token take."""
    config = base_model(model).config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token: int = 2 * config.num_hidden_layers * config.num_key_value_heads * size * model.dtype.itemsize
    return token


class KeyValueSlots(DynamicCache):
    """Keys and values [1, heads, slots, dim] of every layer; a pass writes its tokens to the slots `targets`.

    No layer crops its keys: sliding windows are in the mask. Memory of slots that were never written is reserved but,
    on the CPU, not used.

    Attributes:
        end: of the slots that were ever written, as many as a pass sees.
    """

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.end = 0
        self._targets = torch.empty(0, dtype=torch.int64)
        self._states: list[tuple[Tensor, Tensor]] = []  # of each layer keys and values

    def write_to(self, slots: IntArray, device: torch.device) -> None:
        """Where the tokens of the next pass go."""
        self._targets = move(slots, device)
        self.end = max(self.end, int(slots.max()) + 1)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Write the tokens of a pass; all slots of the layer up to the last that was ever written."""
        new = (key_states, value_states)
        if layer_idx == len(self._states):
            keys, values = (states.new_empty(1, states.shape[1], self.slots, states.shape[3]) for states in new)
            self._states.append((keys, values))
        for kept, states in zip(self._states[layer_idx], new, strict=True):
            kept.index_copy_(2, self._targets, states)
        keys, values = self._states[layer_idx]
        return keys[:, :, : self.end], values[:, :, : self.end]

    def copy(self, source: IntArray, target: IntArray) -> None:
        if len(source) == 0:
            return
        self.end = max(self.end, int(target.max()) + 1)
        device = self._targets.device
        sources, targets = move(source, device), move(target, device)
        for states in (states for layer in self._states for states in layer):
            states.index_copy_(2, targets, states.index_select(2, sources))


class BranchGroup:
    """Slots `start:start + width` for a few branches. Slots and rows are counted from the start of the group.

    Attributes:
        reserved: further slots that its branches may still need.
        branches: how many of them are not finished.
        rows: tokens that the next pass computes for the group.
        first_row: where they begin in the pass.
        paths: tokens and path of each branch that later ones may share a beginning with.
        adapter: number of the adapter that all its tokens go through.
    """

    def __init__(self, start: int, width: int, adapter: int = 0) -> None:
        self.start, self.width, self.adapter = start, width, adapter
        self.reserved = self.branches = self.first_row = 0
        self._filled = 0  # slots that are taken so far
        self._position = np.zeros(width, dtype=np.int64)
        self.paths: list[tuple[IntArray, IntArray]] = []
        self.clear()

    def clear(self) -> None:
        """Begin with the next pass."""
        self.rows = 0
        self._ids: list[IntArray] = []
        self._slots: list[IntArray] = []
        self._visible: list[npt.NDArray[np.bool_]] = []

    @property
    def free(self) -> int:
        """Slots that are neither taken nor reserved."""
        return self.width - self._filled - self.reserved

    def find_prefix(self, ids: IntArray) -> IntArray:
        """The path of the longest prefix that some branch had."""
        longest = np.empty(0, dtype=np.int64)
        for known, path in self.paths:
            length = shared_prefix(known, ids)
            if length > len(longest):
                longest = path[:length]
        return longest

    def mark(self) -> tuple[int, int]:
        """What `cut` comes back to."""
        return self._filled, len(self.paths)

    def cut(self, mark: tuple[int, int]) -> None:
        """Give back the slots taken since a mark."""
        self._filled = mark[0]
        del self.paths[mark[1] :]

    def take(self, positions: IntArray) -> IntArray:
        """New slots for tokens with these positions in their branches."""
        slots = np.arange(self._filled, self._filled + len(positions), dtype=np.int64)
        self._filled += len(slots)
        self._position[slots] = positions
        return slots

    def extend(self, path: IntArray, count: int) -> IntArray:
        """The path with `count` new slots at its end."""
        return np.concatenate([path, self.take(np.arange(len(path), len(path) + count))])

    def compute(self, path: IntArray, ids: IntArray) -> tuple[IntArray, int]:
        """Have the next pass compute tokens after a path; the longer path, and the row of the first of them."""
        longer, row = self.extend(path, len(ids)), self.rows
        visible = np.zeros((len(ids), self.width), dtype=np.bool_)
        visible[:, path] = True
        visible[:, longer[len(path) :]] = np.tri(len(ids), dtype=np.bool_)
        self._ids.append(ids)
        self._slots.append(longer[len(path) :])
        self._visible.append(visible)
        self.rows += len(ids)
        return longer, row

    def visible(self) -> npt.NDArray[np.bool_]:
        """[rows, slots taken] which slots each row sees under full attention."""
        return np.concatenate(self._visible)[:, : self._filled]

    def tokens(self) -> tuple[IntArray, IntArray, IntArray]:
        """Ids, positions and slots (of the whole cache) of the rows."""
        slots = np.concatenate(self._slots)
        return np.concatenate(self._ids), self._position[slots], self.start + slots

    def blocks(self, window: int | None, dtype: torch.dtype, device: torch.device) -> Iterator[QueryBlock]:
        """What its rows attend to. A row's own slot is the last that it sees."""
        slots, visible = np.concatenate(self._slots), np.concatenate(self._visible)
        for first in range(0, self.rows, BLOCK):
            rows = slice(first, min(first + BLOCK, self.rows))
            keys = int(slots[rows][-1]) + 1
            allowed = visible[rows, :keys]
            if window is not None:
                allowed &= self._position[slots[rows], None] - self._position[None, :keys] < window
            mask = additive(move(allowed, device), dtype)[None, None]
            place = slice(self.start, self.start + keys)
            yield QueryBlock(self.first_row + rows.start, self.first_row + rows.stop, place, mask)


def run_pass(
    inner: Any,
    cache: KeyValueSlots,
    groups: Sequence[BranchGroup],
    probe: Any = None,
    boost: BoostedPass | None = None,
) -> Tensor:
    """Final hidden states [rows, hidden] of what the groups have to compute, group after group.

    Args:
        boost: its keys are slots of the cache.
    """
    row = 0
    for group in groups:
        group.first_row = row
        row += group.rows
    ids, positions, slots = (np.concatenate(parts) for parts in zip(*(group.tokens() for group in groups), strict=True))
    masks = {
        window: [block for group in groups for block in group.blocks(window, inner.dtype, inner.device)]
        for window in set(layer_windows(inner).values())
    }
    cache.write_to(slots, inner.device)
    states = hidden_states(inner, ids, positions, masks, cache, probe, boost)
    for group in groups:
        group.clear()
    return states


def find_start(groups: Sequence[BranchGroup], width: int, first: int, end: int) -> int | None:
    """Where between `first` and `end` the next group of that width fits; None if nowhere."""
    start = first
    for group in sorted(groups, key=lambda group: group.start):
        if group.start - start >= width:
            break
        start = group.start + group.width
    return start if start + width <= end else None


class PrefixIndex:
    """Which of `size` slots hold the tokens of earlier prompts: a trie over slots, found again by their tokens.

    A node is a slot, its parent the slot of the token before it. Keys and values depend on the adapter that computed
    them, so each adapter has a root of its own. What was not used for longest is forgotten first.
    """

    def __init__(self, size: int) -> None:
        self._slot_of: dict[tuple[int, int], int] = {}  # (parent slot, token) -> slot
        self._entry: list[tuple[int, int]] = [(_ROOT, 0)] * size
        self._free = list(range(size))[::-1]
        self._last_use = np.zeros(size, dtype=np.int64)  # when; a parent never earlier than its children
        self._now = 0

    def tick(self) -> None:
        """What is found or added from now on is kept until the next tick."""
        self._now += 1

    def find(self, ids: IntArray, adapter: int = 0) -> IntArray:
        """Slots of the longest known prefix."""
        path: list[int] = []
        parent = _ROOT - adapter
        for token in ids.tolist():
            slot = self._slot_of.get((parent, token))
            if slot is None:
                break
            path.append(slot)
            parent = slot
        slots = np.array(path, dtype=np.int64)
        self._last_use[slots] = self._now
        return slots

    def add(self, ids: IntArray, adapter: int = 0) -> tuple[int, IntArray]:
        """Take in a sequence, as far as there is room.

        Returns:
            How many of its tokens were known, and the slots of those after them.
        """
        known = self.find(ids, adapter)
        missing = len(ids) - len(known)
        if missing > len(self._free):
            self._forget(missing - len(self._free))
        parent = int(known[-1]) if len(known) else _ROOT - adapter
        slots = []
        for token in ids[len(known) :].tolist():
            if not self._free:
                break
            slot = self._free.pop()
            self._slot_of[parent, token] = slot
            self._entry[slot] = (parent, token)
            slots.append(slot)
            parent = slot
        added = np.array(slots, dtype=np.int64)
        self._last_use[added] = self._now
        return len(known), added

    def _forget(self, count: int) -> None:
        """Free `count` slots or an eighth of all, but none that was used in this tick."""
        taken = np.array(list(self._slot_of.values()), dtype=np.int64)
        if len(taken) == 0:
            return
        when = self._last_use[taken]
        rank = min(max(count, len(self._entry) // 8), len(taken)) - 1
        limit = min(int(np.partition(when, rank)[rank]), self._now - 1)
        for slot in taken[when <= limit].tolist():
            del self._slot_of[self._entry[slot]]
            self._free.append(slot)
