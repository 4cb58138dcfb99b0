"""Studies of Strategy-Relevant Attention as tables on the terminal and in Markdown, figures, and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esc_lab.comparison.formats import markdown_table
from esc_lab.report.figures import Point, Spot, curves, head_map, scatter
from esc_lab.sra.heads import leave_heads_out, relate_heads, score_top_heads
from esc_lab.sra.relations import (
    bin_by_depth,
    compare_paired,
    relate_over_runs,
    relate_within_runs,
    summarize_runs,
    summarize_strategies,
)
from esc_lab.sra.sample import MeasuredReply, ReplySample
from esc_lab.statistics.intervals import Interval
from esc_lab.terminal import console, print_table

LOG_SRA, SHAM_NET, ADHERENCE = "mean log SRA", "sham-net log SRA", "adherence"
# Published for Llama-2-7b-chat and Llama-3-8B-Instruct (arXiv 2402.10453): most attention with the shortest chat.
PUBLISHED_ORDER = ("c1", "c3", "c5", "standard")

Row = Sequence[str]


@dataclass
class Report:
    """The results of a study.

    Attributes:
        metrics: flat numbers for the run's metrics.json.
        results: everything, in JSON types.
        tables: heading -> column names and rows.
        figures: files that were drawn (PNG; an SVG lies beside each).
        lines: sentences below the tables.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, tuple[Row, list[Row]]] = field(default_factory=dict)
    figures: list[Path] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def add(self, heading: str, columns: Row, rows: list[Row]) -> None:
        """Keep a table, and print it."""
        self.tables[heading] = (columns, rows)
        print_table(heading, columns, rows)

    def say(self, line: str) -> None:
        self.lines.append(line)
        console().print(line, highlight=False)

    @property
    def markdown(self) -> str:
        parts = [f"## {heading}\n\n{markdown_table(*table)}" for heading, table in self.tables.items()]
        parts.append("\n".join(f"- {line}" for line in self.lines))
        return "\n\n".join(parts)


def templates(sample: ReplySample, root: Path) -> Report:
    """Where models look under each prompt template, and whether that goes with adherence."""
    report = Report()
    _summaries(report, sample)
    _relations(report, sample)
    _order(report)
    _depth_curves(report, sample, root)
    runs = {summary["run"]: summary for summary in report.results["runs"]}
    pearson = {relation["measure"]: relation["pearson"]["value"] for relation in report.results["relation"]}
    for name, label in (("log_sra", LOG_SRA), ("sham_net", SHAM_NET)):
        points = {run: _spot(summary[name], summary["adherence"]) for run, summary in runs.items()}
        if not _drawable(points):
            continue  # nobody judged adherence, or there is no control
        note = f"Pearson {pearson[name]:.2f}, {len(points)} templates"
        title = "Attention against adherence"
        report.figures.append(
            scatter(points, root / f"{name}_adherence", x_label=label, y_label=ADHERENCE, title=title, note=note)[0]
        )
    return report


def strategies(sample: ReplySample, root: Path) -> Report:
    """Whether the relation between attention and adherence holds for each strategy."""
    report = Report()
    _summaries(report, sample)
    summaries = summarize_strategies(sample)
    report.results["strategies"] = [asdict(row) for row in summaries]
    columns = ["strategy", "n", LOG_SRA, SHAM_NET, ADHERENCE, "r over templates", "r within templates"]
    rows: list[Row] = [
        [
            row.strategy,
            str(row.n),
            *_texts(row.log_sra, row.sham_net, row.adherence),
            *_texts(row.over_runs.pearson, row.within_runs.correlation),
        ]
        for row in summaries
    ]
    report.add("Strategies", columns, rows)
    report.metrics |= {f"{row.strategy}/r_within": row.within_runs.correlation.value for row in summaries}
    points = {row.strategy: _spot(asdict(row.log_sra), asdict(row.adherence)) for row in summaries}
    if _drawable(points):
        path = root / "strategies"
        report.figures.append(scatter(points, path, x_label=LOG_SRA, y_label=ADHERENCE, title="Strategies")[0])
    return report


