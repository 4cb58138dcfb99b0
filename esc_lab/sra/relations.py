"""Does attention on the strategy go with adherence to it? Between runs, within them, by strategy, by depth.

Strategy-Relevant Attention (SRA; arXiv 2402.10453) was published with a correlation over eight runs, each a mean over
many replies. Here every number comes with a 95 % percentile interval of a bootstrap over dialogues: all replies of a
drawn dialogue are drawn, in every run, so runs that answer the same dialogues are compared on the same draws. One
dialogue says nothing of how dialogues differ: means over its replies alone have no interval (nan).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from esc_lab.sra.replies import (
    MEASURES,
    FloatArray,
    IntArray,
    Interval,
    Measure,
    MeasuredReply,
    Table,
    codes,
    interval,
    measures,
    pearson,
    ranks,
)

FEWEST = 3  # runs in a correlation over their means; replies in a bin of depths


@dataclass(frozen=True)
class RunSummary:
    """Means over the replies of a run; `net` over those with a control, `adherence` over those judged."""

    run: str
    n: int
    dialogues: int
    with_control: int
    judged: int
    log_sra: Interval
    net: Interval
    log_relative: Interval
    adherence: Interval


@dataclass(frozen=True)
class Relation:
    """Correlation of a measure with adherence over run means.

    Attributes:
        runs: number of runs with replies that are both measured and judged; only these replies enter.
        pearson, spearman: the interval says what other dialogues would give *in these runs*; with many replies it is
            narrow even if there are few runs.
        fisher: Pearson with Fisher's z interval, which says what other runs would give; nan below 4 runs.
        degenerate: bootstrap draws left out, because a run was without replies or a side did not vary.
    """

    measure: Measure
    runs: int
    pearson: Interval
    spearman: Interval
    fisher: Interval
    degenerate: int


@dataclass(frozen=True)
class Within:
    """Point-biserial correlation over `n` replies, after each run's means are taken from both sides."""

    measure: Measure
    n: int
    correlation: Interval
    degenerate: int


@dataclass(frozen=True)
class StrategySummary:
    """A strategy's replies over all runs: means, and the relations of log SRA with adherence among them."""

    strategy: str
    n: int
    with_control: int
    judged: int
    log_sra: Interval
    net: Interval
    adherence: Interval
    over_runs: Relation
    within_runs: Within


