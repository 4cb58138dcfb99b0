"""What boosts of attention do: differences to the same evaluation without one, and responses to the dose.

The dose is the amount of the boost (`evaluate.boost.amount`), 0 without one. Boosts of different amounts on one span,
in the same heads, are a curve; its slope is the least-squares line through the metric at each dose. More attention on
some words changes replies whatever these say, so the slope on the strategy less that on a neutral phrase of as many
tokens is the causal estimate, and the slope in chosen heads less that in random ones says whether the choice matters.

A slope is a linear combination of the runs' metrics, so its interval and test are those of any mean over dialogues: all
runs answer the same decisions, and what they have in common cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from esc_lab.comparison.estimates import Difference, compare_cells, enough_for_interval, tabulate_metric
from esc_lab.comparison.runs import Cell
from esc_lab.config.evaluate import BoostConfig
from esc_lab.metrics.metric import Metric
from esc_lab.metrics.prediction_table import PredictionTable
from esc_lab.metrics.records import METRICS
from esc_lab.statistics.crossed_effects import CrossedMean, SeedTable, combine, estimate_mean, stack
from esc_lab.statistics.intervals import Interval
from esc_lab.statistics.multiple_tests import holm

MEASURES = tuple(
    METRICS[name]
    for name in (
        "sra/log_sra", "adherence/accuracy", "adherence/own_words", "text/copied", "text/perplexity",
        "text/distinct_2", "text/repetition", "text/reply_length",
    )
)  # fmt: skip
_NEUTRAL = {"name": "neutral", "instruction": "neutral_instruction"}  # as many tokens of the neutral instruction
_SECTION = "evaluate.boost."


@dataclass(frozen=True)
class BoostEffect:
    """What a boost does.

    Attributes:
        cell, plain: with the boost, and the same without.
        label: of the boost, without its amount.
        amount: its dose; None where attention is blocked.
        before, values: metrics without it and with it.
        differences: these less those; their p-values are corrected together (Holm).
    """

    cell: Cell
    plain: Cell
    label: str
    amount: float | None
    before: Mapping[Metric, Interval]
    values: Mapping[Metric, Interval]
    differences: Mapping[Metric, Difference]

    @property
    def place(self) -> str:
        return _place(self.plain)


@dataclass(frozen=True)
class DoseCurve:
    """A metric over the doses of a boost.

    Attributes:
        label: of the boost.
        place: model, method and template.
        points: the metric at each dose, ascending from 0, with the number of its observations.
        slope, p: change of the metric with each unit of the dose, and the test that there is none.
    """

    label: str
    place: str
    metric: Metric
    points: Sequence[tuple[float, Interval, int]]
    slope: Interval
    p: float


@dataclass(frozen=True)
class SlopeContrast:
    """A slope less another one: of `label` and `other`. p-values of one pair of them are corrected together (Holm)."""

    label: str
    other: str
    place: str
    metric: Metric
    difference: Interval
    p: float
    corrected: float


@dataclass(frozen=True)
class BoostResults:
    """What the boosts among the compared cells do; empty where there are none beside evaluations without one."""

    effects: Sequence[BoostEffect] = ()
    curves: Sequence[DoseCurve] = ()
    contrasts: Sequence[SlopeContrast] = ()

    def name(self, place: str, label: str) -> str:
        """A boost in tables: its label, with the place where there are several."""
        return f"{place}: {label}" if len({effect.place for effect in self.effects}) > 1 else label


@dataclass(frozen=True)
class _Dosed:
    """Cells of one boost by dose, beginning with that without."""

    settings: Mapping[str, Any]
    cells: Mapping[float, Cell]

    @property
    def label(self) -> str:
        return describe_boost(self.settings)

    @property
    def place(self) -> str:
        return _place(self.cells[0.0])

    def controls(self, dosed: Sequence[_Dosed]) -> list[list[_Dosed]]:
        """The boosts whose slopes are taken from this one's: on neutral words, and in random heads.

        Random heads are others than its own, or any; all draws of them go together.
        """
        settings, neutral = self.settings, _NEUTRAL.get(self.settings["span"])
        wanted = [{**settings, "span": neutral}] if neutral else []
        if settings["study"] and settings["choice"] != "random":
            drawn = {name: value for name, value in settings.items() if name != "draw"} | {"choice": "random"}
            wanted += [{**drawn, "matched": settings["choice"]}, {**drawn, "study": None}]
        same = [each for each in dosed if each.cells[0.0] is self.cells[0.0] and [*each.cells] == [*self.cells]]
        found = [[each for each in same if own.items() <= each.settings.items()] for own in wanted]
        return [boosts for boosts in found if boosts]


def find_boosts(cells: Sequence[Cell], predictions: Mapping[Path, PredictionTable]) -> BoostResults:
    """The effects of the boosts among the cells."""
    effects: list[BoostEffect] = []
    dosed: list[_Dosed] = []
    for plain, of_plain in _group(cells).items():
        boosts: list[tuple[dict[str, Any], dict[float, Cell]]] = []
        for cell in of_plain:
            settings = _boost_of(cell)
            amount = None if settings["mode"] == "block" else float(settings.pop("amount"))
            differences = compare_cells(cell, plain, predictions, MEASURES)
            before, values = ({m: _estimate(of, m, predictions) for m in differences} for of in (plain, cell))
            effects.append(BoostEffect(cell, plain, describe_boost(settings), amount, before, values, differences))
            if amount is not None and cell.seeds == plain.seeds:
                doses = next((doses for known, doses in boosts if known == settings), None)
                if doses is None:
                    boosts.append((settings, doses := {0.0: plain}))
                doses[amount] = cell
        dosed += [_Dosed(settings, dict(sorted(doses.items()))) for settings, doses in boosts]
    curves = [_curve(boost, metric, predictions) for boost in dosed for metric in _measures(boost)]
    return BoostResults(effects, curves, _find_contrasts(dosed, predictions))


def describe_boost(settings: Mapping[str, Any]) -> str:
    """A boost in a few words, without its amount: `name`, `share of name, 16 heads by adherence`."""
    parts = [{"add": "", "share": "share of ", "block": "without "}[settings["mode"]] + settings["span"]]
    if settings["choice"] == "random":
        parts.append(f"{settings['count']} random heads")
        parts += [f"none by {settings['matched']}"] if settings["matched"] else []
        parts += [f"draw {settings['draw']}"] if settings["draw"] > 1 else []
    elif settings["choice"] != "all":
        parts.append(f"{settings['count']} heads by {settings['choice']}")
    parts += [f"{name} {', '.join(map(str, settings[name]))}" for name in ("layers", "heads") if settings[name]]
    return ", ".join([*parts, *(["reply alone"] if settings["queries"] == "reply" else [])])


def _place(plain: Cell) -> str:
    """Model, method and template, with the settings that tell it apart from others, those of boosts left out."""
    name = plain.name
    for key, value in plain.runs[0].method.settings.items():
        name = name.replace(f" {key}={value}", "") if key.startswith(_SECTION) else name
    return name


def _boost_of(cell: Cell) -> dict[str, Any]:
    """The settings of a cell's boost that matter to it; those of older runs, which knew none, are empty."""
    known = cell.runs[0].config["evaluate"].get("boost")
    if not known:
        return {}
    boost = BoostConfig(**known)
    study = boost.study if boost.chooses else None
    return asdict(replace(boost, study=study, matched=boost.matched if boost.choice == "random" else None))


