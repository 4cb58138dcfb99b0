"""Scatter plots whose labels cover neither points nor one another."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from esc_lab.report.figures import COLOURS, new_axes, wrap_lines
from esc_lab.statistics.intervals import FloatArray, Interval

_DISTANCES = (9.0, 14.0, 20.0, 30.0, 44.0, 62.0, 85.0)  # pixels between a point and its label
_DIRECTIONS = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_GAP = 3.0  # pixels kept free around a label
_CORNERS = ((0.98, 0.03), (0.02, 0.97), (0.98, 0.97), (0.02, 0.03))  # for the note, the first that is as good as any


def scatter(
    points: Mapping[str, tuple[Interval, Interval]], *, x_label: str, y_label: str, title: str = "", note: str = ""
) -> Figure:
    """Labelled points (x, y) with error bars in both directions, and a note in the emptiest corner.

    Points without an x or a y are named in the note.

    Raises:
        ValueError: no point has both.
    """
    shown = {name: spot for name, spot in points.items() if math.isfinite(spot[0].value + spot[1].value)}
    missing = ", ".join(name for name in points if name not in shown)
    if not shown:
        raise ValueError("no point has both an x and a y")
    figure, axes = new_axes(3.6, title, x_label, y_label)
    bounds = [[(side.value, side.low, side.high) for side in spot] for spot in shown.values()]
    (x, x_low, x_high), (y, y_low, y_high) = np.array(bounds, float).transpose(1, 2, 0)
    look: dict[str, Any] = {"colors": COLOURS[0], "linewidth": 0.9, "alpha": 0.45}
    wide, high = np.isfinite(x_low) & np.isfinite(x_high), np.isfinite(y_low) & np.isfinite(y_high)
    axes.hlines(y[wide], x_low[wide], x_high[wide], **look)
    axes.vlines(x[high], y_low[high], y_high[high], **look)
    axes.scatter(x, y, s=22, color=COLOURS[0], zorder=3, linewidths=0)
    axes.margins(0.09)
    axes.locator_params(axis="x", nbins=7)
    texts = [figure.text(0.5, 0.5, textwrap.fill(name, 24), fontsize=8, ha="center", va="center") for name in shown]

    figure.draw_without_rendering()  # settles the layout; labels are then placed in what is final
    figure.set_layout_engine("none")
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    transform = axes.transData.transform
    anchors = transform(np.stack([x, y], 1))
    ends = [((x_low, y), (x_high, y), wide), ((x, y_low), (x, y_high), high)]
    bars = [(transform(np.stack(low, 1)[known]), transform(np.stack(up, 1)[known])) for low, up, known in ends]
    lines = np.concatenate([np.concatenate([low - 1.5, up + 1.5], 1) for low, up in bars])
    solid = np.concatenate([anchors - 7, anchors + 7], 1)
    words = f"{note}\nnot drawn: {missing}" if missing else note
    if words:
        solid = np.vstack([solid, _write_note(axes, words, solid, lines)])
    frame = np.array(axes.bbox.extents)
    sizes = np.array([text.get_window_extent().size for text in texts])
    _draw_labels(figure, texts, anchors, place_labels(anchors, sizes, solid, lines, frame), sizes)
    return figure


def _write_note(axes: Axes, words: str, solid: FloatArray, lines: FloatArray) -> FloatArray:
    """Writes the note where it covers least; returns its box."""
    text = axes.text(0, 0, wrap_lines(words, 46), transform=axes.transAxes, fontsize=8, color="#333333")
    boxes = np.array([_move_to_corner(text, corner) for corner in _CORNERS])
    cost = 10 * overlap(boxes, solid).sum(1) + overlap(boxes, lines).sum(1)
    return _move_to_corner(text, _CORNERS[int(cost.argmin())])


def _move_to_corner(text: Text, corner: tuple[float, float]) -> FloatArray:
    x, y = corner
    text.set(position=corner, ha="right" if x > 0.5 else "left", va="top" if y > 0.5 else "bottom")
    text.set_multialignment("right" if x > 0.5 else "left")
    return np.array(text.get_window_extent().padded(4).extents)


def _draw_labels(
    figure: Figure, texts: Sequence[Text], anchors: FloatArray, centres: FloatArray, sizes: FloatArray
) -> None:
    """Moves the labels to their centres (pixels), with a thin line to the point where a label is not beside it."""
    for text, anchor, centre, size in zip(texts, anchors, centres, sizes, strict=True):
        text.set_position(centre / figure.bbox.size)
        near = np.clip(anchor, centre - size / 2, centre + size / 2)
        if np.hypot(*(near - anchor)) > 20:
            xs, ys = (np.stack([anchor, near]) / figure.bbox.size).T
            figure.add_artist(Line2D(xs, ys, color="#777777", linewidth=0.6, transform=figure.transFigure))


def place_labels(
    anchors: FloatArray, sizes: FloatArray, solid: FloatArray, lines: FloatArray, frame: FloatArray
) -> FloatArray:
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


def _candidates(anchor: FloatArray, size: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Boxes [c, 4] around a point, and how far each is from it [c]."""
    distance, angle = (grid.ravel() for grid in np.meshgrid(_DISTANCES, _DIRECTIONS, indexing="ij"))
    reach = size / 2 + (distance - _GAP)[:, None]
    way = np.stack([np.cos(angle), np.sin(angle)], 1)
    way /= abs(way).max(1, keepdims=True)  # round a square: the diagonals clear a cross of error bars
    centres = anchor + way * reach
    return np.concatenate([centres - size / 2, centres + size / 2], 1), distance


def overlap(boxes: FloatArray, others: FloatArray) -> FloatArray:
    """Areas shared by boxes [..., 4] and others [m, 4]: [..., m]; none with a box of nan."""
    boxes = boxes[..., None, :]
    sides = np.minimum(boxes[..., 2:], others[:, 2:]) - np.maximum(boxes[..., :2], others[:, :2])
    return np.asarray(np.nan_to_num(np.clip(sides, 0, None), nan=0.0).prod(-1))
