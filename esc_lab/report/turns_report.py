"""The study of attention and adherence turn by turn in whole talks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from esc_lab.report.figures import Point
from esc_lab.report.sra_columns import MEASURES
from esc_lab.report.sra_report import Report, summarize_runs_in
from esc_lab.sra.sample import ReplySample
from esc_lab.sra.turns import fit_trends, summarize_turns

_SHOWN: tuple[Literal["log_sra", "sham_net", "log_relative", "adherence"], ...] = (
    "log_sra", "sham_net", "log_relative", "adherence",
)  # fmt: skip


def turns(sample: ReplySample, root: Path, shortened: Mapping[str, int]) -> Report:
    """How attention on the strategy, and adherence to it, change from turn to turn.

    Args:
        sample: replies from `place_in_talks`.
        shortened: by run, prompts whose oldest turns were left out for want of room.
    """
    report = Report(root)
    summarize_runs_in(report, sample)
    found = summarize_turns(sample)
    report.results["turns"] = [asdict(each) for each in found]
    report.add(
        "The supporter's turns, with 95 % intervals over cards",
        ["run", "turn", "n", *(MEASURES[name] for name in _SHOWN)],
        [[each.run, str(each.turn), str(each.n), *(getattr(each, name).text(2) for name in _SHOWN)] for each in found],
    )
    trends: dict[str, dict[str, Any]] = {}
    for name in _SHOWN:
        series: dict[str, list[Point]] = {}
        for each in found:
            mean = getattr(each, name)
            if not math.isnan(mean.value):
                report.metrics[f"{each.run}/turn_{each.turn:02d}/{name}"] = mean.value
                series.setdefault(each.run, []).append(Point(float(each.turn), mean, each.n))
        report.draw_curves(f"{name}_by_turn", series, "the supporter's turn", MEASURES[name])
        for run, trend in fit_trends(sample, name).items():
            trends.setdefault(run, {})[name] = trend
            if not math.isnan(trend.value):
                report.metrics[f"{run}/{name}_per_turn"] = trend.value
    report.results["trends"] = {
        run: {name: asdict(trend) for name, trend in own.items()} for run, own in trends.items()
    }
    report.add(
        "Change from one turn to the next, within talks",
        ["run", *(MEASURES[name] for name in _SHOWN)],
        [[run, *(own[name].text(3, "+") for name in _SHOWN)] for run, own in trends.items()],
    )
    for run, count in shortened.items():
        report.metrics[f"{run}/shortened"] = float(count)
        if count:
            report.say(f"{run}: {count} prompts without the oldest turns; raise data.row_tokens to show all.")
    return report
