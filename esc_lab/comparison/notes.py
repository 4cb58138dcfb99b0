"""The sentences below a comparison's table: what was measured, drawn, tested and corrected."""

from __future__ import annotations

import math

from esc_lab.comparison.result import Comparison
from esc_lab.comparison.runs import short_names
from esc_lab.metrics.prediction_table import SAMPLING
from esc_lab.metrics.records import find_metric

_FEW = 500  # decisions; with 480 of them the mean draw of B lies 0.06 above the value, with 84 of them 0.25


def notes_of(comparison: Comparison) -> list[str]:
    """Footnotes of the table, a sentence or two each."""
    return [
        *_data(comparison),
        *_intervals(comparison),
        *_tests(comparison),
        "Bold: best of its model and column.",
        *(f"{remark[0].upper()}{remark[1:]}." for remark in comparison.remarks),
    ]


def _data(comparison: Comparison) -> list[str]:
    test = comparison.test
    if test is None:
        return []
    trees = f" in {test.clusters} trees, which are drawn as wholes" if test.clusters < test.dialogues else ""
    runs = [run for cell in comparison.cells for run in cell.runs]
    replies = {
        round(run.metrics["text/replies"] / run.metrics.get("generation/samples", 1))
        for run in runs
        if "text/replies" in run.metrics
    }
    counted = f"; generated replies to {_span(replies)} of them" if replies - {len(test.keys)} else ""
    templates = {cell.template for cell in comparison.cells}
    prompts = f" Prompt template: {templates.pop()}." if len(templates) == 1 else ""
    decisions = f"{len(test.keys):,} decisions of {test.dialogues:,} dialogues{trees}{counted}"
    return [
        f"Test set {test.identity[:8]}: {decisions}.{prompts}",
        *_sampling(comparison),
    ]


def _sampling(comparison: Comparison) -> list[str]:
    """How the replies were drawn, which every metric of them depends on."""
    drawn = {
        name: sorted({run.metrics[key] for cell in comparison.cells for run in cell.runs if key in run.metrics})
        for name in SAMPLING
        for key in [f"generation/{name}"]
    }
    if not all(drawn.values()):
        return []
    temperature, top_p, tokens, samples = (" or ".join(f"{value:g}" for value in found) for found in drawn.values())
    greedy = " (greedy)" if drawn["temperature"] == [0] else f", top_p {top_p}"
    several = f"; {samples} samples for each decision" if drawn["samples"] != [1] else ""
    return [f"Replies: temperature {temperature}{greedy}, at most {tokens} tokens{several}."]


def _intervals(comparison: Comparison) -> list[str]:
    over: dict[tuple[str, ...], dict[str, None]] = {}
    headings = {column.name: column.heading for column in comparison.columns}
    several = any(len(cell.runs) > 1 for cell in comparison.cells)
    for (_, metric), one in comparison.estimates.items():
        if find_metric(metric).is_count:
            continue
        over.setdefault(tuple(kind for kind in one.over if kind == "dialogues" or several), {})[headings[metric]] = None
    if not any(over):
        return []
    values = "Means over the seeds" if several else "Values"
    drawn = f"{values} \u00b1 half the width of the 95 % interval: {comparison.draws:,} bootstrap draws of"
    by_dialogue = {name: None for kinds, names in over.items() if "dialogues" in kinds for name in names}
    if not by_dialogue:
        return [f"{drawn} seeds."]
    others = [name for names in over.values() for name in names if name not in by_dialogue]
    found = [f"{drawn} dialogues, the same for all runs{', and of seeds' if several else ''}."]
    if others:
        alone = "over seeds alone" if several else "no interval"
        found.append(f"Not known by dialogue ({alone}, no test): {', '.join(dict.fromkeys(others)).rstrip('.')}.")
    few = comparison.test is not None and len(comparison.test.keys) < _FEW
    if few and "strategy/B" in headings:
        found.append(f"{headings['strategy/B']}: draws of so few decisions tend to more bias than the test set has.")
    return found


def _tests(comparison: Comparison) -> list[str]:
    differences = {key: one.difference for key, one in comparison.estimates.items() if one.difference}
    if not differences:
        return []
    names = short_names(comparison.cells)
    baselines = list(dict.fromkeys(names[one.baseline] for one in differences.values()))
    tested = [one for one in differences.values() if not math.isnan(one.p)]
    found = [f"Below a value, or in a table of their own: differences to {', '.join(baselines)}."]
    if tested:
        others = sum(not one.primary for one in tested)
        heading = next((c.heading for c in comparison.columns if c.name == comparison.primary), None)
        alone = f"{heading} is the primary metric: its p is not corrected." if heading else "No primary metric."
        found.append(
            f"Paired permutation test, two-sided, {_swaps(comparison)} swaps of dialogues. {alone} "
            f"The other {others} p-values are corrected together (Holm). * p < 0.05, ** p < 0.01, *** p < 0.001."
        )
    distinct = [column.heading for column in comparison.columns if column.name.startswith("text/distinct_")]
    if tested and distinct:
        told = "approximate, by each dialogue's contribution (jackknife)"
        found.append(f"{', '.join(distinct)}: interval and test are {told}.")
    return found


def _swaps(comparison: Comparison) -> str:
    ways = 2**comparison.test.clusters if comparison.test else 0
    return f"all {ways:,}" if ways <= comparison.draws else f"{comparison.draws:,}"


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
