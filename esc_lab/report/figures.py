"""Figures of a report, as PNG and SVG: curves, maps of attention heads, bars of preferences, confusion matrices.

Pure drawing: no pyplot, and matplotlib's settings are left as they were.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

import numpy as np
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from esc_lab.artifacts import write_atomic
from esc_lab.statistics.intervals import BoolArray, FloatArray, Interval
from esc_lab.terminal import show_controls

P = ParamSpec("P")

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
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_LINES = ("-", "--", "-.", ":")
_WIDTH = 4.6  # inches: at a column of 3.4 inches the smallest text is 6 pt
_MOST = len(COLOURS)  # methods that one figure tells apart by colour


class Point(NamedTuple):
    """A point of a curve: the mean of `n` observations at x, and its interval."""

    x: float
    y: Interval
    n: int


def draw_figure(path: Path, plot: Callable[P, Figure], *args: P.args, **kwargs: P.kwargs) -> Path:
    """Draw `plot(...)`, a function of this module or of `esc_lab.report.scatter`.

    Args:
        path: where to write, without suffix.

    Returns:
        The PNG file; an SVG lies beside it.

    Raises:
        UserError: the files cannot be written.
    """
    png, svg = (path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg"))
    text, data = io.StringIO(), io.BytesIO()
    with style.context(STYLE, after_reset=True):
        figure = plot(*args, **kwargs)
        engine = figure.get_layout_engine()
        if engine is not None:  # the layout is worked out once, and not for each file anew
            engine.execute(figure)
            figure.set_layout_engine("none")
        figure.savefig(text, format="svg", metadata={"Date": None})
        figure.savefig(data, format="png")
    write_atomic(svg, show_controls(text.getvalue()))  # XML has no control characters
    write_atomic(png, data.getvalue())
    return png


def curves(series: Mapping[str, Sequence[Point]], *, x_label: str, y_label: str, title: str = "") -> Figure:
    """Lines with shaded intervals; the area of a marker grows with its n. Points without a y leave a gap.

    Raises:
        ValueError: there is no series.
    """
    if not series:
        raise ValueError("no series to draw")
    labels, columns = _legend_labels(series)
    figure, axes = new_axes(2.9 + 0.17 * math.ceil(len(labels) / columns), title, x_label, y_label)
    shown = [point for points in series.values() for point in points if math.isfinite(point.y.value)]
    most = max((point.n for point in shown), default=1) or 1
    handles = []
    for index, points in enumerate(series.values()):
        look: dict[str, Any] = {"color": COLOURS[index % _MOST], "marker": _MARKERS[index % _MOST]}
        line: dict[str, Any] = {"linestyle": _LINES[(index + index // _MOST) % 4], "linewidth": 1.3}
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
    rows = [(point.x, point.y.value, point.y.low, point.y.high, point.n) for point in ordered]
    x, y, low, high, n = np.array(rows, float).reshape(-1, 5).T
    low, high = (np.where(np.isfinite(y), bound, np.nan) for bound in (low, high))
    axes.plot(x, y, color=look["color"], zorder=3, **line)
    axes.scatter(x, y, s=6 + 26 * n / most, linewidths=0, zorder=3, **look)
    axes.fill_between(x, low, high, color=look["color"], alpha=0.14, linewidth=0)
    lonely = _lonely(np.isfinite(low) & np.isfinite(high))  # a band needs two neighbours; one alone is a line
    axes.vlines(x[lonely], low[lonely], high[lonely], colors=look["color"], linewidth=1, alpha=0.5)


def _lonely(present: BoolArray) -> BoolArray:
    """Which entries [n] are present without a present neighbour."""
    padded = np.pad(present, 1)
    return np.asarray(present & ~padded[:-2] & ~padded[2:])


def head_map(values: Any, *, title: str, colour_label: str, diverging: bool = False) -> Figure:
    """Heat map of one value for each attention head, layer 0 at the top as in the order of computation.

    Args:
        values: floats [layers, heads]; heads without a finite value are grey.
        colour_label: with the unit.
        diverging: two hues around 0, for differences.

    Raises:
        ValueError: the array is empty or not two-dimensional.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"not an array of [layers, heads]: shape {values.shape}")
    figure, axes = new_axes(min(6.0, max(2.2, 1.3 + 0.14 * len(values))), title, "head", "layer")
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
    figure.colorbar(image, ax=axes, label=colour_label).outline.set_visible(False)
    if not present.all():
        figure.legend(handles=[Patch(color="#9a9a9a", label="no value")], loc="outside lower right")
    return figure


