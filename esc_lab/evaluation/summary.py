"""Predictions of an evaluation as metrics and per-strategy tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from esc_lab.artifacts import replace_nan
from esc_lab.metrics.attention import phrase_spread
from esc_lab.metrics.chance import chance_levels, describe_chance
from esc_lab.metrics.prediction_table import NOT_ASKED, SAMPLING, PredictionTable
from esc_lab.metrics.records import METRICS
from esc_lab.metrics.strategy_choice import CHOICES, class_scores, count_choices, preferences
from esc_lab.terminal import print_table


def summarize(table: PredictionTable) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics of an evaluation's predictions, and per-strategy tables.

    Returns:
        Flat metrics, those that have something to be computed from. `strategy/...` from the exact distribution,
        `chance/...` what blind guesses would score, `generated/...` from parsed generations, `text/...` of generated
        replies against the gold ones (not of prompts that name another strategy), `adherence/...` of judged replies,
        `sra/...` of attention, with the reasons why there is none as `sra/skipped_...`. All samples of a decision
        count, in `n` and `text/replies` too; `text/distinct_...`, which depends on the number of replies, is the mean
        over the samples. `generation/...` says how the replies were drawn, and which share of them the token limit
        cut off.
        For each measure of strategy choice, a table: rows of strategy, precision, recall, F1, support, predicted and
        preference, and the confusion matrix [predicted, gold] with unparsable predictions as last row.
    """
    values = {name: metric.definition.compute(table) for name, metric in METRICS.items() if metric.definition}
    metrics = {
        name: value
        for name, value in values.items()
        if not math.isnan(value) and values.get(METRICS[name].count, 1) > 0
    }
    if not math.isnan(spread := phrase_spread(table)):
        metrics["sra/sham_net_spread"] = spread
    metrics |= {f"sra/skipped_{reason.replace(' ', '_')}": float(n) for reason, n in table.unmeasured.items()}
    metrics |= {f"generation/{name}": value for name, value in table.sampling.items()}
    if not np.isnan(cut_off := table.column("cut_off")).all():
        metrics["generation/cut_off"] = float(np.nanmean(cut_off))
    asked = {group: choice for group, choice in CHOICES.items() if (getattr(table, choice) != NOT_ASKED).any()}
    if asked:
        metrics |= chance_levels(table.test)
    return metrics, {group: _strategy_table(table, choice) for group, choice in asked.items()}


def _strategy_table(table: PredictionTable, choice: str) -> dict[str, Any]:
    keep = np.ones(len(table.decision), dtype=bool)
    counts = count_choices(table, keep, choice).sum(axis=2, dtype=np.float64)
    scores = {**class_scores(counts), "preference": preferences(counts[:-1])}
    names = table.test.strategies
    rows = [
        {"strategy": name, **{key: replace_nan(float(values[number])) for key, values in scores.items()}}
        for number, name in enumerate(names)
    ]
    return {"per_strategy": rows, "confusion": {"predicted_by_gold": counts.tolist(), "classes": [*names]}}


COLUMN_NOTES = (
    "precision: of the decisions at which the model chooses the strategy, the share at which it was the given one.",
    "recall: of the decisions at which the strategy was given, the share at which the model chooses it.",
    "F1: high where both are (their harmonic mean).",
    "gold, predicted: decisions at which the strategy was given, and at which the model chooses it.",
    "preference: how much the model is drawn to the strategy whatever was given; 1 = as to any other.",
)


def print_strategies(title: str, table: Mapping[str, Any], metrics: Mapping[str, float], group: str) -> None:
    """A per-strategy table on the terminal; below it the metrics of its group, how replies were drawn, its columns."""
    shown = [
        METRICS[f"strategy/{name}"] for name in ("Q", "Q_W", "B", "accuracy", "n", "classes_predicted", "unparsable")
    ]
    values = "  ".join(
        f"{metric.heading} {_text(metrics.get(metric.name.replace('strategy', group)), metric.decimals)}"
        for metric in shown
    )
    notes = [values]
    if metrics.get(f"{group}/B_guard"):
        notes.append("A guard of B acted: a strategy was never missed, or hardly any was chosen wrongly.")
    notes += [describe_chance(metrics)] if "chance/prior_Q" in metrics else []
    if group == "generated":
        drawn = {name: metrics[key] for name in SAMPLING if (key := f"generation/{name}") in metrics}
        notes += ["Replies: " + "  ".join(f"{name} {value:g}" for name, value in drawn.items())]
        if share := metrics.get("generation/cut_off"):
            notes += [f"{share:.0%} of them are cut off: they have as many tokens as max_new_tokens allows."]
    columns = {"precision": 3, "recall": 3, "f1": 3, "support": 0, "predicted": 0, "preference": 2}
    heads = ["strategy", *({"f1": "F1", "support": "gold"}.get(name, name) for name in columns)]
    rows = [
        [row["strategy"], *(_text(row[name], decimals) for name, decimals in columns.items())]
        for row in table["per_strategy"]
    ]
    if "-" in {field for row in rows for field in row}:
        notes.append("-: there is nothing to compute it from.")
    meanings = [*COLUMN_NOTES, *(f"{each.heading}: {each.gist}" for each in shown)]
    print_table(title, heads, rows, notes=notes, meanings=meanings)


def _text(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"
