"""The sentences below a comparison's table: what was measured, what intervals and tests account for, and limits."""

from __future__ import annotations

import math
from collections.abc import Iterator

from esc_lab.comparison.estimates import GUARDED
from esc_lab.comparison.result import ComparisonResult
from esc_lab.comparison.runs import shorten_names
from esc_lab.comparison.search_judges import describe_search_judges
from esc_lab.metrics.chance import describe_chance
from esc_lab.metrics.prediction_table import SAMPLING


def build_notes(comparison: ComparisonResult) -> list[str]:
    """Footnotes of the table, a sentence or two each."""
    return [
        *_data(comparison),
        *_intervals(comparison),
        *_biased(comparison),
        *_trainings(comparison),
        *_tests(comparison),
        "Bold: best of its model and column.",
        *describe_search_judges(comparison.search_judges),
        *(f"{remark[0].upper()}{remark[1:]}." for remark in comparison.remarks),
    ]


def _data(comparison: ComparisonResult) -> list[str]:
    test = comparison.test
    if test is None:
        return []
    trees = (
        f" in {test.clusters} trees, each of which counts as one dialogue in intervals"
        if test.clusters < test.dialogues
        else ""
    )
    replies = {
        round(run.metrics["text/replies"] / run.metrics.get("generation/samples", 1))
        for run in comparison.runs
        if "text/replies" in run.metrics
    }
    counts = f"; generated replies to {_span(replies)} of them" if replies - {len(test.keys)} else ""
    templates = {cell.template for cell in comparison.cells}
    prompts = f" Prompt template: {templates.pop()}." if len(templates) == 1 else ""
    decisions = f"{len(test.keys):,} decisions of {test.dialogues:,} dialogues{trees}{counts}"
    notes = [f"Test set {test.identity[:8]}: {decisions}.{prompts}", *_sampling(comparison)]
    return [*notes, describe_chance(comparison.chance)] if comparison.chance else notes


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
    start = f"{values} \u00b1 half the width of the 95 % interval over"
    if not by_dialogue:
        return [f"{start} seeds (Student's t)."] if others else []
    how = "seeds and dialogues, both random" if several else "dialogues"
    notes = [f"{start} {how} (jackknife and Student's t: docs/statistics.md)."]
    alone = ", ".join(name for name in others if name not in by_dialogue).rstrip(".")
    if alone:
        notes.append(f"Not known by dialogue ({'over seeds alone' if several else 'no interval'}): {alone}.")
    return notes


def _biased(comparison: ComparisonResult) -> Iterator[str]:
    """Of metrics that grow as observations get fewer, and of those with a guard."""
    for column in comparison.columns:
        estimates = [e for (_, name), e in comparison.estimates.items() if name == column.name]
        if not column.biased or not estimates:
            continue
        text = f"{column.heading} grows as decisions get fewer, so its value is an upper one"
        if any(not math.isnan(estimate.interval.low) for estimate in estimates):
            text += "; its interval [low, high] is about the value less that bias"
        if any(math.isnan(estimate.interval.low) and "dialogues" in estimate.over for estimate in estimates):
            text += f"; too few decisions for an interval or a test: below {column.min_count:,} none holds"
            text += f" ({2 * column.min_count:,} where the guard acted)"
        yield f"{text}."
        if any(estimate.guarded for estimate in estimates):
            yield (
                f"{GUARDED} The guard of {column.heading} acted: a strategy was never missed, or two were never chosen "
                "wrongly, so that half an error was added to each, on which the value depends."
            )


def _trainings(comparison: ComparisonResult) -> list[str]:
    """Whether methods were trained often enough to say something of them."""
    trained = [cell for cell in comparison.cells if cell.runs[0].method.training]
    if not trained or any(len(cell.runs) > 1 for cell in trained):
        return []
    return [
        "One training each: says nothing of the method, only of these models. Intervals and tests are over dialogues; "
        "train several seeds to compare methods."
    ]


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
    paired = "; runs of equal seeds are pairs" if any(len(cell.runs) > 1 for cell in comparison.cells) else ""
    notes.append(
        f"Tests are two-sided and by the same estimate as the interval of the difference{paired}. {primary} "
        f"The other {secondary} p-values are corrected together (Holm), intervals are not: one may leave out 0 "
        "without a star, but a star never stands at one that holds 0. * p < 0.05, ** p < 0.01, *** p < 0.001."
    )
    return notes


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