def preference_bars(preferences: Mapping[str, Sequence[Interval]], strategies: Sequence[str], *, title: str) -> Figure:
    """Preference for each strategy, a bar for each method; at 1 a strategy is chosen wrongly as often as it is missed.

    Args:
        preferences: by method, one for each strategy.

    Raises:
        ValueError: no methods, or more than colours.
    """
    if not 0 < len(preferences) <= _MOST:
        raise ValueError(f"from 1 to {_MOST} methods fit into a figure, not {len(preferences)}")
    height = 0.8 / len(preferences)
    figure, axes = new_axes(
        1.2 + len(strategies) * max(0.3, 0.13 * len(preferences)), title, "preference (1 = none), with 95 % intervals"
    )
    bars = []
    for index, intervals in enumerate(preferences.values()):
        place = np.arange(len(strategies)) - 0.4 + (index + 0.5) * height
        values, low, high = np.array([(interval.value, interval.low, interval.high) for interval in intervals]).T
        bars.append(axes.barh(place, values, height * 0.92, color=COLOURS[index])[0])
        axes.hlines(place, low, high, colors="#333333", linewidth=0.8)
    axes.axvline(1, color="#777777", linewidth=0.8, linestyle=":")
    axes.set_yticks(np.arange(len(strategies)), [textwrap.fill(name, 24) for name in strategies])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    labels, columns = _legend_labels(preferences)
    figure.legend(bars, labels, loc="outside lower center", ncols=columns)
    return figure


def confusion_matrices(counts: Mapping[str, FloatArray], strategies: Sequence[str], *, title: str) -> Figure:
    """A panel for each method: of the decisions with a gold strategy (rows), the share with each prediction (columns).

    Args:
        counts: by method, [classes + 1, classes] with rows predicted (the last unparsable) and columns gold.

    Raises:
        ValueError: no methods.
    """
    if not counts:
        raise ValueError("no confusion counts to draw")
    unparsable = any(matrix[-1].any() for matrix in counts.values())
    names = [*strategies, *(["(unparsable)"] if unparsable else [])]
    down, across = _grid(len(counts))
    size = 0.26 * len(strategies)
    figure = _new_figure(2.6 + across * (size + 0.3), 2.4 + down * (size + 0.35))
    panels = _add_panels(figure, down, across, title, sharey=True)
    for axes, (method, matrix) in zip(panels.flat, counts.items(), strict=False):
        image = _confusion_panel(axes, matrix if unparsable else matrix[:-1], method)
    for axes in panels.flat[len(counts) :]:  # an empty place keeps its labels, for the column above
        axes.set(xlim=panels[0, 0].get_xlim())
        axes.spines[:].set_visible(False)
        axes.tick_params(left=False, length=0)
        axes.grid(False)
    for axes in panels[:-1].flat:
        axes.set_xticks([])
    for axes in panels[-1]:
        axes.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=7)
        axes.set_xlabel("predicted")
    for axes in panels[:, 0]:
        axes.set_yticks(np.arange(len(strategies)), strategies, fontsize=7)
        axes.set_ylabel("gold")
    bar = figure.colorbar(image, ax=panels, label="share of the gold strategy (%)", fraction=0.05, aspect=30)
    bar.outline.set_visible(False)
    return figure