def _is_boosted(cell: Cell) -> bool:
    settings = _boost_of(cell)
    return bool(settings) and (settings["mode"] == "block" or settings["amount"] != 0)


def _group(cells: Sequence[Cell]) -> dict[Cell, list[Cell]]:
    """The boosted cells by the cell that is the same without the boost; those without such a cell are left out."""

    def rest(cell: Cell) -> tuple[Any, ...]:
        method = cell.runs[0].method
        others = {name: value for name, value in method.settings.items() if not name.startswith(_SECTION)}
        return cell.model, cell.template, method.name, sorted(others.items())

    evaluated = [cell for cell in cells if cell.evaluation]
    groups: dict[Cell, list[Cell]] = {cell: [] for cell in evaluated if not _is_boosted(cell)}
    for cell in filter(_is_boosted, evaluated):
        plain = next((other for other in groups if rest(other) == rest(cell)), None)
        if plain is not None:
            groups[plain].append(cell)
    return groups


def _measures(boost: _Dosed) -> list[Metric]:
    """The metrics that all doses have."""
    runs = [run for cell in boost.cells.values() for run in cell.runs]
    return [metric for metric in MEASURES if all(metric.name in run.metrics for run in runs)]


def _tabulate(cell: Cell, metric: Metric, predictions: Mapping[Path, PredictionTable]) -> SeedTable:
    values = np.array([run.metrics[metric.name] for run in cell.runs])
    return tabulate_metric(cell, metric.definition, predictions, values=values)


