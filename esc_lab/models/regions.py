"""Branches with a common beginning in neighbouring slots, so that attention reads their keys where they are.

A region is a run of slots. Its branches are paths through it: the slots of their tokens in order. What several branches
share is there once. The queries of a pass in one region attend to the region's slots, each to its own path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from esc_lab.models.tree_attention import BLOCK, QueryBlock, TreeBlocks, additive
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.trie import shared_prefix


class Region:
    """Slots `start:start + width` for a few branches. Slots and rows are counted from the start of the region.

    Attributes:
        used: slots that are taken so far.
        reserved: further slots that its branches may still need.
        branches: how many of them are not finished.
        ids, slots, rows: of the pass that is being put together: tokens and slots of each step, and how many rows.
        first_row: where its rows begin in the pass.
    """

    def __init__(self, start: int, width: int) -> None:
        self.start, self.width = start, width
        self.used = self.reserved = self.branches = 0
        self.first_row = 0
        self._position = np.zeros(width, dtype=np.int64)
        self._paths: list[tuple[IntArray, IntArray]] = []
        self.clear()

    def clear(self) -> None:
        """Begin with the next pass."""
        self.ids: list[IntArray] = []
        self.slots: list[IntArray] = []
        self.rows = 0
        self._visible: list[npt.NDArray[np.bool_]] = []

    def shared(self, ids: IntArray) -> IntArray:
        """The path of the longest prefix that some branch had."""
        best = np.empty(0, dtype=np.int64)
        for known, path in self._paths:
            length = shared_prefix(known, ids)
            if length > len(best):
                best = path[:length]
        return best

    def remember(self, ids: IntArray, path: IntArray) -> None:
        """Let others share the tokens of a branch."""
        self._paths.append((ids, path))

    def room(self) -> int:
        return self.width - self.used - self.reserved

    def mark(self) -> tuple[int, int]:
        """What `cut` comes back to."""
        return self.used, len(self._paths)

    def cut(self, mark: tuple[int, int]) -> None:
        """Give back the slots taken since a mark."""
        self.used = mark[0]
        del self._paths[mark[1] :]

    def append(self, path: IntArray, count: int) -> IntArray:
        """The path with `count` new slots at its end."""
        slots = np.arange(self.used, self.used + count, dtype=np.int64)
        self.used += count
        self._position[slots] = np.arange(len(path), len(path) + count)
        return np.concatenate([path, slots])

    def run(self, path: IntArray, ids: IntArray) -> tuple[IntArray, int]:
        """Compute tokens after a path in the next pass; the longer path, and the row of the first of them."""
        longer, row = self.append(path, len(ids)), self.rows
        visible = np.zeros((len(ids), self.width), dtype=np.bool_)
        visible[:, path] = True
        visible[:, longer[len(path) :]] = np.tri(len(ids), dtype=np.bool_)
        self.ids.append(ids)
        self.slots.append(longer[len(path) :])
        self._visible.append(visible)
        self.rows += len(ids)
        return longer, row

    def positions(self) -> IntArray:
        """Position of each row's token in its branch."""
        return self._position[np.concatenate(self.slots)]

    def blocks(self, window: int | None, dtype: torch.dtype, device: torch.device) -> Iterator[QueryBlock]:
        """What its rows attend to. A row's own slot is the last that it sees."""
        slots, visible = np.concatenate(self.slots), np.concatenate(self._visible)
        for first in range(0, self.rows, BLOCK):
            rows = slice(first, min(first + BLOCK, self.rows))
            keys = int(slots[rows][-1]) + 1
            allowed = visible[rows, :keys]
            if window is not None:
                allowed &= self._position[slots[rows], None] - self._position[None, :keys] < window
            mask = additive(torch.from_numpy(allowed).to(device), dtype)
            place = slice(self.start, self.start + keys)
            yield QueryBlock(self.first_row + rows.start, self.first_row + rows.stop, place, mask, inference=True)


def lay_out(
    regions: Sequence[Region], windows: Iterable[int | None], dtype: torch.dtype, device: torch.device
) -> TreeBlocks:
    """Give the regions' rows their places in a pass; its attention."""
    row = 0
    for region in regions:
        region.first_row = row
        row += region.rows
    return TreeBlocks(
        {
            window: tuple(block for region in regions for block in region.blocks(window, dtype, device))
            for window in set(windows)
        }
    )


def free_start(regions: Sequence[Region], width: int, first: int, end: int) -> int | None:
    """Where between `first` and `end` the next region of that width fits; None if nowhere."""
    start = first
    for region in sorted(regions, key=lambda region: region.start):
        if region.start - start >= width:
            break
        start = region.start + region.width
    return start if start + width <= end else None
