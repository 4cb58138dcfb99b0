"""Which figures a comparison has: preferences, confusion, Q against B, metrics by depth, training, talks."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from esc_lab.artifacts import READ_ERRORS
from esc_lab.comparison.boosts import BoostResults
from esc_lab.comparison.parallel import parallel_map
from esc_lab.comparison.result import ComparisonResult
from esc_lab.comparison.runs import Cell, shorten_names
from esc_lab.comparison.table import Table
from esc_lab.errors import UserError
from esc_lab.metrics.metric import Metric
from esc_lab.metrics.prediction_table import FloatArray
from esc_lab.report.figures import (
    Point,
    confusion_matrices,
    curves,
    draw_figure,
    preference_bars,
    training_curves,
)
from esc_lab.report.scatter import scatter
from esc_lab.runs.layout import CURVES
from esc_lab.statistics.intervals import Interval

T = TypeVar("T")
Task: TypeAlias = Callable[[], Path]  # draws a figure

_TOGETHER = 8  # methods that one panel tells apart by colour
_LABELS = 10  # labels that one scatter plot has room for
_PANELS = 12  # confusion matrices in one figure


def draw_comparison(comparison: ComparisonResult, table: Table, directory: Path) -> list[Path]:
    """Draw what there is to draw into the directory.

    Returns:
        The PNG files; an SVG lies beside each.
    """
    tasks: list[Task] = []
    for model, rows in table.by_model().items():
        names = {cell.name: table.label(cell) for cell, _ in rows}
        tasks += [*_choices(comparison, model, names, directory), *_depths(comparison, model, names, directory)]
        tasks += _training(model, [cell for cell, _ in rows], directory)
    tasks += [*_scatters(comparison, table, directory), *draw_doses(comparison.boosts, directory)]
    for part in comparison.parts:
        tasks += _intensities(part, directory)
    return parallel_map(tasks)


def draw_doses(boosts: BoostResults, directory: Path) -> Iterator[Task]:
    """Each metric over the dose of the boosts of attention, by model and template."""
    series: dict[tuple[str, Metric], dict[str, list[Point]]] = {}
    for curve in boosts.curves:
        points = [Point(dose, value, n) for dose, value, n in curve.points]
        series.setdefault((curve.place, curve.metric), {})[curve.label] = points
    for (place, metric), curves_of in series.items():
        for number, part in _batched(curves_of, _TOGETHER):
            path = directory / f"dose_{_slug(metric.name)}_{_slug(place)}{number}"
            labels = {"x_label": "dose of the boost", "y_label": metric.heading}
            title = f"{place}: {metric.heading} by the dose of attention"
            yield partial(draw_figure, path, curves, part, title=title, **labels)


def _intensities(comparison: ComparisonResult, directory: Path) -> Iterator[Task]:
    """The intensity of the emotion over the turns of talks, by cell."""
    names = shorten_names(comparison.cells)
    series = {names[cell]: [Point(*point) for point in curve] for cell, curve in comparison.intensity.items()}
    for number, part in _batched(series, _TOGETHER):
        labels = {"x_label": "supporter turns", "y_label": "intensity, 1 to 5"}
        path = directory / f"intensity{number}"
        yield partial(draw_figure, path, curves, part, title="Intensity of the emotion after each turn", **labels)


def _scatters(comparison: ComparisonResult, table: Table, directory: Path) -> Iterator[Task]:
    """Q against B: all cells together, or if their labels would crowd a figure for each model."""
    models = table.by_model()
    spots = {
        model: {table.label(cell): spot for cell, _ in rows if (spot := _q_against_b(comparison, cell))}
        for model, rows in models.items()
    }
    if len(models) > 1 and sum(map(len, spots.values())) <= _LABELS:
        spots = {
            "": {f"{model} {label}": spot for model, labelled in spots.items() for label, spot in labelled.items()}
        }
    for model, labelled in spots.items():
        if len(labelled) > 1:
            path = directory / ("q_against_b" if len(spots) == 1 else f"q_against_b_{_slug(model)}")
            title = f"{model}: proficiency against preference bias" if model else "Proficiency against preference bias"
            labels = {"x_label": "preference bias B", "y_label": "Q", "note": "best: upper left"}
            yield partial(draw_figure, path, scatter, labelled, title=title, **labels)


def _choices(comparison: ComparisonResult, model: str, names: Mapping[str, str], directory: Path) -> Iterator[Task]:
    tables = {label: comparison.strategies[name] for name, label in names.items() if name in comparison.strategies}
    strategies = comparison.test.strategies if comparison.test else ()
    for number, part in _batched(tables, _TOGETHER):
        path = directory / f"preference_{_slug(model)}{number}"
        bars = {label: table.preference for label, table in part.items()}
        title = f"{model}: preference for each strategy"
        yield partial(draw_figure, path, preference_bars, bars, strategies, title=title)
    for number, part in _batched(tables, _PANELS):
        path = directory / f"confusion_{_slug(model)}{number}"
        counts = {label: table.confusion for label, table in part.items()}
        title = f"{model}: predicted strategies, given the gold one"
        yield partial(draw_figure, path, confusion_matrices, counts, strategies, title=title)


def _depths(comparison: ComparisonResult, model: str, names: Mapping[str, str], directory: Path) -> Iterator[Task]:
    headings = {column.name: column.heading for column in comparison.columns}
    for metric, heading in headings.items():
        if metric.endswith("/accuracy") and metric.replace("accuracy", "Q") in headings:
            continue  # it tells the same
        series: dict[str, list[Point]] = {}
        for row in comparison.groups:
            if row.group.kind == "depth" and row.metric == metric and row.cell in names:
                point = Point(row.group.depth, row.interval, row.group.decisions)
                series.setdefault(names[row.cell], []).append(point)
        for number, part in _batched(series, _TOGETHER):
            path = directory / f"depth_{_slug(metric)}_{_slug(model)}{number}"
            labels = {"x_label": "turns before the reply", "y_label": heading}
            yield partial(draw_figure, path, curves, part, title=f"{model}: {heading} by depth", **labels)


def _training(model: str, cells: Sequence[Cell], directory: Path) -> Iterator[Task]:
    """Loss over the steps of the trainings behind the cells that left a metrics.csv."""
    trainings: dict[str, dict[Path, None]] = {}
    for cell in cells:
        places = dict.fromkeys(run.method.training for run in cell.runs if run.method.training)
        trainings.setdefault(cell.method.replace(" training", ""), {}).update(places)
    kinds: dict[str, dict[str, list[tuple[FloatArray, FloatArray]]]] = {}
    for method, directories in trainings.items():
        for column, name in (("train/loss", method), ("val/loss", f"{method}, validation")):
            seeds = [curve for run in directories if (curve := read_curve(run / CURVES, column))]
            if seeds:
                kinds.setdefault(method.split()[0], {})[name] = seeds
    panels = {kind + number: part for kind, methods in kinds.items() for number, part in _batched(methods, _TOGETHER)}
    if panels:
        path = directory / f"training_{_slug(model)}"
        yield partial(draw_figure, path, training_curves, panels, y_label="loss", title=f"{model}: training")


def read_curve(path: Path, column: str) -> tuple[FloatArray, FloatArray] | None:
    """Steps [n] and values [n] of a column of a logger's metrics.csv; None if there is no file or no value in it.

    Raises:
        UserError: the file is broken.
    """
    if not path.exists():
        return None
    try:
        with path.open(encoding="utf-8", newline="") as file:
            points = [(float(row["step"]), float(row[column])) for row in csv.DictReader(file) if row.get(column)]
    except (csv.Error, *READ_ERRORS) as error:
        what, fix = " ".join(str(error).split()), "correct it, or delete it: there is then no curve of this training"
        raise UserError(f"not the curves of a training: {what}", where=str(path), fix=fix) from error
    last = sorted(dict(points).items())  # a resumed training may have written a step twice
    return (np.array([step for step, _ in last]), np.array([value for _, value in last])) if last else None


def _q_against_b(comparison: ComparisonResult, cell: Cell) -> tuple[Interval, Interval] | None:
    """B and Q of a cell that has both."""
    q, b = (comparison.estimates.get((cell.name, f"strategy/{metric}")) for metric in ("Q", "B"))
    if q is None or b is None or math.isnan(q.interval.value + b.interval.value):
        return None
    return b.interval, q.interval


def _batched(items: Mapping[str, T], most: int) -> Iterator[tuple[str, dict[str, T]]]:
    """Parts of nearly the same size, `most` at most, with what their files' names end in."""
    parts = max(1, math.ceil(len(items) / most))
    for number, names in enumerate(np.array_split(list(items), parts)):
        if len(names):
            yield f"_{number + 1}" if number else "", {str(name): items[name] for name in names}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
