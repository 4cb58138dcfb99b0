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
from typing import Any, Literal, TypeAlias

import numpy as np

from esc_lab.sra.sample import MEASURES, Measure, MeasuredReply, ReplySample, measure_columns, number_labels
from esc_lab.statistics.correlation import center_within, pearson, ranks
from esc_lab.statistics.intervals import FloatArray, IntArray, Interval, fisher_interval, percentile_interval

_Prompt: TypeAlias = tuple[str, int, str, int]  # dialogue, turn, strategy, sample

MIN_RUNS = 3  # in a correlation over their means
MIN_REPLIES = 3  # in a bin of depths


@dataclass(frozen=True)
class Summary:
    """Means over `n` replies; `sham_net` over those with a control, `adherence` over those that were judged."""

    n: int
    dialogues: int
    with_control: int
    judged: int
    log_sra: Interval
    sham_net: Interval
    log_relative: Interval
    adherence: Interval


@dataclass(frozen=True)
class RunSummary(Summary):
    """The replies of a run."""

    run: str


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
class RelationWithin:
    """Point-biserial correlation over `n` replies, after each run's means are taken from both sides."""

    measure: Measure
    n: int
    correlation: Interval
    degenerate: int


@dataclass(frozen=True)
class StrategySummary(Summary):
    """The replies to a strategy over all runs, and the relations of log SRA with adherence among them."""

    strategy: str
    over_runs: Relation
    within_runs: RelationWithin


