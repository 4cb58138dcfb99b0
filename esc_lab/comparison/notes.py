"""The sentences below a comparison's table: what was measured, drawn, tested and corrected."""

from __future__ import annotations

import math

from esc_lab.comparison.result import ComparisonResult
from esc_lab.comparison.runs import shorten_names
from esc_lab.metrics.prediction_table import SAMPLING

_FEW = 500  # decisions; with 480 of them the mean draw of B lies 0.06 above the value, with 84 of them 0.25


def build_notes(comparison: ComparisonResult) -> list[str]:
    """Footnotes of the table, a sentence or two each."""
    return [
        *_data(comparison),
        *_intervals(comparison),
        *_tests(comparison),
        "Bold: best of its model and column.",
        *(f"{remark[0].upper()}{remark[1:]}." for remark in comparison.remarks),
    ]


def _data(comparison: ComparisonResult) -> list[str]:
    test = comparison.test
    if test is None:
        return []
    trees = f" in {test.clusters} trees, which are drawn as wholes" if test.clusters < test.dialogues else ""
    replies = {
        round(run.metrics["text/replies"] / run.metrics.get("generation/samples", 1))
        for run in comparison.runs
        if "text/replies" in run.metrics
    }
    counts = f"; generated replies to {_span(replies)} of them" if replies - {len(test.keys)} else ""
    templates = {cell.template for cell in comparison.cells}
    prompts = f" Prompt template: {templates.pop()}." if len(templates) == 1 else ""
    decisions = f"{len(test.keys):,} decisions of {test.dialogues:,} dialogues{trees}{counts}"
    return [f"Test set {test.identity[:8]}: {decisions}.{prompts}", *_sampling(comparison)]


def _sampling(comparison: ComparisonResult) -> list[str]:
    """How the replies were drawn, which every metric of them depends on."""
    settings = {
        name: sorted({run.metrics[key] for run in comparison.runs if key in run.metrics})
        for name in SAMPLING
        for key in [f"generation/{name}"]
    }
    if not all(settings.values()):
        return []
    temperature, top_p, tokens, samples = (" or ".join(f"{value:g}" for value in of) for of in settings.values())
    greedy = " (greedy)" if settings["temperature"] == [0] else f", top_p {top_p}"
    several = f"; {samples} samples for each decision" if settings["samples"] != [1] else ""
    return [f"Replies: temperature {temperature}{greedy}, at most {tokens} tokens{several}."]


def _intervals(comparison: ComparisonResult) -> list[str]:
    headings = {column.name: column.heading for column in comparison.columns if not column.is_count}
    several = any(len(cell.runs) > 1 for cell in comparison.cells)
    by_dialogue: dict[str, None] = {}  # headings, in order
    others: dict[str, None] = {}
    for (_, metric), estimate in comparison.estimates.items():
        if metric in headings:
            (by_dialogue if "dialogues" in estimate.over else others)[headings[metric]] = None
    if not by_dialogue and not several:
        return []
    values = "Means over the seeds" if several else "Values"
    start = f"{values} \u00b1 half the width of the 95 % interval: {comparison.draws:,} bootstrap draws of"
    if not by_dialogue:
        return [f"{start} seeds."] if others else []
    notes = [f"{start} dialogues, the same for all runs{', and of seeds' if several else ''}."]
    alone = ", ".join(name for name in others if name not in by_dialogue).rstrip(".")
    if alone:
        notes.append(f"Not known by dialogue ({'over seeds alone' if several else 'no interval'}, no test): {alone}.")
    few = comparison.test is not None and len(comparison.test.keys) < _FEW
    if few and "strategy/B" in headings:
        notes.append(f"{headings['strategy/B']}: draws of so few decisions tend to more bias than the test set has.")
    return notes


def _tests(comparison: ComparisonResult) -> list[str]:
    differences = [estimate.difference for estimate in comparison.estimates.values() if estimate.difference]
    if not differences:
        return []
    names = shorten_names(comparison.cells)
    baselines = dict.fromkeys(names[difference.baseline] for difference in differences)
    notes = [f"Below a value, or in a table of their own: differences to {', '.join(baselines)}."]
    tested = [difference for difference in differences if not math.isnan(difference.p)]
    if not tested:
        return notes
    heading = next((column.heading for column in comparison.columns if column.name == comparison.primary), None)
    primary = f"{heading} is the primary metric: its p is not corrected." if heading else "No primary metric."
    secondary = sum(not difference.primary for difference in tested)
    notes.append(
        f"Paired permutation test, two-sided, {_swaps(comparison)} swaps of dialogues. {primary} "
        f"The other {secondary} p-values are corrected together (Holm). * p < 0.05, ** p < 0.01, *** p < 0.001."
    )
    distinct = [column.heading for column in comparison.columns if column.name.startswith("text/distinct_")]
    if distinct:
        how = "approximate, by each dialogue's contribution (jackknife)"
        notes.append(f"{', '.join(distinct)}: interval and test are {how}.")
    return notes


def _swaps(comparison: ComparisonResult) -> str:
    ways = 2**comparison.test.clusters if comparison.test else 0
    return f"all {ways:,}" if ways <= comparison.draws else f"{comparison.draws:,}"


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
