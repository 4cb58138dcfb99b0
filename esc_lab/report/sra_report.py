"""Studies of Strategy-Relevant Attention as tables on the terminal and in Markdown, figures, and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from esc_lab.comparison.formats import markdown_table
from esc_lab.report.figures import Point, curves, draw_figure, head_map
from esc_lab.report.scatter import scatter
from esc_lab.report.sra_columns import MEASURES, describe_column
from esc_lab.sra.controls import summarize_controls
from esc_lab.sra.heads import leave_heads_out, relate_heads, score_top_heads
from esc_lab.sra.relations import (
    Difference,
    RunSummary,
    bin_by_depth,
    compare_paired,
    compare_with_first,
    relate_over_runs,
    relate_within_runs,
    summarize_runs,
    summarize_strategies,
)
from esc_lab.sra.sample import MeasuredReply, ReplySample
from esc_lab.statistics.intervals import FloatArray, Interval
from esc_lab.terminal import console, print_table, show_controls

# Published for Llama-2-7b-chat and Llama-3-8B-Instruct (arXiv 2402.10453): most attention with the shortest chat.
PUBLISHED_ORDER = ("c1", "c3", "c5", "standard")


@dataclass
class Report:
    """The results of a study."""

    root: Path  # where figures are drawn
    metrics: dict[str, float] = field(default_factory=dict)  # flat, for the run's metrics.json
    results: dict[str, Any] = field(default_factory=dict)  # everything, in JSON types
    tables: dict[str, tuple[Sequence[str], Sequence[Sequence[str]]]] = field(default_factory=dict)  # by heading
    figures: list[Path] = field(default_factory=list)  # PNG; an SVG lies beside each
    lines: list[str] = field(default_factory=list)  # sentences below the tables
    notes: list[str] = field(default_factory=list)  # what the columns are

    def add(self, heading: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Keep a table, and print it, with what its columns are where no table before it has said so."""
        self.tables[heading] = (columns, rows)
        notes = [f"{name}: {note}" for name in columns if (note := describe_column(name))]
        notes = [note for note in notes if note not in self.notes]
        self.notes += notes
        print_table(heading, columns, rows, notes=notes)

    def say(self, line: str) -> None:
        self.lines.append(line)
        console().print(show_controls(line), highlight=False)

    def draw_curves(self, name: str, series: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> None:
        if series:
            self.figures.append(draw_figure(self.root / name, curves, series, x_label=x_label, y_label=y_label))

    def draw_scatter(self, name: str, points: Mapping[str, tuple[Interval, Interval]], **labels: str) -> None:
        """A measure (x) against adherence; nothing if nobody judged adherence or the measure is unknown."""
        if any(not math.isnan(x.value + y.value) for x, y in points.values()):
            labels["y_label"] = MEASURES["adherence"]
            self.figures.append(draw_figure(self.root / name, scatter, points, **labels))

    def draw_heads(self, name: str, values: FloatArray, title: str, label: str, *, diverging: bool = False) -> None:
        path = self.root / name
        self.figures.append(draw_figure(path, head_map, values, title=title, colour_label=label, diverging=diverging))

    @property
    def markdown(self) -> str:
        parts = [f"## {heading}\n\n{markdown_table(*table)}" for heading, table in self.tables.items()]
        parts.append("\n".join(f"- {line}" for line in (*self.lines, *self.notes)))
        return "\n\n".join(parts)


def templates(sample: ReplySample, root: Path) -> Report:
    """Where models look under each prompt template, and whether that goes with adherence."""
    report = Report(root)
    runs = summarize_runs_in(report, sample)
    _contrasts(report, compare_with_first(sample))
    pearson = _relations(report, sample)
    _order(report, runs)
    _depth_curves(report, sample)
    for name in ("log_sra", "sham_net"):
        points = {run.run: (getattr(run, name), run.adherence) for run in runs}
        note = f"Pearson {pearson[name].value:.2f}, {len(points)} templates"
        title = "Attention against adherence"
        report.draw_scatter(f"{name}_adherence", points, x_label=MEASURES[name], title=title, note=note)
    return report


def strategies(sample: ReplySample, root: Path) -> Report:
    """Whether the relation between attention and adherence holds for each strategy."""
    report = Report(root)
    summarize_runs_in(report, sample)
    summaries = summarize_strategies(sample)
    report.results["strategies"] = [asdict(row) for row in summaries]
    measured = ("log_sra", "sham_net", "adherence")
    report.add(
        "Strategies",
        ["strategy", "n", *(MEASURES[name] for name in measured), "r over templates", "r within templates"],
        [
            [
                row.strategy,
                str(row.n),
                *_texts(row, measured),
                row.over_runs.pearson.text(2),
                row.within_runs.correlation.text(2),
            ]
            for row in summaries
        ],
    )
    report.metrics |= {f"{row.strategy}/r_within": row.within_runs.correlation.value for row in summaries}
    points = {row.strategy: (row.log_sra, row.adherence) for row in summaries}
    report.draw_scatter("strategies", points, x_label=MEASURES["log_sra"], title="Strategies")
    return report


def heads(replies: Sequence[MeasuredReply], attention: npt.NDArray[np.float32], root: Path, *, seed: int) -> Report:
    """Which layers and heads look at the strategy, and which of them go with adherence.

    Args:
        attention: [replies, layers, heads].
    """
    report = Report(root)
    mean = attention.astype(np.float64).mean(axis=0)
    report.results["sra"] = mean.tolist()
    report.results["dialogues"] = sorted({reply.dialogue for reply in replies})
    share = np.sort(mean.ravel() / mean.sum())[::-1]
    counts = {k: float(share[:k].sum()) for k in (1, 4, 16, 64) if k <= len(share)}
    report.add(
        "Share of all attention on the strategy that the heads with the most of it have",
        ["heads", "share", "if even"],
        [[str(k), f"{value:.1%}", f"{k / len(share):.1%}"] for k, value in counts.items()],
    )
    report.metrics |= {f"heads/share_of_{k}": value for k, value in counts.items()}
    with np.errstate(divide="ignore"):
        report.draw_heads("heads_sra", np.log(mean), "Attention on the strategy", "log SRA")
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
    titles = ("Attention and adherence by head", "Leaving a head out")
    report.draw_heads("heads_relation", correlations, titles[0], "correlation", diverging=True)
    report.draw_heads("heads_left_out", without, titles[1], "change of correlation", diverging=True)
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
    report = Report(root)
    summarize_runs_in(report, sample)
    difference = compare_paired(sample, "base", "SFT")
    report.results["difference"] = asdict(difference)
    _contrasts(report, [difference])
    report.metrics |= {
        "difference/log_sra": difference.log_sra.value,
        "difference/sham_net": difference.sham_net.value,
        "difference/pairs": float(difference.pairs),
    }
    _depth_curves(report, sample)
    return report


def lengths(sample: ReplySample, root: Path) -> Report:
    """How attention on the strategy changes with the length of the history, at the same turns.

    Runs are named `<template>, <turns>`.
    """
    report = Report(root)
    runs = summarize_runs_in(report, sample)
    for name, label in MEASURES.items():
        series: dict[str, list[Point]] = {}
        for run in runs:
            template, turns = run.run.split(", ")
            mean = getattr(run, name)
            if not math.isnan(mean.value):
                series.setdefault(template, []).append(Point(float(turns), mean, run.n))
        report.draw_curves(f"{name}_by_length", series, "turns of history", label)
    return report


def summarize_runs_in(report: Report, sample: ReplySample) -> list[RunSummary]:
    """Add means of all runs, and what their nets owe to their controls."""
    summaries = summarize_runs(sample)
    report.results["runs"] = [asdict(run) for run in summaries]
    report.add(
        "Attention on the strategy, with 95 % intervals over dialogues",
        ["run", "n", *MEASURES.values()],
        [[run.run, str(run.n), *_texts(run, MEASURES)] for run in summaries],
    )
    for run in summaries:
        values = {name: getattr(run, name).value for name in ("log_sra", "sham_net", "log_relative")}
        values["n"] = float(run.n)
        if run.judged:
            values["adherence"] = run.adherence.value
        report.metrics |= {f"{run.run}/{name}": value for name, value in values.items()}
    _controls(report, sample)
    return summaries


def _controls(report: Report, sample: ReplySample) -> None:
    """The level of net attention with what it owes to the words of its control and their place."""
    rows = []
    for run in summarize_controls(sample):
        report.results.setdefault("controls", []).append(asdict(run))
        report.metrics |= {f"{run.run}/sham_net_level": run.level.value, f"{run.run}/sham_net_spread": run.spread}
        low, *_, high = sorted((mean.value, name) for name, (mean, _) in run.phrases.items()) * 2
        ends = (f"{value:.2f} ({name})" for value, name in (low, high))
        spread = "-" if math.isnan(run.spread) else f"{run.spread:.2f}"
        rows.append([run.run, run.level.text(2), str(len(run.phrases)), spread, *ends, run.order.text(2, "+")])
    if rows:
        columns = ["run", "level", "phrases", "sd over phrases", "lowest", "highest", "phrase before minus after"]
        report.add("Sham-net by the control: compare runs, not a level with 0", columns, rows)


def _contrasts(report: Report, differences: Sequence[Difference]) -> None:
    """Differences on the same turns and strategies, whose controls have the same words in the same place."""
    measured = ("log_sra", "sham_net", "log_relative")
    if differences:
        report.results["contrasts"] = [asdict(difference) for difference in differences]
        report.add(
            "Differences at the same turns and strategies, under equal words and order of the control",
            ["", "pairs", *(MEASURES[name] for name in measured)],
            [[f"{row.second} minus {row.first}", str(row.pairs), *_texts(row, measured)] for row in differences],
        )


def _relations(report: Report, sample: ReplySample) -> dict[str, Interval]:
    """Pearson's correlation over template means, by measure."""
    over, within = relate_over_runs(sample), relate_within_runs(sample)
    report.results |= {"relation": [asdict(row) for row in over], "within": [asdict(row) for row in within]}
    pearson: dict[str, Interval] = {row.measure: row.pearson for row in over}
    if not any(reply.adheres is not None for reply in sample.replies):
        report.say("Nobody judged adherence (evaluate.classifier), so attention cannot be related to it.")
        return pearson
    inside = {row.measure: row.correlation.text(2) for row in within}
    report.add(
        "Attention and adherence: correlation over template means, intervals over what is in brackets",
        ["measure", "templates", "Pearson (dialogues)", "Pearson (templates)", "Spearman", "r within templates"],
        [
            [row.measure, str(row.runs), *_texts(row, ("pearson", "fisher", "spearman")), inside.get(row.measure, "-")]
            for row in over
        ],
    )
    for row in over:
        report.metrics |= {f"pearson/{row.measure}": row.pearson.value, f"spearman/{row.measure}": row.spearman.value}
    return pearson


def _order(report: Report, runs: Sequence[RunSummary]) -> None:
    """Whether the published order of the templates appears, with and without the control."""
    for name in ("log_sra", "sham_net"):
        means: dict[str, list[float]] = {}
        for run in runs:
            means.setdefault(run.run.partition("_")[0], []).append(getattr(run, name).value)
        values = {family: float(np.mean(levels)) for family, levels in means.items()}
        if any(map(math.isnan, values.values())):
            continue
        order = sorted(values, key=lambda family: -values[family])
        text = " > ".join(f"{family} ({values[family]:.2f})" for family in order)
        if set(order) == set(PUBLISHED_ORDER):
            text += "; the published order" if tuple(order) == PUBLISHED_ORDER else "; not the published order"
        report.say(f"Templates by {MEASURES[name]}: {text}")


def _depth_curves(report: Report, sample: ReplySample) -> None:
    measured: tuple[Literal["log_sra", "sham_net", "adherence"], ...] = ("log_sra", "sham_net", "adherence")
    for name in measured:
        series = {
            run: [Point(group.depth, group.mean, group.n) for group in bins]
            for run, bins in bin_by_depth(sample, name).items()
            if bins
        }
        report.draw_curves(f"{name}_by_depth", series, "turns before the reply", MEASURES[name])


def _texts(row: Any, names: Iterable[str]) -> list[str]:
    return [getattr(row, name).text(2) for name in names]


STUDIES: dict[str, Callable[..., Report]] = {
    "templates": templates,
    "strategies": strategies,
    "finetuned": finetuned,
    "lengths": lengths,
}
