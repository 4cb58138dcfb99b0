"""Which slots of a cache hold the tokens of earlier prompts: a trie over slots, found again by their tokens.

A node is a slot, and its parent the slot of the token before it. What was not used for longest is forgotten first.
"""

from __future__ import annotations

import numpy as np

from esc_lab.tokens.encode import IntArray

_ROOT = -1


class PrefixIndex:
    """Which of `size` slots hold which token after which others."""

    def __init__(self, size: int) -> None:
        self._slot_of: dict[tuple[int, int], int] = {}  # (parent slot, token) -> slot
        self._entry: list[tuple[int, int]] = [(_ROOT, 0)] * size
        self._free = list(range(size))[::-1]
        self._last_use = np.zeros(size, dtype=np.int64)  # when; a parent never earlier than its children
        self._now = 0

    def tick(self) -> None:
        """What is found or added from now on is kept until the next tick."""
        self._now += 1

    def find(self, ids: IntArray) -> IntArray:
        """Slots of the longest known prefix."""
        path = []
        parent = _ROOT
        for token in ids.tolist():
            slot = self._slot_of.get((parent, token))
            if slot is None:
                break
            path.append(slot)
            parent = slot
        slots = np.array(path, dtype=np.int64)
        self._last_use[slots] = self._now
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
        self._last_use[added] = self._now
        return len(known), added

    def _forget(self, count: int) -> None:
        """Free `count` slots or an eighth of all, but none that was used in this tick."""
        taken = np.fromiter(self._slot_of.values(), dtype=np.int64, count=len(self._slot_of))
        if len(taken) == 0:
            return
        when = self._last_use[taken]
        rank = min(max(count, len(self._entry) // 8), len(taken)) - 1
        limit = min(int(np.partition(when, rank)[rank]), self._now - 1)
        for slot in taken[when <= limit].tolist():
            del self._slot_of[self._entry[slot]]
            self._free.append(slot)
