"""What makes runs comparable: one test set, one inventory, the same seeds and sampling, the metrics asked for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from esc_lab.comparison.parallel import spread
from esc_lab.comparison.runs import Cell, Run
from esc_lab.config import TRAININGS, keys
from esc_lab.config.item import TEST_SET
from esc_lab.data.strategies import build_inventory
from esc_lab.errors import UserError, nearest
from esc_lab.evaluation.predictions import read_table
from esc_lab.metrics.prediction_table import PredictionTable, TestSet
from esc_lab.metrics.records import METRICS, find_metric

_EVALUATED = [key for key in keys() if key.decides("evaluate")]
# Settings by which replies are sampled: evaluations may differ in them if their names say so.
_SAMPLING = [key.name for key in _EVALUATED if key.method and key.measures]
# Settings that the test set depends on, for runs that left no predictions.
_TEST_SET = [key.name for key in _EVALUATED if key.measures == TEST_SET]
# Settings on which metrics depend, by the beginnings of their names: runs that differ in them measured other things.
_SETTINGS = {
    pattern: [key.name for key in _EVALUATED if pattern in key.measures]
    for pattern in sorted({pattern for key in _EVALUATED for pattern in key.measures} - {*TEST_SET})
}
# Settings of evaluations alone in which they may differ, if one knows it; cells are named by layout and inference.
_NAMED = ("prompt.eval.template", "prompt.inference")
_CONTEXT = [
    key.name
    for key in _EVALUATED
    if key.method is None and not (key.measures or key.path or key.name in _NAMED or key.affects.stages & {*TRAININGS})
]


def chosen_metrics(runs: Sequence[Run], asked: Sequence[str] | None) -> list[str]:
    """The metrics to compare: those asked for, or all of the table's columns that some run has.

    Raises:
        UserError: a metric is asked for that no run has, or that some evaluations (or some trainings) have and others
            lack.
    """
    if asked is None:
        return [key for key, m in METRICS.items() if m.shown and any(key in run.metrics for run in runs)]
    for metric in asked:
        having = [run for run in runs if metric in run.metrics]
        if not having:
            hint = nearest(metric, {name for run in runs for name in run.metrics})
            raise UserError(f"no run has the metric{hint}", where=metric, fix="see the runs' metrics.json")
        lacking = [run for run in runs if run not in having and run.evaluation in {one.evaluation for one in having}]
        if lacking:
            fix = "evaluate them with what it needs, or leave it or them out"
            raise UserError(f"missing in {_named(lacking)}", where=metric, fix=fix)
    return list(dict.fromkeys(asked))


def check_cells(cells: Sequence[Cell], metrics: Sequence[str]) -> list[str]:
    """Whether evaluations share the inventory, trained cells the seeds, and runs the settings that metrics depend on.

    How replies were sampled may differ where the names of all these cells say so.

    Returns:
        Sentences on such differences.

    Raises:
        UserError: they do not; it says which, and how they differ.
    """
    runs = [run for cell in cells for run in cell.runs if run.evaluation]
    fix = "compare runs that differ in the model or method alone"
    _alike({run: run.inventory for run in runs}, "label sets differ (inventory.name)", fix)
    _same_seeds(cells)
    for cell in cells:
        for metric in metrics:
            lacking = [run for run in cell.runs if metric not in run.metrics]
            if 0 < len(lacking) < len(cell.runs):
                done = "judge" if metric.startswith("judge/") else "evaluate"
                fix = f"{done} them as the other seeds were, or leave the metric out"
                raise UserError(f"missing in {_named(lacking)}, but not in other seeds", where=metric, fix=fix)
    remarks: dict[str, None] = {}
    for name in _CONTEXT:
        values = {run: str(value) for run in runs for value in _setting(run, name)}
        if len(set(values.values())) > 1 and not all(f" {name}=" in run.name for run in values):
            told = "; ".join(f"{value} in {_named(members)}" for value, members in _inverted(values).items())
            remarks |= {f"prompts differ in {name}: {told}": None}
    for pattern, settings in _SETTINGS.items():
        having = [run for run in runs if any(re.match(pattern, name) and name in run.metrics for name in metrics)]
        fix = f"evaluate them alike, or choose metrics without {pattern.partition('(')[0]}..."
        for name in settings:
            values = {run: str(value) for run in having for value in _setting(run, name)}
            if name in _SAMPLING and values and all(f" {name}=" in run.name for run in values):
                told = ", ".join(sorted(set(values.values())))
                remarks |= {f"replies were sampled differently: {name} is {told}, as the names of the cells say": None}
            else:
                _alike(values, f"{name} differs", fix)
    return [*remarks]


def load_predictions(runs: Sequence[Run], metrics: Sequence[str]) -> dict[Path, PredictionTable]:
    """Predictions of the evaluations that left them, by directory; many files are read by several processes.

    Raises:
        UserError: a file cannot be read, test sets differ, or predictions do not give the recorded metrics.
    """
    left = {run: run.predictions for run in runs if run.predictions}
    texts = any(find_metric(metric).texts for metric in metrics)
    read = spread(
        [
            partial(
                read_table,
                path,
                build_inventory(run.config["inventory"], where=str(run.directory)).names,
                sra=_sra(run),
                texts=texts,
            )
            for run, path in left.items()
        ]
    )
    found = {run: predictions for run, predictions in zip(left, read, strict=True)}
    _same_test_set({run: one.test for run, one in found.items()})
    _perhaps_same_test_set([run for run in runs if run.evaluation])
    for run, predictions in found.items():
        _check_recorded(run, predictions, metrics)
    test = next((one.test for one in found.values()), None)  # once in memory
    return {run.directory: replace(one, test=test) for run, one in found.items() if test}


def _same_seeds(cells: Sequence[Cell]) -> None:
    """Trained cells must share their seeds. A model as it came may be evaluated once for all of them."""
    for evaluation in (True, False):
        of_kind = [cell for cell in cells if cell.evaluation == evaluation]
        trained = [cell for cell in of_kind if cell.runs[0].method.training]  # without it the seed is not known
        seeds = {cell.name: ", ".join(map(str, cell.seeds)) for cell in trained}
        if len(set(seeds.values())) > 1:
            told = "; ".join(f"{found}: {_listed(names)}" for found, names in _inverted(seeds).items())
            fix = "run the missing seeds, or name run directories with the same ones"
            raise UserError(f"cells with different seeds: {told}", where="seeds", fix=fix)


def _perhaps_same_test_set(runs: Sequence[Run]) -> None:
    """Without its predictions a run's test set is not known: what it was made by has to be as in the others."""
    if all(run.predictions for run in runs):
        return
    fix = "compare runs with their predictions.jsonl, of one test set"
    sizes = {run: f"{run.metrics['decisions']:g}" for run in runs if "decisions" in run.metrics}
    _alike(sizes, "test sets differ in their decisions", fix)
    for name in _TEST_SET:
        _alike({run: str(value) for run in runs for value in _setting(run, name)}, f"test sets differ: {name}", fix)


