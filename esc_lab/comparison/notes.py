"""What stands below a comparison's table: a short line for each mark and limit, and details for those who want them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from esc_lab.comparison.estimates import GUARDED
from esc_lab.comparison.result import ComparisonResult
from esc_lab.comparison.runs import shorten_names
from esc_lab.comparison.search_judges import describe_search_judges, list_search_judges
from esc_lab.metrics.chance import describe_chance
from esc_lab.metrics.prediction_table import SAMPLING

_CUT_OFF = "generation/cut_off"  # share of the replies


def build_notes(comparison: ComparisonResult) -> list[str]:
    """Footnotes of the table, a line each: what was measured, what its marks mean, what it does not say."""
    return [
        *_data(comparison),
        *([describe_chance(comparison.chance)] if comparison.chance else []),
        *_intervals(comparison),
        *_biased(comparison),
        *_missing(comparison),
        *list_search_judges(comparison.search_judges, shorten_names(comparison.cells)),
        *_differences(comparison),
        *(["One training each: says nothing of the method."] if _is_trained_once(comparison) else []),
        *(f"{remark[0].upper()}{remark[1:]}." for remark in comparison.remarks),
    ]


def build_details(comparison: ComparisonResult) -> list[str]:
    """How intervals, tests and the verdicts on judges came about, a sentence or two each."""
    return [
        *_data_details(comparison),
        *_interval_details(comparison),
        *_biased_details(comparison),
        *_test_details(comparison),
        *describe_search_judges(comparison.search_judges),
    ]


def _data(comparison: ComparisonResult) -> list[str]:
    test = comparison.test
    if test is None:
        return []
    if comparison.talks:
        of_run = next(iter(comparison.talks.values()))
        limits = f"at most {of_run.max_turns} turns; success: an intensity of at most {of_run.success:g}"
        return [f"{len(test.keys):,} talks with the seekers of {test.clusters:,} cards, the same for all; {limits}."]
    replies = {
        round(run.metrics["text/replies"] / run.metrics.get("generation/samples", 1))
        for run in comparison.runs
        if "text/replies" in run.metrics
    }
    counts = f", replies to {_span(replies)} of them" if replies - {len(test.keys)} else ""
    templates = {cell.template for cell in comparison.cells}
    parts = [
        f"{len(test.keys):,} decisions of {test.dialogues:,} dialogues{counts}",
        *([f"template {templates.pop()}"] if len(templates) == 1 else []),
        *_sampling(comparison),
    ]
    return [f"Test set {test.identity[:8]}: {'; '.join(parts)}."]


def _data_details(comparison: ComparisonResult) -> list[str]:
    test = comparison.test
    if test is None or test.clusters == test.dialogues:
        return []
    return [f"The dialogues are of {test.clusters:,} trees, each of which counts as one dialogue in intervals."]


def _sampling(comparison: ComparisonResult) -> list[str]:
    """How the replies were drawn, which every metric of them depends on."""
    settings = {
        name: sorted({run.metrics[key] for run in comparison.runs if key in run.metrics})
        for name in SAMPLING
        for key in [f"generation/{name}"]
    }
    no_repeat = settings.pop("no_repeat")
    if not all(settings.values()):
        return []
    temperature, top_p, tokens, samples = (" or ".join(f"{value:g}" for value in of) for of in settings.values())
    drawn = "greedy" if settings["temperature"] == [0] else f"temperature {temperature}, top_p {top_p}"
    several = f", {samples} samples for each decision" if settings["samples"] != [1] else ""
    if no_repeat:
        drawn += f", without any run of {' or '.join(f'{value:g}' for value in no_repeat)} tokens twice"
    shares = {round(100 * run.metrics[_CUT_OFF]) for run in comparison.runs if _CUT_OFF in run.metrics}
    cut = f", which cut off {_span(shares)} % of them" if any(shares) else ""
    return [f"replies {drawn}, at most {tokens} tokens{cut}{several}"]


def _has_seeds(comparison: ComparisonResult) -> bool:
    return any(len(cell.runs) > 1 for cell in comparison.cells)


def _split_by_dialogue(comparison: ComparisonResult) -> tuple[list[str], list[str]]:
    """Headings of metrics that are known by dialogue, and of others, in the order of their columns."""
    headings = {column.name: column.heading for column in comparison.columns if not column.is_count}
    by_dialogue: dict[str, None] = {}
    others: dict[str, None] = {}
    for (_, metric), estimate in comparison.estimates.items():
        if metric in headings:
            (by_dialogue if comparison.unit in estimate.over else others)[headings[metric]] = None
    return [*by_dialogue], [name for name in others if name not in by_dialogue]


def _intervals(comparison: ComparisonResult) -> list[str]:
    by_dialogue, others = _split_by_dialogue(comparison)
    several = _has_seeds(comparison)
    best = "Bold: best of its model and column."
    if not by_dialogue and not (several and others):
        return [best]
    over = comparison.unit if not several else f"seeds and {comparison.unit}" if by_dialogue else "seeds"
    return [f"{'Means over seeds ' if several else ''}\u00b1 half the 95 % interval over {over}. {best}"]


def _interval_details(comparison: ComparisonResult) -> list[str]:
    by_dialogue, others = _split_by_dialogue(comparison)
    several = _has_seeds(comparison)
    if not by_dialogue:
        return ["Intervals are over seeds (Student's t)."] if several and others else []
    how = f"seeds and {comparison.unit}, both random" if several else comparison.unit
    if comparison.talks:
        how += ", whose talks are left out together"
    notes = [f"Intervals are over {how} (jackknife and Student's t: docs/statistics.md)."]
    if others:
        alone = ", ".join(others).rstrip(".")
        instead = "over seeds alone" if several else "no interval"
        notes.append(f"Not known by {comparison.unit.removesuffix('s')} ({instead}): {alone}.")
    return notes


def _biased(comparison: ComparisonResult) -> Iterator[str]:
    """Of metrics that grow as observations get fewer, and of those with a guard."""
    for column in comparison.columns:
        estimates = [e for (_, name), e in comparison.estimates.items() if name == column.name]
        if not column.biased or not estimates:
            continue
        known = any(not math.isnan(estimate.interval.low) for estimate in estimates)
        few = any(math.isnan(estimate.interval.low) and comparison.unit in estimate.over for estimate in estimates)
        parts = [
            f"{column.heading}: an upper value",
            *(["[low, high] is about the value less its bias"] if known else []),
            *([f"no interval or test below {_least(column.min_count)} decisions"] if few else []),
        ]
        yield f"{'; '.join(parts)}."
        if any(estimate.guarded for estimate in estimates):
            yield f"{GUARDED} A guard of {column.heading} acted, on which the value depends."


def _least(count: int) -> str:
    return f"{count:,} ({GUARDED} {2 * count:,})"


def _missing(comparison: ComparisonResult) -> Iterator[str]:
    """Of whole talks: measures that not all of them have."""
    test, names = comparison.test, shorten_names(comparison.cells)
    if not comparison.talks or test is None:
        return
    for column in comparison.columns:
        few = {
            names[cell]: estimate.n
            for (cell, name), estimate in comparison.estimates.items()
            if name == column.name and not column.is_count and estimate.n < len(test.keys)
        }
        if few:
            told = ", ".join(f"{count:g} in {cell}" for cell, count in few.items())
            yield f"{column.heading}: not all talks have it ({told}); differences are of talks that have it in both."


def _biased_details(comparison: ComparisonResult) -> Iterator[str]:
    for column in comparison.columns:
        estimates = [e for (_, name), e in comparison.estimates.items() if name == column.name]
        if not column.biased or not estimates:
            continue
        yield f"{column.heading} grows as decisions get fewer: never compare it of test sets of different size."
        if any(estimate.guarded for estimate in estimates):
            yield (
                f"{GUARDED} A strategy was never missed, or two were never chosen wrongly, so that half an error was "
                f"added to each in {column.heading}."
            )


def _is_trained_once(comparison: ComparisonResult) -> bool:
    """Whether no method was trained often enough to say something of it."""
    trained = [cell for cell in comparison.cells if cell.runs[0].method.training]
    return bool(trained) and all(len(cell.runs) == 1 for cell in trained)


def _differences(comparison: ComparisonResult) -> list[str]:
    differences = [estimate.difference for estimate in comparison.estimates.values() if estimate.difference]
    if not differences:
        return []
    names = shorten_names(comparison.cells)
    to = f"Differences (signed) are to {', '.join(dict.fromkeys(names[one.baseline] for one in differences))}"
    if not any(not math.isnan(difference.p) for difference in differences):
        return [f"{to}."]
    primary = next((f", but that of {c.heading}" for c in comparison.columns if c.name == comparison.primary), "")
    return [f"{to}; * p < 0.05, ** p < 0.01, *** p < 0.001 (corrected{primary})."]


def _test_details(comparison: ComparisonResult) -> list[str]:
    tested = [
        estimate.difference
        for estimate in comparison.estimates.values()
        if estimate.difference and not math.isnan(estimate.difference.p)
    ]
    if not tested:
        return []
    heading = next((column.heading for column in comparison.columns if column.name == comparison.primary), None)
    primary = f"{heading} is the primary metric: its p is not corrected." if heading else "No primary metric."
    secondary = sum(not difference.primary for difference in tested)
    paired = "; runs of equal seeds are pairs" if _has_seeds(comparison) else ""
    over = (
        f" They are over {comparison.unit} alone, and say something of these models: train several seeds to compare "
        "methods."
        if _is_trained_once(comparison)
        else ""
    )
    return [
        f"Tests are two-sided and by the same estimate as the interval of the difference{paired}.{over} {primary} "
        f"The other {secondary} p-values are corrected together (Holm), intervals are not: one may leave out 0 "
        "without a star, but a star never stands at one that holds 0."
    ]


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