def heads(replies: Sequence[MeasuredReply], attention: npt.NDArray[np.float32], root: Path, *, seed: int) -> Report:
    """Which layers and heads look at the strategy, and which of them go with adherence.

    Args:
        attention: [replies, layers, heads].
    """
    report = Report()
    mean = attention.astype(np.float64).mean(axis=0)
    report.results["sra"] = mean.tolist()
    share = mean.ravel() / mean.sum()
    top = np.sort(share)[::-1]
    counts = {k: float(top[:k].sum()) for k in (1, 4, 16, 64) if k <= len(top)}
    report.add(
        "Share of all attention on the strategy that the heads with the most of it have",
        ["heads", "share", "if even"],
        [[str(k), f"{value:.1%}", f"{k / len(top):.1%}"] for k, value in counts.items()],
    )
    report.metrics |= {f"heads/share_of_{k}": value for k, value in counts.items()}
    with np.errstate(divide="ignore"):
        report.figures.append(
            head_map(np.log(mean), root / "heads_sra", title="Attention on the strategy", colour_label="log SRA")[0]
        )
    judged = [number for number, reply in enumerate(replies) if reply.adheres is not None]
    if not judged:
        report.say("Nobody judged adherence, so heads cannot be related to it.")
        return report
    chosen = [replies[number] for number in judged]
    adheres = np.array([bool(reply.adheres) for reply in chosen])
    runs, dialogues = [reply.run for reply in chosen], [reply.dialogue for reply in chosen]
    by_head = attention[judged].astype(np.float64)
    correlations, without = relate_heads(by_head, adheres, runs), leave_heads_out(by_head, adheres, runs)
    report.results |= {"relation": correlations.tolist(), "leave_one_out": without.tolist()}
    for values, name, title, label in (
        (correlations, "heads_relation", "Attention and adherence by head", "correlation"),
        (without, "heads_left_out", "Leaving a head out", "change of correlation"),
    ):
        report.figures.append(head_map(values, root / name, title=title, colour_label=label, diverging=True)[0])
    scores = score_top_heads(by_head, adheres, runs, dialogues, seed=seed)
    report.results["top_k"] = [asdict(score) for score in scores]
    report.add(
        f"Correlation of log SRA with adherence over few heads, on held-out dialogues ({len(judged)} replies)",
        ["heads", "chosen", "at random", "all heads"],
        [
            [str(score.k), *(f"{value:.2f}" for value in (score.chosen, score.random, score.all_heads))]
            for score in scores
        ],
    )
    report.metrics |= {f"heads/chosen_{score.k}": score.chosen for score in scores}
    return report


def finetuned(sample: ReplySample, root: Path) -> Report:
    """What fine-tuning does to attention on the strategy, on the same replies."""
    report = Report()
    _summaries(report, sample)
    difference = compare_paired(sample, "base", "SFT")
    report.results["difference"] = asdict(difference)
    columns = ["SFT minus base", "pairs", LOG_SRA, SHAM_NET, "log relative"]
    values = _texts(difference.log_sra, difference.sham_net, difference.log_relative)
    report.add("Difference on the same replies", columns, [["", str(difference.pairs), *values]])
    report.metrics |= {
        "difference/log_sra": difference.log_sra.value,
        "difference/sham_net": difference.sham_net.value,
        "difference/pairs": float(difference.pairs),
    }
    _depth_curves(report, sample, root)
    return report


def lengths(sample: ReplySample, root: Path) -> Report:
    """How attention on the strategy changes with the length of the history, at the same turns.

    Runs are named `<template>, <turns>`.
    """
    report = Report()
    _summaries(report, sample)
    for name, label in (
        ("log_sra", LOG_SRA),
        ("sham_net", SHAM_NET),
        ("log_relative", "log relative"),
        ("adherence", ADHERENCE),
    ):
        series: dict[str, list[Point]] = {}
        for summary in report.results["runs"]:
            template, turns = summary["run"].split(", ")
            if not math.isnan(summary[name]["value"]):
                series.setdefault(template, []).append(_point(float(turns), summary[name], summary["n"]))
        if series:
            path = root / f"{name}_by_length"
            report.figures.append(curves(series, path, x_label="turns of history", y_label=label)[0])
    return report


