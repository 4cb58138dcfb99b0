"""Keys and values of prompts, kept between calls and found again by their tokens.

A slot of a `KeyValues` holds a token. `PrefixIndex` is a trie over some of them: a node is a slot, and its parent the
slot of the token before it. What was not used for longest is forgotten first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from esc_lab.tokens.encode import IntArray

_ROOT = -1


class KeyValues(DynamicCache):
    """Keys and values [1, heads, slots, dim] of every layer; a pass writes its tokens to the slots `written`.

    No layer crops its keys: sliding windows are in the mask. Memory of slots that were never written is reserved but,
    on the CPU, not used.
    """

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.written = torch.empty(0, dtype=torch.int64)
        self._states: list[list[Tensor]] = []  # of each layer keys and values

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Write the tokens of a pass; all slots of the layer."""
        new = (key_states, value_states)
        if layer_idx == len(self._states):
            self._states.append([states.new_empty(1, states.shape[1], self.slots, states.shape[3]) for states in new])
        kept = self._states[layer_idx]
        for all_states, states in zip(kept, new, strict=True):
            all_states.index_copy_(2, self.written, states)
        return kept[0], kept[1]

    def copy(self, source: IntArray, target: IntArray) -> None:
        """Copy slots of all layers."""
        if len(source) == 0:
            return
        device = self.written.device
        taken, put = torch.from_numpy(source).to(device), torch.from_numpy(target).to(device)
        for layer in self._states:
            for states in layer:
                states.index_copy_(2, put, states.index_select(2, taken))


class PrefixIndex:
    """Which of `size` slots hold which token after which others."""

    def __init__(self, size: int) -> None:
        self._slot_of: dict[tuple[int, int], int] = {}  # (parent slot, token) -> slot
        self._entry: list[tuple[int, int]] = [(_ROOT, 0)] * size
        self._free = list(range(size))[::-1]
        self._used = np.zeros(size, dtype=np.int64)  # when; a parent never earlier than its children
        self._now = 0

    def tick(self) -> None:
        """What is found or added from now on is kept until the next tick."""
        self._now += 1

    def find(self, ids: IntArray) -> IntArray:
        """Slots of the longest known prefix."""
        slots = self._walk(ids)
        self._used[slots] = self._now
        return slots

    def add(self, ids: IntArray) -> tuple[int, IntArray]:
        """Take in a sequence, as far as there is room.

        Returns:
            How many of its tokens were known, and the slots of those after them.
        """
        known = self.find(ids)
        missing = len(ids) - len(known)
        if missing > len(self._free):
            self._forget(missing - len(self._free))
        parent = int(known[-1]) if len(known) else _ROOT
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
        self._used[added] = self._now
        return len(known), added

    def _walk(self, ids: IntArray) -> IntArray:
        slots = []
        parent = _ROOT
        for token in ids.tolist():
            slot = self._slot_of.get((parent, token))
            if slot is None:
                break
            slots.append(slot)
            parent = slot
        return np.array(slots, dtype=np.int64)

    def _forget(self, count: int) -> None:
        """Free `count` slots or an eighth of all, but none that was used in this tick."""
        taken = np.fromiter(self._slot_of.values(), dtype=np.int64, count=len(self._slot_of))
        if len(taken) == 0:
            return
        when = self._used[taken]
        rank = min(max(count, len(self._entry) // 8), len(taken)) - 1
        limit = min(int(np.partition(when, rank)[rank]), self._now - 1)
        for slot in taken[when <= limit].tolist():
            del self._slot_of[self._entry[slot]]
            self._free.append(slot)
