"""Figures of a report, as PNG and SVG. Pure drawing: no pyplot, and matplotlib's settings are left as they were."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from esc_lab.artifacts import write_atomic
from esc_lab.report.label_placement import Array, overlap, place_labels, thin_boxes

# Nothing of the user's own matplotlibrc reaches a figure. `_`, `$` and `^` in run names are plain characters. Text
# stays text in the SVG, in whatever sans-serif font the reader has.
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "esc-lab",
}
# Okabe and Ito's colours for all kinds of colour vision, with brown for their yellow, which is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7A4B12")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
LINES = ("-", "--", "-.", ":")
WIDTH = 4.6  # inches: at a column of 3.4 inches the smallest text is 6 pt
DPI = 150


@dataclass(frozen=True)
class Point:
    """A point of a curve: `low` to `high` is its interval (nan: none), `n` how many observations it is the mean of."""

    x: float
    y: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Spot:
    """A point with intervals in both directions, as bounds in the units of the axes (nan: none)."""

    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float


def curves(
    series: Mapping[str, Sequence[Point]], path: Path, *, x_label: str, y_label: str, title: str = ""
) -> tuple[Path, Path]:
    """Lines with shaded intervals; the area of a marker grows with its n. Points without a y leave a gap.

    Returns:
        The files written, `<path>.png` and `<path>.svg`.

    Raises:
        ValueError: there is no series.
        UserError: the files cannot be written.
    """
    with style.context(STYLE, after_reset=True):
        return save_figure(_curves_figure(series, x_label, y_label, title), path)


def scatter(
    points: Mapping[str, Spot], path: Path, *, x_label: str, y_label: str, title: str = "", note: str = ""
) -> tuple[Path, Path]:
    """Labelled points with error bars in both directions, and a note in the emptiest corner.

    Points without an x or a y are named in the note. Returns and raises as `curves` does.
    """
    with style.context(STYLE, after_reset=True):
        return save_figure(_scatter_figure(points, x_label, y_label, title, note), path)


def head_map(values: Any, path: Path, *, title: str, colour_label: str, diverging: bool = False) -> tuple[Path, Path]:
    """Heat map of one value for each attention head, layer 0 at the top as in the order of computation.

    Args:
        values: floats [layers, heads]; heads without a finite value are grey.
        path: where to write, without suffix.
        title: says what is shown.
        colour_label: label of the colour bar, with the unit.
        diverging: two hues around 0, for differences.

    Returns and raises as `curves` does; `ValueError` also for an array that is not two-dimensional.
    """
    with style.context(STYLE, after_reset=True):
        return save_figure(_head_figure(np.asarray(values, dtype=float), title, colour_label, diverging), path)


def _curves_figure(series: Mapping[str, Sequence[Point]], x_label: str, y_label: str, title: str) -> Figure:
    if not series:
        raise ValueError("no series to draw")
    labels = [textwrap.fill(name, 48) for name in series]
    longest = max(len(line) for label in labels for line in label.splitlines() or [""])
    columns = max(1, min(len(labels), 62 // (longest + 6)))
    figure, axes = _axes(2.9 + 0.17 * math.ceil(len(labels) / columns), x_label, y_label, title)
    shown = [point for points in series.values() for point in points if math.isfinite(point.y)]
    most = max((point.n for point in shown), default=1) or 1
    handles = []
    for index, points in enumerate(series.values()):
        look: dict[str, Any] = {"color": COLOURS[index % 8], "marker": MARKERS[index % 8]}
        line: dict[str, Any] = {"linestyle": LINES[(index + index // 8) % 4], "linewidth": 1.3}
        _draw_curve(axes, points, look, line, most)
        handles.append(Line2D([], [], markersize=4.5, **look, **line))
    if all(float(point.x).is_integer() for point in shown):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    fewest = min((point.n for point in shown), default=0)
    size = f"n = {fewest} at every point" if fewest == most else f"marker area grows with n: {fewest} to {most}"
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=size if shown else "no values")
    return figure


def _draw_curve(axes: Axes, points: Sequence[Point], look: dict[str, Any], line: dict[str, Any], most: int) -> None:
    ordered = sorted(points, key=lambda point: point.x)
    x, y, low, high, n = (np.array([getattr(p, name) for p in ordered], float) for name in Point.__annotations__)
    low, high = (np.where(np.isfinite(y), bound, np.nan) for bound in (low, high))
    axes.plot(x, y, color=look["color"], zorder=3, **line)
    axes.scatter(x, y, s=6 + 26 * n / most, linewidths=0, zorder=3, **look)
    axes.fill_between(x, low, high, color=look["color"], alpha=0.14, linewidth=0)
    lonely = _lonely(np.isfinite(low) & np.isfinite(high))  # a band needs two neighbours; one alone is a line
    axes.vlines(x[lonely], low[lonely], high[lonely], colors=look["color"], linewidth=1, alpha=0.5)


def _lonely(present: Array) -> Array:
    """Which entries are present without a present neighbour; [n] bools in and out."""
    padded = np.pad(present, 1)
    return np.asarray(present & ~padded[:-2] & ~padded[2:])


def _scatter_figure(points: Mapping[str, Spot], x_label: str, y_label: str, title: str, note: str) -> Figure:
    shown = {name: spot for name, spot in points.items() if math.isfinite(spot.x) and math.isfinite(spot.y)}
    missing = ", ".join(name for name in points if name not in shown)
    if not shown:
        raise ValueError("no point has both an x and a y")
    figure, axes = _axes(3.6, x_label, y_label, title)
    columns = ([getattr(spot, name) for spot in shown.values()] for name in Spot.__annotations__)
    x, x_low, x_high, y, y_low, y_high = (np.array(column, float) for column in columns)
    bars: dict[str, Any] = {"colors": COLOURS[0], "linewidth": 0.9, "alpha": 0.45}
    wide, high = np.isfinite(x_low) & np.isfinite(x_high), np.isfinite(y_low) & np.isfinite(y_high)
    axes.hlines(y[wide], x_low[wide], x_high[wide], **bars)
    axes.vlines(x[high], y_low[high], y_high[high], **bars)
    axes.scatter(x, y, s=22, color=COLOURS[0], zorder=3, linewidths=0)
    axes.margins(0.09)
    axes.locator_params(axis="x", nbins=7)
    texts = [figure.text(0.5, 0.5, textwrap.fill(name, 24), fontsize=8, ha="center", va="center") for name in shown]

    figure.draw_without_rendering()  # settles the layout; labels are then placed in what is final
    figure.set_layout_engine("none")
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    transform = axes.transData.transform
    anchors = transform(np.stack([x, y], 1))
    lines = np.concatenate(
        [
            thin_boxes(transform(np.stack([x_low, y], 1)[wide]), transform(np.stack([x_high, y], 1)[wide])),
            thin_boxes(transform(np.stack([x, y_low], 1)[high]), transform(np.stack([x, y_high], 1)[high])),
        ]
    )
    solid = np.concatenate([anchors - 7, anchors + 7], 1)
    words = f"{note}\nnot drawn: {missing}" if missing else note
    if words:
        solid = np.vstack([solid, _write_note(axes, words, solid, lines)])
    frame = np.array(axes.bbox.extents)
    sizes = np.array([text.get_window_extent().size for text in texts])
    _draw_labels(figure, texts, anchors, place_labels(anchors, sizes, solid, lines, frame), sizes)
    return figure


def _write_note(axes: Axes, words: str, solid: Array, lines: Array) -> Array:
    """Writes the note where it covers least; returns its box."""
    text = axes.text(0, 0, _wrap(words, 46), transform=axes.transAxes, fontsize=8, color="#333333")
    best: tuple[float, tuple[float, float], Array] | None = None
    for corner in ((0.98, 0.03), (0.02, 0.97), (0.98, 0.97), (0.02, 0.03)):
        _to_corner(text, corner)
        box = np.array(text.get_window_extent().padded(4).extents)
        cost = float(10 * overlap(box, solid).sum() + overlap(box, lines).sum())
        if best is None or cost < best[0]:
            best = cost, corner, box
    assert best is not None
    _to_corner(text, best[1])
    return best[2]


def _to_corner(text: Text, corner: tuple[float, float]) -> None:
    x, y = corner
    text.set(position=corner, ha="right" if x > 0.5 else "left", va="top" if y > 0.5 else "bottom")
    text.set_multialignment("right" if x > 0.5 else "left")


def _draw_labels(
    figure: Figure,
    texts: Sequence[Text],
    anchors: Array,
    centres: Array,
    sizes: Array,
) -> None:
    """Moves the labels to their centres (pixels), with a thin line to the point where a label is not beside it."""
    for text, anchor, centre, size in zip(texts, anchors, centres, sizes, strict=True):
        x, y = centre / figure.bbox.size
        text.set_position((x, y))
        near = np.clip(anchor, centre - size / 2, centre + size / 2)
        if np.hypot(*(near - anchor)) > 20:
            (x_from, y_from), (x_to, y_to) = anchor / figure.bbox.size, near / figure.bbox.size
            leader = Line2D([x_from, x_to], [y_from, y_to], color="#777777", linewidth=0.6)
            leader.set_transform(figure.transFigure)
            figure.add_artist(leader)


def _head_figure(values: Array, title: str, colour_label: str, diverging: bool) -> Figure:
    if values.ndim != 2 or not values.size:
        raise ValueError(f"not an array of [layers, heads]: shape {values.shape}")
    layers, _ = values.shape
    figure, axes = _axes(min(6.0, max(2.2, 1.3 + 0.14 * layers)), "head", "layer", title)
    present = np.isfinite(values)
    low, high = (float(values[present].min()), float(values[present].max())) if present.any() else (0.0, 1.0)
    if diverging:
        high = max(abs(low), abs(high)) or 1.0
        low = -high
    colours = colormaps["RdBu_r" if diverging else "viridis"].with_extremes(bad="#9a9a9a")
    masked = np.ma.masked_array(values, ~present)
    image = axes.imshow(masked, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    axes.grid(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    bar = figure.colorbar(image, ax=axes, label=colour_label)
    bar.outline.set_visible(False)
    if not present.all():
        figure.legend(handles=[Patch(color="#9a9a9a", label="no value")], loc="outside lower right")
    return figure


def _axes(height: float, x_label: str, y_label: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel=_wrap(x_label, 52), ylabel=_wrap(y_label, 32))
    axes.set_title(_wrap(title, 56), loc="left")
    axes.grid(True)
    return figure, axes


def _wrap(text: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


def save_figure(figure: Figure, path: Path) -> tuple[Path, Path]:
    """A PNG and an SVG of a figure; `path` is without suffix. Returns both paths."""
    png, svg = (path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg"))
    engine = figure.get_layout_engine()
    if engine is not None:  # the layout is worked out once, and not for each file anew
        engine.execute(figure)
        figure.set_layout_engine("none")
    text, data = io.StringIO(), io.BytesIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    figure.savefig(data, format="png")
    write_atomic(svg, text.getvalue())
    write_atomic(png, data.getvalue())
    return png, svg