def _same_test_set(tests: Mapping[Run, TestSet]) -> None:
    by_identity = {test.identity: test for test in tests.values()}
    if len(by_identity) < 2:
        return
    members: dict[str, list[Run]] = {}
    for run, test in tests.items():
        members.setdefault(test.identity, []).append(run)
    told = "; ".join(
        f"{len(test.keys)} decisions of {test.dialogues} dialogues in {_named(members[identity])}"
        for identity, test in by_identity.items()
    )
    one, other = [*by_identity.values()][:2]
    shared = set(one.keys) & set(other.keys)
    if len(shared) == len(one.keys) == len(other.keys):
        how = "the same decisions with other gold strategies"
    else:
        how = f"{len(shared)} decisions are in both" if len(by_identity) == 2 else f"{len(shared)} in the first two"
    fix = "evaluate all on one split of one corpus, with the same data.limit, merge and score_opening"
    raise UserError(f"test sets differ: {told}; {how}", where="test sets", fix=fix)


def _check_recorded(run: Run, predictions: PredictionTable, metrics: Sequence[str]) -> None:
    """Whether predictions.jsonl gives what metrics.json says."""
    for metric in metrics:
        definition = find_metric(metric).definition
        if definition is None or metric not in run.metrics:
            continue
        found, recorded = definition.compute(predictions), run.metrics[metric]
        if not (math.isnan(found) or math.isclose(found, recorded, rel_tol=1e-6, abs_tol=1e-6)):
            message = f"metrics.json says {metric} = {recorded:g}, predictions.jsonl gives {found:g}"
            raise UserError(message, where=str(run.directory), fix="evaluate the run again")


def _alike(values: Mapping[Run, str], message: str, fix: str) -> None:
    if len(set(values.values())) > 1:
        told = "; ".join(f"{value} in {_named(runs)}" for value, runs in _inverted(values).items())
        raise UserError(f"{message}: {told}", where="evaluations", fix=fix)


def _inverted(values: Mapping[Any, str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for key, value in values.items():
        found.setdefault(value, []).append(key)
    return found


def _named(runs: Sequence[Run]) -> str:
    return _listed([str(run.directory) for run in runs])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _sra(run: Run) -> str:
    """Which of the measured attention its metrics are of."""
    return "/".join(str(value) for part in ("definition", "span") for value in _setting(run, f"evaluate.sra.{part}"))


def _setting(run: Run, name: str) -> list[Any]:
    """The value of a setting by its dotted name; nothing if the run is older than the setting."""
    value: Any = run.config
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return []
        value = value[key]
    return [value]