@dataclass(frozen=True)
class DepthBin:
    """Mean of a measure over `n` replies; `depth` is their mean number of preceding turns."""

    depth: float
    mean: Interval
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of second minus first over `pairs` matched replies (`net` over `with_control` of them)."""

    first: str
    second: str
    pairs: int
    with_control: int
    unmatched: int
    log_sra: Interval
    net: Interval
    log_relative: Interval


def run_summaries(replies: Sequence[MeasuredReply], *, draws: int = 1000, seed: int = 0) -> list[RunSummary]:
    """Each run, in order of first appearance, with the means of its replies. ValueError if there are no replies."""
    table = Table(replies, draws, seed)
    columns = ("log_sra", "net", "log_relative", "adherence")
    means = {name: table.means(table.run, len(table.runs), table.values[name]) for name in columns}
    return [
        RunSummary(
            run,
            n=int(np.sum(table.run == i)),
            dialogues=len(np.unique(table.dialogue[table.run == i])),
            with_control=_known(table.values["net"][table.run == i]),
            judged=_known(table.values["adherence"][table.run == i]),
            **{name: interval(means[name][:, i]) for name in columns},
        )
        for i, run in enumerate(table.runs)
    ]


def relation(replies: Sequence[MeasuredReply], *, draws: int = 1000, seed: int = 0) -> list[Relation]:
    """Correlation of every measure with adherence over run means. ValueError if there are no replies."""
    table = Table(replies, draws, seed)
    return [_over_runs(table, measure, np.zeros_like(table.run), 1)[0] for measure in MEASURES]


def within_runs(replies: Sequence[MeasuredReply], *, draws: int = 1000, seed: int = 0) -> list[Within]:
    """Whether log SRA and net SRA go with adherence among replies of one run. ValueError if there are no replies."""
    table = Table(replies, draws, seed)
    return [_within(table, measure, np.zeros_like(table.run), 1)[0] for measure in ("log_sra", "net")]


def by_strategy(replies: Sequence[MeasuredReply], *, draws: int = 1000, seed: int = 0) -> list[StrategySummary]:
    """Each strategy, in order of first appearance. All are compared on the same draws.

    The means go over the replies of all runs. ValueError if there are no replies.
    """
    table = Table(replies, draws, seed)
    names, strategy = codes([reply.strategy for reply in replies])
    columns = ("log_sra", "net", "adherence")
    means = {name: table.means(strategy, len(names), table.values[name]) for name in columns}
    over = _over_runs(table, "log_sra", strategy, len(names))
    within = _within(table, "log_sra", strategy, len(names))
    return [
        StrategySummary(
            name,
            n=int(np.sum(strategy == i)),
            with_control=_known(table.values["net"][strategy == i]),
            judged=_known(table.values["adherence"][strategy == i]),
            **{column: interval(means[column][:, i]) for column in columns},
            over_runs=over[i],
            within_runs=within[i],
        )
        for i, name in enumerate(names)
    ]


def by_depth(
    replies: Sequence[MeasuredReply],
    measure: Measure | Literal["adherence"],
    width: int = 2,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, list[DepthBin]]:
    """Means of a measure by run and by the number of turns before the reply.

    Bins are `width` turns wide, from 0 up. One with fewer than 3 known values is merged with the next deeper ones until
    there are 3; what is left over at the end joins the last bin. A run with fewer than 3 has no bins.

    Raises:
        ValueError: no replies, or a width below 1.
    """
    if width < 1:
        raise ValueError(f"width of a bin must be 1 turn or more, not {width}")
    table = Table(replies, draws, seed)
    turn = np.array([reply.turn for reply in replies])
    values = table.values[measure]
    found: dict[str, list[DepthBin]] = {}
    for i, run in enumerate(table.runs):
        members = np.flatnonzero((table.run == i) & ~np.isnan(values))
        found[run] = []
        if len(members) < FEWEST:
            continue
        bins, cell = _depth_bins(turn[members] // width), np.zeros_like(table.run)
        cell[members] = bins
        means = table.means(cell, int(bins.max()) + 1, np.where(table.run == i, values, math.nan))
        found[run] = [
            DepthBin(float(turn[members][bins == b].mean()), interval(means[:, b]), int(np.sum(bins == b)))
            for b in range(means.shape[1])
        ]
    return found


def paired_difference(
    replies: Sequence[MeasuredReply], first: str, second: str, *, draws: int = 1000, seed: int = 0
) -> Difference:
    """How much more attention the replies of one run pay than those of another to the same strategy at the same turn.

    Raises:
        ValueError: nothing matches, or a run has two replies to one (dialogue, turn, strategy, sample).
    """
    ours, theirs = (_by_prompt(replies, run) for run in (first, second))
    matched = [key for key in ours if key in theirs]
    if not matched:
        raise ValueError(f"no reply of {first!r} has the dialogue, turn and strategy of one of {second!r}")
    table = Table([theirs[key] for key in matched], draws, seed)
    before = measures([ours[key] for key in matched])
    differences = {name: table.values[name] - before[name] for name in ("log_sra", "net", "log_relative")}
    one_cell = np.zeros_like(table.run)
    return Difference(
        first,
        second,
        pairs=len(matched),
        with_control=_known(differences["net"]),
        unmatched=len(ours) + len(theirs) - 2 * len(matched),
        **{name: interval(table.means(one_cell, 1, values)[:, 0]) for name, values in differences.items()},
    )


def _by_prompt(replies: Sequence[MeasuredReply], run: str) -> dict[tuple[str, int, str, int], MeasuredReply]:
    found: dict[tuple[str, int, str, int], MeasuredReply] = {}
    for reply in replies:
        if reply.run == run:
            key = (reply.dialogue, reply.turn, reply.strategy, reply.sample)
            if key in found:
                raise ValueError(f"run {run!r} has two replies to {key}: it is not clear which of them to pair")
            found[key] = reply
    return found


def _over_runs(table: Table, measure: Measure, group: IntArray, groups: int) -> list[Relation]:
    """Correlation over run means for each group of replies; `group` [n] in 0..groups-1."""
    runs = len(table.runs)
    known = ~np.isnan(table.values[measure] + table.values["adherence"])
    means = [
        table.means(group * runs + table.run, groups * runs, np.where(known, table.values[name], math.nan))
        for name in (measure, "adherence")
    ]
    x, y = (mean.reshape(-1, groups, runs) for mean in means)
    return [_relation(measure, x[:, g], y[:, g]) for g in range(groups)]


def _relation(measure: Measure, x: FloatArray, y: FloatArray) -> Relation:
    """From the run means [1 + draws, runs] of a measure and of adherence; nan where a run has none."""
    present = ~np.isnan(x[0])
    x, y, n = x[:, present], y[:, present], int(present.sum())
    if n < FEWEST:
        x = y = np.full((len(x), 1), math.nan)
    linear = pearson(x, y)
    monotone = np.where(np.isnan(linear), math.nan, pearson(ranks(x), ranks(y)))
    with np.errstate(divide="ignore"):  # a correlation of 1 has an infinite z
        z = np.arctanh(linear[0])
    reach = 1.96 / math.sqrt(n - 3) if n > 3 else math.nan
    fisher = Interval(float(linear[0]), float(np.tanh(z - reach)), float(np.tanh(z + reach)))
    return Relation(measure, n, interval(linear), interval(monotone), fisher, int(np.isnan(linear[1:]).sum()))


def _within(table: Table, measure: Measure, group: IntArray, groups: int) -> list[Within]:
    """Correlation within runs for each group of replies; `group` [n] in 0..groups-1."""
    x, y = table.values[measure], table.values["adherence"]
    r = table.correlations_within_runs(x, y, group, groups)
    return [
        Within(measure, _known((x + y)[group == g]), interval(r[:, g]), int(np.isnan(r[1:, g]).sum()))
        for g in range(groups)
    ]


def _depth_bins(number: IntArray) -> IntArray:
    """Bins [n], counted from 0, merged until each holds enough replies; all in one if there are too few."""
    present, inverse, counts = np.unique(number, return_inverse=True, return_counts=True)
    merged = np.zeros(len(present), dtype=np.intp)
    bin_, held = 0, 0
    for i, count in enumerate(counts):
        merged[i], held = bin_, held + count
        if held >= FEWEST:
            bin_, held = bin_ + 1, 0
    return np.minimum(merged, max(bin_ - 1, 0))[inverse]


def _known(values: FloatArray) -> int:
    return int((~np.isnan(values)).sum())
