"""Studies of boosted and of blocked attention: does adherence follow when attention does?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from esc_lab.comparison.boosts import MEASURES
from esc_lab.comparison.files import tabulate_slopes
from esc_lab.comparison.formats import format_difference
from esc_lab.comparison.record import record_boosts
from esc_lab.comparison.result import ComparisonResult, compute_comparison
from esc_lab.metrics.metric import Metric
from esc_lab.report.comparison_figures import draw_doses
from esc_lab.report.sra_report import Report

_ADHERENCE = "adherence/accuracy"
_REPLIES = (
    "log SRA, adherence, copied and repetition are of the replies to all prompts. dist-2 and length are of those to "
    "the prompts that name the strategy of the given reply; of all where the corpus has no strategy of the inventory. "
    "ppl is of the given reply after the prompt that names its strategy; where it has none, after one of the prompts, "
    "drawn by dialogue and turn, at the turns that replies are written to."
)


def boost(directories: Sequence[Path], root: Path) -> Report:
    """Metrics over the dose of a boost, by span, and slopes with their contrasts.

    Args:
        directories: of the evaluations, that without a boost before those with one.
    """
    report, comparison = _begin(directories, root)
    boosts = comparison.boosts
    values = {(curve.place, curve.label, curve.metric): curve for curve in boosts.curves}
    columns = [metric for metric in MEASURES if any(metric is curve.metric for curve in boosts.curves)]
    rows: dict[tuple[str, ...], list[str]] = {}  # a place has one without a boost
    for place, label in dict.fromkeys((curve.place, curve.label) for curve in boosts.curves):
        known = {metric: values[place, label, metric] for metric in columns if (place, label, metric) in values}
        doses = [dose for dose, _, _ in next(iter(known.values())).points]
        for number, dose in enumerate(doses):
            texts = [known[m].points[number][1].text(m.decimals) if m in known else "-" for m in columns]
            rows.setdefault((boosts.name(place, label if dose else "none"), f"{dose:g}"), texts)
    headings = [metric.heading for metric in columns]
    title = "Replies by the dose of attention, with 95 % intervals over dialogues"
    report.add(title, ["boost", "dose", *headings], [[*of, *texts] for of, texts in rows.items()])
    report.add("Change with each unit of the dose", *tabulate_slopes(boosts))
    report.say(_REPLIES)
    for curve in boosts.curves:
        report.metrics[f"{curve.place}/{curve.label}/slope/{curve.metric.name}"] = curve.slope.value
    for one in boosts.contrasts:
        name = f"{one.place}/{one.label} minus {one.other}"
        report.metrics[f"{name}/slope/{one.metric.name}"] = one.difference.value
        if one.metric.name == _ADHERENCE:
            text = format_difference(one.difference, 3, one.corrected)
            told = "too few dialogues for an interval" if math.isnan(one.p) else "p by Holm's correction"
            report.say(f"{one.place}: slope of adherence on {one.label} less that on {one.other}: {text}; {told}.")
    report.figures += [draw() for draw in draw_doses(boosts, root)]
    return report


def ablate(directories: Sequence[Path], root: Path) -> Report:
    """What replies lose when attention on a span is blocked; arguments as in `boost`."""
    report, comparison = _begin(directories, root)
    boosts, effects = comparison.boosts, comparison.boosts.effects
    columns = [metric for metric in MEASURES if any(metric in effect.differences for effect in effects)]
    rows: dict[str, dict[Metric, str]] = {}  # a place has one with nothing blocked
    differences = []
    for effect in effects:
        name, less = boosts.name(effect.place, effect.label), effect.differences
        for label, values in ((boosts.name(effect.place, "nothing blocked"), effect.before), (name, effect.values)):
            rows.setdefault(label, {}).update({metric: value.text(metric.decimals) for metric, value in values.items()})
        texts = {metric: format_difference(d.interval, metric.decimals, d.corrected) for metric, d in less.items()}
        differences.append([name, *(texts.get(metric, "-") for metric in columns)])
        for metric, difference in less.items():
            report.metrics[f"{effect.place}: {effect.label}/{metric.name}"] = difference.interval.value
    headings = [metric.heading for metric in columns]
    title, texts_of = "Replies with attention blocked, with 95 % intervals over dialogues", rows.items()
    report.add(title, ["", *headings], [[name, *(texts.get(m, "-") for m in columns)] for name, texts in texts_of])
    report.add("Change against nothing blocked, p by Holm's correction", ["", *headings], differences)
    report.say(_REPLIES)
    report.say("log SRA is not there where the strategy's name, or the neutral phrase, has no attention to measure.")
    return report


def _begin(directories: Sequence[Path], root: Path) -> tuple[Report, ComparisonResult]:
    comparison = compute_comparison(directories)
    report = Report(root)
    report.results |= record_boosts(comparison.boosts)
    return report, comparison


REPORTS: dict[str, Callable[[Sequence[Path], Path], Report]] = {"boost": boost, "ablate": ablate}
