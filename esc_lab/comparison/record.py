"""A comparison in JSON types: everything that a page about it needs. What is not a number is null."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from esc_lab.artifacts import replace_nan
from esc_lab.comparison.boosts import BoostResults
from esc_lab.comparison.estimates import Estimate
from esc_lab.comparison.gains import record_gains
from esc_lab.comparison.groups import GroupEstimate
from esc_lab.comparison.judgements import build_pairs_record
from esc_lab.comparison.result import ComparisonResult
from esc_lab.comparison.runs import Cell
from esc_lab.comparison.strategies import StrategyTable


def build_record(comparison: ComparisonResult, notes: list[str], details: list[str]) -> dict[str, Any]:
    """Keys: `test_set`, `chance`, `columns`, `cells` (with `runs`, `metrics`, `strategies`), `groups`, `judge` (with
    `pairs`; null without one), `survey` (with `tables`; null without one), `left_out`, `gains`, `boosts`, `intensity`
    (of whole talks, after each turn), `notes`, `details` and `primary`."""
    test = comparison.test
    record = {
        "test_set": test
        and {
            "identity": test.identity,
            test.kind[0]: len(test.keys),
            test.kind[1]: test.dialogues,
            "clusters": test.clusters,
            "strategies": test.strategies,
        },
        "chance": comparison.chance,
        "columns": [
            {"metric": c.name, "heading": c.heading, "decimals": c.decimals, "more": c.higher_is_better}
            for c in comparison.columns
        ],
        "primary": comparison.primary,
        "cells": [_cell(comparison, cell) for cell in comparison.cells],
        "groups": [_group(estimate) for estimate in comparison.groups],
        "judge": build_pairs_record(comparison.cells, comparison.judgements),
        "survey": comparison.survey
        and {
            "directory": str(comparison.survey.directory),
            "tables": [dict(table) for table in comparison.survey.tables],
            "notes": list(comparison.survey.notes),
        },
        "left_out": list(comparison.left_out),
        "gains": record_gains(comparison.gains),
        "boosts": record_boosts(comparison.boosts),
        "intensity": [
            {"cell": name, "points": [{"turn": turn, **vars(value), "n": n} for turn, value, n in curve]}
            for name, curve in comparison.intensity.items()
        ],
        "notes": notes,
        "details": details,
    }
    return {name: replace_nan(value) for name, value in record.items()}


def _cell(comparison: ComparisonResult, cell: Cell) -> dict[str, Any]:
    metrics = {c.name: comparison.estimates.get((cell.name, c.name)) for c in comparison.columns}
    baseline = comparison.baselines.get(cell.name)
    table = comparison.strategies.get(cell.name)
    return {
        "name": cell.name,
        "model": cell.model,
        "method": cell.method,
        "template": cell.template,
        "baseline": baseline and baseline.name,
        "runs": [
            {
                "directory": str(run.directory),
                "seed": run.method.seed,
                "training": run.method.training and str(run.method.training),
                "settings": dict(run.method.settings),
                "metrics": dict(run.metrics),
                "environment": dict(run.environment),
            }
            for run in cell.runs
        ],
        "metrics": {name: _estimate(estimate) for name, estimate in metrics.items() if estimate},
        "strategies": table and _strategies(table),
        "search_judges": [
            {"search": str(judge.search), "believed": judge.believed, "verdict": judge.verdict}
            for judge in comparison.search_judges.get(cell.name, ())
        ],
    }


def record_boosts(boosts: BoostResults) -> dict[str, Any]:
    """In JSON types: `effects`, `curves`, `contrasts`."""
    return {
        "effects": [
            {
                "cell": effect.cell.name, "boost": effect.label, "amount": effect.amount,
                "differences": {
                    metric.name: {**vars(each.interval), "p": each.p, "corrected": each.corrected}
                    for metric, each in effect.differences.items()
                },
            }
            for effect in boosts.effects
        ],
        "curves": [
            {
                "boost": curve.label, "place": curve.place, "metric": curve.metric.name,
                "points": [{"dose": dose, **vars(value), "n": n} for dose, value, n in curve.points],
                "slope": {**vars(curve.slope), "p": curve.p},
            }
            for curve in boosts.curves
        ],
        "contrasts": [
            {
                "boost": one.label, "minus": one.other, "place": one.place, "metric": one.metric.name,
                **vars(one.difference), "p": one.p, "corrected": one.corrected,
            }
            for one in boosts.contrasts
        ],
    }  # fmt: skip


def _estimate(estimate: Estimate) -> dict[str, Any]:
    fields = {**vars(estimate.interval), "values": estimate.values, "n": estimate.n, "over": estimate.over}
    fields["guarded"] = estimate.guarded
    if difference := estimate.difference:
        parts = asdict(difference)
        fields["difference"] = {**parts.pop("interval"), **parts, "marks": difference.marks}
    return fields


def _group(estimate: GroupEstimate) -> dict[str, Any]:
    group = {name: value for name, value in vars(estimate.group).items() if name != "keep"}
    return {
        **group,
        "cell": estimate.cell,
        "metric": estimate.metric,
        **vars(estimate.interval),
        "difference": estimate.difference and vars(estimate.difference),
    }


def _strategies(table: StrategyTable) -> dict[str, Any]:
    columns = ("precision", "recall", "f1", "gold", "predicted")
    return {
        "of": table.of,
        "rows": [
            {
                "strategy": name,
                **{column: float(getattr(table, column)[number]) for column in columns},
                "preference": vars(table.preference[number]),
            }
            for number, name in enumerate(table.strategies)
        ],
        "confusion": table.confusion.tolist(),
    }