def _confusion_panel(axes: Axes, counts: FloatArray, method: str) -> AxesImage:
    with np.errstate(invalid="ignore"):
        shares = 100 * counts.T / counts.sum(axis=0)[:, None]  # nan where a strategy is never gold
    image = axes.imshow(np.ma.masked_invalid(shares), cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if share >= 9.5:
            colour = "white" if share > 55 else "#222222"
            text = axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=6, color=colour)
            text.set_in_layout(False)  # it lies inside the panel, and to measure all of them takes seconds
    axes.set_title(textwrap.fill(method, 30), fontsize=8)
    axes.grid(False)
    axes.tick_params(length=0)
    return image


def training_curves(
    kinds: Mapping[str, Mapping[str, Sequence[tuple[FloatArray, FloatArray]]]], *, y_label: str, title: str
) -> Figure:
    """A metric over the optimizer steps: a panel for each kind of training, since objectives have scales of their own.

    Args:
        kinds: by kind of training and method: steps [n] and values [n] of each seed, drawn thin where there are
            several, with their mean on top.

    Raises:
        ValueError: no methods, or more of a kind than colours.
    """
    if not kinds or not all(0 < len(methods) <= _MOST for methods in kinds.values()):
        raise ValueError(f"from 1 to {_MOST} curves fit into a panel")
    down, across = _grid(len(kinds))
    wide = across == 1
    figure = _new_figure(_WIDTH if wide else 2.3 * across, 0.5 + (2.5 if wide else 2.1) * down)
    panels = _add_panels(figure, down, across, title)
    for axes, methods in zip(panels.flat, kinds.values(), strict=False):
        _training_panel(axes, methods)
    for axes in panels.flat[len(kinds) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel(y_label)
    figure.supxlabel("optimizer step", fontsize=9)
    return figure


def _training_panel(axes: Axes, methods: Mapping[str, Sequence[tuple[FloatArray, FloatArray]]]) -> None:
    for index, (name, seeds) in enumerate(methods.items()):
        look: dict[str, Any] = {"color": COLOURS[index], "linestyle": _LINES[index % len(_LINES)]}
        few = max(len(steps) for steps, _ in seeds) <= 12
        marker: dict[str, Any] = {"marker": "o" if few else "", "markersize": 3}
        for steps, values in seeds if len(seeds) > 1 else []:
            axes.plot(steps, values, linewidth=0.5, alpha=0.35, **look)
        axes.plot(*_mean_curve(seeds), linewidth=1.3, label=textwrap.fill(name, 28), **marker, **look)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(True)
    axes.legend(fontsize=7)


def _mean_curve(seeds: Sequence[tuple[FloatArray, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    """The mean at the steps that all seeds have."""
    shared = reduce(np.intersect1d, [steps for steps, _ in seeds])
    return shared, np.mean([values[np.searchsorted(steps, shared)] for steps, values in seeds], axis=0)


def _grid(panels: int) -> tuple[int, int]:
    """Rows and columns with few empty places."""
    if panels <= 3:
        return 1, panels
    across = min((3, 2, 4), key=lambda columns: -panels % columns)
    return math.ceil(panels / across), across


def _legend_labels(names: Iterable[str]) -> tuple[list[str], int]:
    """The labels of a legend below the axes, and its number of columns."""
    labels = [textwrap.fill(name, 48) for name in names]
    longest = max(len(line) for label in labels for line in label.splitlines() or [""])
    return labels, max(1, min(len(labels), 62 // (longest + 6)))


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _add_panels(figure: Figure, down: int, across: int, title: str, *, sharey: bool = False) -> Any:
    figure.suptitle(textwrap.fill(title, 56), x=0.01, ha="left", fontsize=9.5)
    return figure.subplots(down, across, sharey=sharey, squeeze=False)


def new_axes(height: float, title: str, x_label: str, y_label: str = "") -> tuple[Figure, Axes]:
    """A figure of the width of a column with one pair of axes."""
    figure = _new_figure(_WIDTH, height)
    axes = figure.add_subplot(xlabel=wrap_lines(x_label, 52), ylabel=wrap_lines(y_label, 32))
    axes.set_title(wrap_lines(title, 56), loc="left")
    axes.grid(True)
    return figure, axes


def wrap_lines(text: str, width: int) -> str:
    """Each line of a text wrapped by itself."""
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())