@dataclass(frozen=True)
class DepthBin:
    """Mean of a measure over `n` replies; `depth` is their mean number of preceding turns."""

    depth: float
    mean: Interval
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of second minus first over `pairs` matched replies (`sham_net` over `with_control` of them)."""

    first: str
    second: str
    pairs: int
    with_control: int
    unmatched: int
    log_sra: Interval
    sham_net: Interval
    log_relative: Interval


def summarize_runs(sample: ReplySample) -> list[RunSummary]:
    """Each run, in order of first appearance, with the means of its replies."""
    summaries = summarize_groups(sample, sample.run, len(sample.runs))
    return [RunSummary(run=run, **summary) for run, summary in zip(sample.runs, summaries, strict=True)]


def relate_over_runs(sample: ReplySample) -> list[Relation]:
    """Correlation of every measure with adherence over run means."""
    return [_relate_over_runs(sample, measure, np.zeros_like(sample.run), 1)[0] for measure in MEASURES]


def relate_within_runs(sample: ReplySample) -> list[RelationWithin]:
    """Whether log SRA and sham-net SRA go with adherence among replies of one run."""
    measures: tuple[Measure, ...] = ("log_sra", "sham_net")
    return [_relate_within_runs(sample, measure, np.zeros_like(sample.run), 1)[0] for measure in measures]


def summarize_strategies(sample: ReplySample) -> list[StrategySummary]:
    """Each strategy, in order of first appearance, over the replies of all runs. All are compared on the same draws."""
    names, strategy = number_labels([reply.strategy for reply in sample.replies])
    summaries = summarize_groups(sample, strategy, len(names))
    over = _relate_over_runs(sample, "log_sra", strategy, len(names))
    within = _relate_within_runs(sample, "log_sra", strategy, len(names))
    return [
        StrategySummary(strategy=name, over_runs=over[i], within_runs=within[i], **summaries[i])
        for i, name in enumerate(names)
    ]


def bin_by_depth(
    sample: ReplySample, measure: Measure | Literal["adherence"], width: int = 2
) -> dict[str, list[DepthBin]]:
    """Means of a measure by run and by the number of turns before the reply.

    Bins are `width` turns wide, from 0 up. One with fewer than 3 known values is merged with the next deeper ones until
    there are 3; what is left over at the end joins the last bin. A run with fewer than 3 has no bins.

    Raises:
        ValueError: a width below 1.
    """
    if width < 1:
        raise ValueError(f"width of a bin must be 1 turn or more, not {width}")
    turn = np.array([reply.turn for reply in sample.replies])
    values = sample.values[measure]
    by_run: dict[str, list[DepthBin]] = {}
    for i, run in enumerate(sample.runs):
        members = np.flatnonzero((sample.run == i) & ~np.isnan(values))
        by_run[run] = []
        if len(members) < MIN_REPLIES:
            continue
        bins, group = _merge_bins(turn[members] // width), np.zeros_like(sample.run)
        group[members] = bins
        means = sample.means(np.where(sample.run == i, values, math.nan), group, int(bins.max()) + 1)
        by_run[run] = [
            DepthBin(float(turn[members][bins == b].mean()), _interval(means[:, b]), int(np.sum(bins == b)))
            for b in range(means.shape[1])
        ]
    return by_run


def compare_paired(sample: ReplySample, first: str, second: str) -> Difference:
    """How much more attention the replies of one run pay than those of another to the same strategy at the same turn.

    Raises:
        ValueError: nothing matches, a run has two replies to one (dialogue, turn, strategy, sample), or the prompts of
            two matched replies have other neutral phrases or another order: their nets are of different controls.
    """
    ours, theirs = (_index_by_prompt(sample.replies, run) for run in (first, second))
    matched = [key for key in ours if key in theirs]
    if not matched:
        raise ValueError(f"no reply of {first!r} has the dialogue, turn and strategy of one of {second!r}")
    for key in matched:
        one, other = ours[key], theirs[key]
        if (one.phrase, one.place) != (other.phrase, other.place):
            controls = " and ".join(f"{reply.phrase!r} {reply.place} it" for reply in (one, other))
            raise ValueError(f"the strategy of {key} has {controls} beside it: no contrast under unequal words")
    pairs = ReplySample([theirs[key] for key in matched], sample.draws, sample.seed)
    before = measure_columns([ours[key] for key in matched])
    differences = {name: pairs.values[name] - before[name] for name in ("log_sra", "sham_net", "log_relative")}
    return Difference(
        first,
        second,
        pairs=len(matched),
        with_control=_count_known(differences["sham_net"]),
        unmatched=len(ours) + len(theirs) - 2 * len(matched),
        **{name: pairs.mean(values) for name, values in differences.items()},
    )


def compare_with_first(sample: ReplySample) -> list[Difference]:
    """Every other run that has replies to prompts of the first, compared with the first; raises what `compare_paired`
    does for two replies to one prompt and for unequal words.
    """
    prompts: dict[str, set[_Prompt]] = {run: set() for run in sample.runs}
    for reply in sample.replies:
        prompts[reply.run].add(_prompt_of(reply))
    first, *others = sample.runs
    return [compare_paired(sample, first, other) for other in others if prompts[first] & prompts[other]]


def _prompt_of(reply: MeasuredReply) -> _Prompt:
    return reply.dialogue, reply.turn, reply.strategy, reply.sample


def _index_by_prompt(replies: Sequence[MeasuredReply], run: str) -> dict[_Prompt, MeasuredReply]:
    index: dict[_Prompt, MeasuredReply] = {}
    for reply in replies:
        if reply.run == run:
            key = _prompt_of(reply)
            if key in index:
                raise ValueError(f"run {run!r} has two replies to {key}: it is not clear which of them to pair")
            index[key] = reply
    return index


def summarize_groups(sample: ReplySample, group: IntArray, groups: int) -> list[dict[str, Any]]:
    """Fields of `Summary` for each group of replies; `group` [n] in 0..groups-1."""
    columns = ("log_sra", "sham_net", "log_relative", "adherence")
    means = {name: sample.means(sample.values[name], group, groups) for name in columns}
    return [
        {
            "n": int(np.sum(group == g)),
            "dialogues": len(np.unique(sample.cluster[group == g])),
            "with_control": _count_known(sample.values["sham_net"][group == g]),
            "judged": _count_known(sample.values["adherence"][group == g]),
            **{name: _interval(means[name][:, g]) for name in columns},
        }
        for g in range(groups)
    ]


def _relate_over_runs(sample: ReplySample, measure: Measure, group: IntArray, groups: int) -> list[Relation]:
    """Correlation over run means for each group of replies; `group` [n] in 0..groups-1."""
    runs = len(sample.runs)
    known = ~np.isnan(sample.values[measure] + sample.values["adherence"])
    means = [
        sample.means(np.where(known, sample.values[name], math.nan), group * runs + sample.run, groups * runs)
        for name in (measure, "adherence")
    ]
    x, y = (mean.reshape(-1, groups, runs) for mean in means)
    return [_relate_means(measure, x[:, g], y[:, g]) for g in range(groups)]


def _relate_means(measure: Measure, x: FloatArray, y: FloatArray) -> Relation:
    """From the run means [1 + draws, runs] of a measure and of adherence; nan where a run has none."""
    present = ~np.isnan(x[0])
    x, y, n = x[:, present], y[:, present], int(present.sum())
    if n < MIN_RUNS:
        x = y = np.full((len(x), 1), math.nan)
    linear = pearson(x, y)
    monotone = np.where(np.isnan(linear), math.nan, pearson(ranks(x), ranks(y)))
    degenerate = int(np.isnan(linear[1:]).sum())
    return Relation(measure, n, _interval(linear), _interval(monotone), fisher_interval(linear[0], n), degenerate)


def _relate_within_runs(sample: ReplySample, measure: Measure, group: IntArray, groups: int) -> list[RelationWithin]:
    """Correlation within runs for each group of replies; `group` [n] in 0..groups-1."""
    x, y = sample.values[measure], sample.values["adherence"]
    r = correlate_within_runs(sample, x, y, group, groups)
    return [
        RelationWithin(measure, _count_known((x + y)[group == g]), _interval(r[:, g]), int(np.isnan(r[1:, g]).sum()))
        for g in range(groups)
    ]


def correlate_within_runs(
    sample: ReplySample, x: FloatArray, y: FloatArray, group: IntArray, groups: int
) -> FloatArray:
    """Pearson [1 + draws, groups] of x and y [n] about the means of each run, anew in every draw.

    Replies where one side is nan are left out. A correlation is nan where a side does not vary within runs, and, in
    the draws, for a group whose replies are all of one dialogue.
    """
    known, runs = ~np.isnan(x + y), len(sample.runs)
    cell = group * runs + sample.run
    # About the means of the whole data the sums are small, so that their differences below keep their digits.
    x, y = (center_within(np.where(known, v, 0), np.where(known, cell, -1)) * known for v in (x, y))
    n, sx, sy, sxx, syy, sxy = (
        sample.sums(values, cell, groups * runs).reshape(-1, groups, runs)
        for values in (known.astype(float), x, y, x * x, y * y, x * y)
    )
    n = np.maximum(n, 1)  # a run without replies in a draw adds nothing
    cxx, cyy, cxy = ((s - a * b / n).sum(axis=-1) for s, a, b in ((sxx, sx, sx), (syy, sy, sy), (sxy, sx, sy)))
    varies = (cxx > 1e-12 * sxx.sum(axis=-1)) & (cyy > 1e-12 * syy.sum(axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.where(varies, np.clip(cxy / np.sqrt(cxx * cyy), -1, 1), math.nan)
    for g in range(groups):
        if len(np.unique(sample.cluster[known & (group == g)])) < 2:
            r[1:, g] = math.nan
    return r


def _merge_bins(number: IntArray) -> IntArray:
    """Bins [n], counted from 0, merged until each holds enough replies; all in one if there are too few."""
    present, inverse, counts = np.unique(number, return_inverse=True, return_counts=True)
    merged = np.zeros(len(present), dtype=np.intp)
    bin_, size = 0, 0
    for i, count in enumerate(counts):
        merged[i], size = bin_, size + count
        if size >= MIN_REPLIES:
            bin_, size = bin_ + 1, 0
    return np.minimum(merged, max(bin_ - 1, 0))[inverse]


def _interval(samples: FloatArray) -> Interval:
    """Of samples [1 + draws], the value itself first."""
    return percentile_interval(float(samples[0]), samples[1:])


def _count_known(values: FloatArray) -> int:
    return int((~np.isnan(values)).sum())
