"""Bars of preferences, confusion matrices and training curves, in the style of `esc_lab.report.figures`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from esc_lab.metrics.prediction_table import FloatArray
from esc_lab.report.figures import COLOURS, DPI, LINES, STYLE, WIDTH, save_figure
from esc_lab.statistics.intervals import Interval

_MOST = len(COLOURS)  # methods that one figure tells apart by colour


def preference_bars(
    preferences: Mapping[str, Sequence[Interval]], strategies: Sequence[str], path: Path, *, title: str
) -> tuple[Path, Path]:
    """Preference for each strategy, a bar for each method; at 1 a strategy is chosen wrongly as often as it is missed.

    Args:
        preferences: by method, 8 at most: one for each strategy.
        strategies: their names.
        path: where to write, without suffix.
        title: says whose they are.

    Returns:
        The files written, `<path>.png` and `<path>.svg`.

    Raises:
        ValueError: no methods, or more than colours.
        UserError: the files cannot be written.
    """
    if not 0 < len(preferences) <= _MOST:
        raise ValueError(f"from 1 to {_MOST} methods fit into a figure, not {len(preferences)}")
    with style.context(STYLE, after_reset=True):
        height = 0.8 / len(preferences)
        figure, axes = _figure(WIDTH, 1.2 + len(strategies) * max(0.3, 0.13 * len(preferences)), title)
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
        axes.set(xlabel="preference (1 = none), with 95 % intervals")
        labels = [textwrap.fill(name, 48) for name in preferences]
        columns = max(1, min(len(labels), 62 // (max(map(len, labels)) + 6)))
        figure.legend(bars, labels, loc="outside lower center", ncols=columns)
        return save_figure(figure, path)


def confusion_matrices(
    counts: Mapping[str, FloatArray], strategies: Sequence[str], path: Path, *, title: str
) -> tuple[Path, Path]:
    """A panel for each method: of the decisions with a gold strategy (rows), the share with each prediction (columns).

    Args:
        counts: by method, [classes + 1, classes] with rows predicted (the last unparsable) and columns gold.
        strategies, path, title: as in `preference_bars`. Returns and raises as it does, for any number of methods.
    """
    if not counts:
        raise ValueError("no confusion counts to draw")
    unparsable = any(matrix[-1].any() for matrix in counts.values())
    names = [*strategies, *(["(unparsable)"] if unparsable else [])]
    down, across = _grid(len(counts))
    size = 0.26 * len(strategies)
    with style.context(STYLE, after_reset=True):
        figure = Figure(
            figsize=(2.6 + across * (size + 0.3), 2.4 + down * (size + 0.35)), dpi=DPI, layout="constrained"
        )
        FigureCanvasAgg(figure)
        panels = figure.subplots(down, across, sharey=True, squeeze=False)
        figure.suptitle(textwrap.fill(title, 56), x=0.01, ha="left", fontsize=9.5)
        image = None
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
        assert image is not None
        bar = figure.colorbar(image, ax=panels, label="share of the gold strategy (%)", fraction=0.05, aspect=30)
        bar.outline.set_visible(False)
        return save_figure(figure, path)


def _confusion_panel(axes: Axes, counts: FloatArray, method: str) -> AxesImage:
    gold = counts.sum(axis=0)
    with np.errstate(invalid="ignore"):
        shares = 100 * counts.T / gold[:, None]  # nan where a strategy is never gold
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
    kinds: Mapping[str, Mapping[str, Sequence[tuple[FloatArray, FloatArray]]]], path: Path, *, y_label: str, title: str
) -> tuple[Path, Path]:
    """A metric over the optimizer steps: a panel for each kind of training, since objectives have scales of their own.

    Args:
        kinds: by kind of training and method, 8 methods of a kind at most: steps [n] and values [n] of each seed, drawn
            thin where there are several, with their mean on top.
        path: where to write, without suffix.
        y_label, title: say what is drawn.

    Returns and raises as `preference_bars` does.
    """
    if not kinds or not all(0 < len(curves) <= _MOST for curves in kinds.values()):
        raise ValueError(f"from 1 to {_MOST} curves fit into a panel")
    down, across = _grid(len(kinds))
    with style.context(STYLE, after_reset=True):
        size = (WIDTH if across == 1 else 2.3 * across, 0.5 + (2.5 if across == 1 else 2.1) * down)
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(down, across, squeeze=False)
        figure.suptitle(textwrap.fill(title, 56), x=0.01, ha="left", fontsize=9.5)
        for axes, curves in zip(panels.flat, kinds.values(), strict=False):
            _curves_panel(axes, curves)
        for axes in panels.flat[len(kinds) :]:
            axes.set_visible(False)
        for axes in panels[:, 0]:
            axes.set_ylabel(y_label)
        figure.supxlabel("optimizer step", fontsize=9)
        return save_figure(figure, path)


def _curves_panel(axes: Axes, curves: Mapping[str, Sequence[tuple[FloatArray, FloatArray]]]) -> None:
    for index, (name, seeds) in enumerate(curves.items()):
        look: dict[str, Any] = {"color": COLOURS[index], "linestyle": LINES[index % len(LINES)]}
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
    shared = seeds[0][0]
    for steps, _ in seeds[1:]:
        shared = np.intersect1d(shared, steps)
    values = [dict(zip(steps.tolist(), losses.tolist(), strict=True)) for steps, losses in seeds]
    return shared, np.array([np.mean([seed[step] for seed in values]) for step in shared.tolist()])


def _grid(panels: int) -> tuple[int, int]:
    """Rows and columns with few empty places."""
    if panels <= 3:
        return 1, panels
    across = min((3, 2, 4), key=lambda columns: -panels % columns)
    return math.ceil(panels / across), across


def _figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(textwrap.fill(title, 56), loc="left")
    axes.grid(True)
    return figure, axes
