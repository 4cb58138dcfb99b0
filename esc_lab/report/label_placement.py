"""Where the labels of a scatter plot go, so that they cover neither points nor one another."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_DISTANCES = (9.0, 14.0, 20.0, 30.0, 44.0, 62.0, 85.0)  # pixels between a point and its label
_DIRECTIONS = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_GAP = 3.0  # pixels kept free around a label


def place_labels(anchors: Array, sizes: Array, solid: Array, lines: Array, frame: Array) -> Array:
    """Centres of the labels: greedy, then a few rounds in which each label moves given where the others are.

    A label may cover a line if that is much nearer, but covers a solid thing, another label or the frame's edge only
    where there is no other room. The result depends on nothing but the arguments.

    Args:
        anchors: the labelled points [n, 2], pixels.
        sizes: width and height of each label [n, 2].
        solid: boxes that must stay visible [m, 4] as (left, bottom, right, top): markers, a note.
        lines: boxes that had better stay visible [k, 4]: error bars.
        frame: the box that labels should stay in [4].

    Returns:
        Centres [n, 2].
    """
    boxes = np.full((len(anchors), 4), np.nan)  # nan: not placed yet, overlaps nothing
    for _ in range(4):
        for index, (anchor, size) in enumerate(zip(anchors, sizes + 2 * _GAP, strict=True)):
            candidates, distance = _candidates(anchor, size)
            others = np.delete(boxes, index, axis=0)
            cost = distance + overlap(candidates, lines).sum(1)
            cost += 30 * (overlap(candidates, solid).sum(1) + overlap(candidates, others).sum(1))
            cost += 30 * (size.prod() - overlap(candidates, frame[None]).sum(1))
            boxes[index] = candidates[cost.argmin()]
    return np.asarray((boxes[:, :2] + boxes[:, 2:]) / 2)


def _candidates(anchor: Array, size: Array) -> tuple[Array, Array]:
    """Boxes [c, 4] around a point, and how far each is from it [c]."""
    distance, angle = (grid.ravel() for grid in np.meshgrid(_DISTANCES, _DIRECTIONS, indexing="ij"))
    reach = size / 2 + (distance - _GAP)[:, None]
    way = np.stack([np.cos(angle), np.sin(angle)], 1)
    way /= abs(way).max(1, keepdims=True)  # round a square: the diagonals clear a cross of error bars
    centres = anchor + way * reach
    return np.concatenate([centres - size / 2, centres + size / 2], 1), distance


def overlap(boxes: Array, others: Array) -> Array:
    """Areas shared by boxes [..., 4] and others [m, 4]: [..., m]; none with a box of nan."""
    boxes = boxes[..., None, :]
    sides = np.minimum(boxes[..., 2:], others[:, 2:]) - np.maximum(boxes[..., :2], others[:, :2])
    return np.asarray(np.nan_to_num(np.clip(sides, 0, None), nan=0.0).prod(-1))


def thin_boxes(starts: Array, ends: Array, width: float = 3.0) -> Array:
    """Boxes [n, 4] of horizontal or vertical lines between points [n, 2]."""
    return np.concatenate([np.minimum(starts, ends) - width / 2, np.maximum(starts, ends) + width / 2], 1)