def _estimate(cell: Cell, metric: Metric, predictions: Mapping[Path, PredictionTable]) -> Interval:
    mean = estimate_mean(_tabulate(cell, metric, predictions))
    return _limit(mean, [cell], metric)[0]


def _limit(mean: CrossedMean, cells: Sequence[Cell], metric: Metric) -> tuple[Interval, float]:
    """A mean with its interval and p, as far as the cells have observations enough for these."""
    if all(enough_for_interval(cell, metric) for cell in cells):
        return mean.interval(corrected=metric.biased), mean.p(corrected=metric.biased)
    return Interval(mean.value, np.nan, np.nan), np.nan


def _slope(boost: _Dosed, metric: Metric, predictions: Mapping[Path, PredictionTable]) -> SeedTable:
    """Of the least-squares line through the metric at each dose."""
    dose = np.array([*boost.cells])
    centered = dose - dose.mean()
    tables = [_tabulate(cell, metric, predictions) for cell in boost.cells.values()]
    return combine(tables, centered / (centered @ centered))


def _curve(boost: _Dosed, metric: Metric, predictions: Mapping[Path, PredictionTable]) -> DoseCurve:
    points = []
    for dose, cell in boost.cells.items():
        count = np.mean([run.metrics.get(metric.count, 0) for run in cell.runs])
        points.append((dose, _estimate(cell, metric, predictions), int(count)))
    slope = estimate_mean(_slope(boost, metric, predictions))
    return DoseCurve(boost.label, boost.place, metric, points, *_limit(slope, [*boost.cells.values()], metric))


def _find_contrasts(dosed: Sequence[_Dosed], predictions: Mapping[Path, PredictionTable]) -> list[SlopeContrast]:
    """Of every boost on the strategy less that on the neutral phrase, and in chosen heads less that in random ones.

    Draws of random heads are to a contrast what seeds are to a difference: their spread is part of its interval.
    """
    contrasts = []
    for boost, others in [(each, controls) for each in dosed for controls in each.controls(dosed)]:
        known = [metric for metric in _measures(boost) if all(metric in _measures(other) for other in others)]
        cells = [cell for each in (boost, *others) for cell in each.cells.values()]
        found = []
        for metric in known:
            slopes = [_slope(each, metric, predictions) for each in (boost, *others)]
            less = [combine([slopes[0], other], np.array([1.0, -1.0])) for other in slopes[1:]]
            found.append(_limit(estimate_mean(stack(less)), cells, metric))
        corrected = holm([p for _, p in found])
        label = describe_boost({**others[0].settings, "draw": 1})
        label += f" ({len(others)} draws)" if len(others) > 1 else ""
        contrasts += [
            SlopeContrast(boost.label, label, boost.place, metric, interval, p, together)
            for metric, (interval, p), together in zip(known, found, corrected, strict=True)
        ]
    return contrasts