def _summaries(report: Report, sample: ReplySample) -> None:
    summaries = summarize_runs(sample)
    report.results["runs"] = [asdict(run) for run in summaries]
    columns = ["run", "n", LOG_SRA, SHAM_NET, "log relative", ADHERENCE]
    rows: list[Row] = [
        [
            run.run,
            str(run.n),
            *_texts(run.log_sra, run.sham_net, run.log_relative, run.adherence),
        ]
        for run in summaries
    ]
    report.add("Attention on the strategy, with 95 % intervals over dialogues", columns, rows)
    for run in summaries:
        report.metrics |= {
            f"{run.run}/log_sra": run.log_sra.value,
            f"{run.run}/sham_net": run.sham_net.value,
        }
        report.metrics |= {
            f"{run.run}/log_relative": run.log_relative.value,
            f"{run.run}/n": float(run.n),
        }
        if run.judged:
            report.metrics[f"{run.run}/adherence"] = run.adherence.value


def _relations(report: Report, sample: ReplySample) -> None:
    over, within = relate_over_runs(sample), relate_within_runs(sample)
    report.results |= {"relation": [asdict(row) for row in over], "within": [asdict(row) for row in within]}
    if not any(reply.adheres is not None for reply in sample.replies):
        report.say("Nobody judged adherence (evaluate.classifier), so attention cannot be related to it.")
        return
    columns = ["measure", "templates", "Pearson (dialogues)", "Pearson (templates)", "Spearman", "r within templates"]
    inside = {row.measure: row.correlation.text(2) for row in within}
    rows: list[Row] = [
        [
            row.measure,
            str(row.runs),
            row.pearson.text(2),
            row.fisher.text(2),
            row.spearman.text(2),
            inside.get(row.measure, "-"),
        ]
        for row in over
    ]
    report.add(
        "Attention and adherence: correlation over template means, intervals over what is in brackets", columns, rows
    )
    report.metrics |= {f"pearson/{row.measure}": row.pearson.value for row in over}
    report.metrics |= {f"spearman/{row.measure}": row.spearman.value for row in over}


def _order(report: Report) -> None:
    """Whether the published order of the templates appears, with and without the control."""
    for name, label in (("log_sra", LOG_SRA), ("sham_net", SHAM_NET)):
        means: dict[str, list[float]] = {}
        for summary in report.results["runs"]:
            means.setdefault(summary["run"].partition("_")[0], []).append(summary[name]["value"])
        values = {family: float(np.mean(runs)) for family, runs in means.items()}
        if any(map(math.isnan, values.values())):
            continue
        order = sorted(values, key=lambda family: -values[family])
        text = " > ".join(f"{family} ({values[family]:.2f})" for family in order)
        if set(order) == set(PUBLISHED_ORDER):
            text += "; the published order" if tuple(order) == PUBLISHED_ORDER else "; not the published order"
        report.say(f"Templates by {label}: {text}")


def _depth_curves(report: Report, sample: ReplySample, root: Path) -> None:
    measured: list[tuple[Any, str]] = [("log_sra", LOG_SRA), ("sham_net", SHAM_NET), ("adherence", ADHERENCE)]
    for name, label in measured:
        bins_of_runs = bin_by_depth(sample, name)
        series = {
            run: [_point(group.depth, asdict(group.mean), group.n) for group in bins]
            for run, bins in bins_of_runs.items()
            if bins
        }
        if series:
            path = root / f"{name}_by_depth"
            report.figures.append(curves(series, path, x_label="turns before the reply", y_label=label)[0])


def _point(x: float, mean: dict[str, float], n: int) -> Point:
    return Point(x, mean["value"], mean["low"], mean["high"], n)


def _spot(x: dict[str, float], y: dict[str, float]) -> Spot:
    return Spot(x["value"], x["low"], x["high"], y["value"], y["low"], y["high"])


def _drawable(points: Mapping[str, Spot]) -> bool:
    return any(not math.isnan(spot.x + spot.y) for spot in points.values())


def _texts(*intervals: Interval) -> list[str]:
    return [interval.text(2) for interval in intervals]


STUDIES: dict[str, Callable[..., Report]] = {
    "templates": templates,
    "strategies": strategies,
    "finetuned": finetuned,
    "lengths": lengths,
}
