"""A comparison in JSON types: everything that a page about it needs. What is not a number is null."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from esc_lab.comparison.choices import StrategyTable
from esc_lab.comparison.estimates import Estimate
from esc_lab.comparison.pairs_table import pairs_record
from esc_lab.comparison.result import Comparison
from esc_lab.comparison.runs import Cell
from esc_lab.statistics.intervals import Interval


def record(comparison: Comparison, notes: list[str]) -> dict[str, Any]:
    """Keys: `test_set`, `columns`, `cells` (with `runs`, `metrics`, `strategies`), `groups`, `judge` (with `pairs`;
    null without one), `left_out`, `notes`, and `primary`, `draws`, `seed`."""
    test = comparison.test
    found = {
        "test_set": test
        and {
            "identity": test.identity,
            "decisions": len(test.keys),
            "dialogues": test.dialogues,
            "clusters": test.clusters,
            "strategies": test.strategies,
        },
        "columns": [
            {"metric": c.name, "heading": c.heading, "decimals": c.decimals, "more": c.higher_is_better}
            for c in comparison.columns
        ],
        "primary": comparison.primary,
        "draws": comparison.draws,
        "seed": comparison.seed,
        "cells": [_cell(comparison, cell) for cell in comparison.cells],
        "groups": [
            {
                "kind": one.group.kind,
                "name": one.group.name,
                "decisions": one.group.decisions,
                "clusters": one.group.clusters,
                "depth": one.group.depth,
                "cell": one.cell,
                "metric": one.metric,
                **_interval(one.interval),
                "difference": one.difference and _interval(one.difference),
            }
            for one in comparison.groups
        ],
        "judge": pairs_record(comparison.cells, comparison.judgements),
        "left_out": list(comparison.left_out),
        "notes": notes,
    }
    return {name: finite(value) for name, value in found.items()}


def _cell(comparison: Comparison, cell: Cell) -> dict[str, Any]:
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
        "metrics": {name: _estimate(one) for name, one in metrics.items() if one},
        "strategies": table and _strategies(table),
    }


def _estimate(one: Estimate) -> dict[str, Any]:
    found: dict[str, Any] = {**_interval(one.interval), "values": one.values, "n": one.n, "over": one.over}
    if one.difference:
        difference = one.difference
        found["difference"] = {
            **_interval(difference.interval),
            "baseline": difference.baseline,
            "p": difference.p,
            "corrected": difference.corrected,
            "primary": difference.primary,
            "marks": difference.marks,
        }
    return found


def _strategies(table: StrategyTable) -> dict[str, Any]:
    columns = ("precision", "recall", "f1", "gold", "predicted")
    return {
        "of": table.of,
        "rows": [
            {
                "strategy": name,
                **{column: float(getattr(table, column)[number]) for column in columns},
                "preference": _interval(table.preference[number]),
            }
            for number, name in enumerate(table.strategies)
        ],
        "confusion": table.confusion.tolist(),
    }


def _interval(found: Interval) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}


def finite(value: Any) -> Any:
    """A value of JSON types without nan and infinity, which JSON does not have: they become null."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
