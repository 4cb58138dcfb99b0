"""What makes runs comparable: one test set, one inventory, the same seeds and sampling, the metrics asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from esc_lab.artifacts import fingerprint
from esc_lab.comparison.parallel import parallel_map
from esc_lab.comparison.runs import Cell, Run
from esc_lab.config import TRAININGS, keys
from esc_lab.config.item import TEST_SET
from esc_lab.data.strategies import build_inventory
from esc_lab.errors import UserError, list_names, nearest
from esc_lab.evaluation.read_table import read_table
from esc_lab.metrics.prediction_table import PredictionTable, TestSet
from esc_lab.metrics.records import METRICS, SURVEY, find_metric
from esc_lab.runs.layout import PREDICTIONS, TALK_MEASURES

_EVALUATED = [key for key in keys() if key.decides("evaluate")]
# Settings by which replies are sampled: evaluations may differ in them if their names say so.
_SAMPLING = [key.name for key in _EVALUATED if key.method and key.measures]
# Settings that the test set depends on, for runs that left no predictions.
_TEST_SET = [key.name for key in _EVALUATED if key.measures == TEST_SET]
# Settings on which metrics depend (see `measures` of `item`): runs that differ in them measured other things.
_SETTINGS = {
    beginning: [key.name for key in _EVALUATED if beginning in key.measures]
    for beginning in sorted({beginning for key in _EVALUATED for beginning in key.measures} - {*TEST_SET})
}
# Settings of evaluations alone in which they may differ, if one knows it; cells are named by layout and inference.
_LAYOUT = "prompt.eval.layout"
_NAMED = ("prompt.eval.template", _LAYOUT, "prompt.inference")
_CONTEXT = [
    key.name
    for key in _EVALUATED
    if key.method is None and not (key.measures or key.path or key.name in _NAMED or key.affects.stages & {*TRAININGS})
]
_NET = "sra/sham_net"  # of these metrics the names begin so
# Metrics that runs of older code lack, with what they stand beside.
_NEWER = {
    "preference/accuracy_per_token": "preference/accuracy",
    "preference/shorter": "preference/accuracy",
    "preference/reward_accuracy_per_token": "preference/reward_accuracy",
}
_MEASURED_BY = {"judge/": "judge", SURVEY: "ask about"}  # others are measured by evaluations
_MISSING = object()  # the value of a setting that a run is older than


def choose_metrics(runs: Sequence[Run], asked: Sequence[str] | None) -> list[str]:
    """The metrics to compare: those asked for, or all of the table's columns that some run has.

    Raises:
        UserError: a metric is asked for that no run has, or that some evaluations (or some trainings) have and others
            lack.
    """
    if asked is None:
        measured = {name: None for run in runs for name in run.metrics}
        return [name for name in {**METRICS, **measured} if name in measured and find_metric(name).shown]
    for metric in asked:
        having = [run for run in runs if metric in run.metrics]
        if not having:
            hint = nearest(metric, {name for run in runs for name in run.metrics})
            raise UserError(f"no run has the metric{hint}", where=metric, fix="see the runs' metrics.json")
        kinds = {run.evaluation for run in having}
        lacking = [run for run in runs if _lacks(run, metric) and run.evaluation in kinds]
        if lacking:
            fix = "evaluate them with what it needs, or leave it or them out"
            raise UserError(f"missing in {list_runs(lacking)}", where=metric, fix=fix)
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
    require_equal({run: run.inventory for run in runs}, "label sets differ (inventory.name)", fix)
    require_same_seeds(cells)
    require_all_seeds_measured(cells, metrics)
    remarks: dict[str, None] = {}
    for template in dict.fromkeys(run.template for run in runs):
        layouts = {run: run.method.settings.get(_LAYOUT, "") for run in runs if run.template == template}
        if len(set(layouts.values()) - {""}) > 1 and not _named_by(_LAYOUT, layouts):
            remarks[f"prompts differ in the layout or the words of {template}: {_describe(layouts)}"] = None
    for metric in metrics:
        empty = [run for run in runs if _unparsable(run, metric)]
        if empty:
            remarks[f"no {metric}, as nothing could be parsed: {list_runs(empty)}"] = None
    for name in _CONTEXT:
        values = _values(runs, name)
        if len(set(values.values())) > 1 and not _named_by(name, values):
            remarks[f"prompts differ in {name}: {_describe(values)}"] = None
    nets = [name for name in metrics if name.startswith(_NET)]
    controls = {
        run: _name_control(_layout(run)) for run in runs if _layout(run) and any(n in run.metrics for n in nets)
    }
    fix = f"evaluate them under prompts of the same words, or choose metrics without {list_names(nets, 4)}"
    require_equal(controls, "attention is net of different controls", fix)
    for beginning, settings in _SETTINGS.items():
        measured = [n for n in metrics if n.startswith(beginning) or find_metric(n).count.startswith(beginning)]
        having = [run for run in runs if any(name in run.metrics for name in measured)]
        fix = f"evaluate them alike, or choose metrics without {list_names(measured, 4)}"
        for name in settings:
            values = _values(having, name)
            if name in _SAMPLING and values and _named_by(name, values):
                distinct = ", ".join(sorted(set(values.values())))
                remarks[f"replies were sampled differently: {name} is {distinct}, as the names of the cells say"] = None
            else:
                require_equal(values, f"{name} differs", fix)
    return [*remarks]


def load_predictions(runs: Sequence[Run], metrics: Sequence[str]) -> dict[Path, PredictionTable]:
    """Predictions of the evaluations that left them, by directory; many files are read by several processes.

    Raises:
        UserError: a file cannot be read, test sets differ, or predictions do not give the metrics of metrics.json.
    """
    texts = any(find_metric(metric).texts for metric in metrics)
    paths = {run: run.predictions for run in runs if run.predictions}
    tasks = [
        partial(
            read_table,
            path,
            build_inventory(run.config["inventory"], where=str(run.directory)).names,
            sra="/".join(v for part in ("definition", "span") for v in _values([run], f"evaluate.sra.{part}").values()),
            texts=texts,
        )
        for run, path in paths.items()
    ]
    tables = dict(zip(paths, parallel_map(tasks), strict=True))
    require_same_test_set({run: table.test for run, table in tables.items()})
    _require_similar_test_set([run for run in runs if run.evaluation])
    for run, table in tables.items():
        check_metrics(run, table, metrics)
    test = next((table.test for table in tables.values()), None)  # once in memory
    return {run.directory: replace(table, test=test) for run, table in tables.items() if test}


def require_same_seeds(cells: Sequence[Cell]) -> None:
    """Trained cells must share their seeds. A model as it came may be evaluated once for all of them.

    Raises:
        UserError: they do not.
    """
    for evaluation in (True, False):
        of_kind = [cell for cell in cells if cell.evaluation == evaluation]
        trained = [cell for cell in of_kind if cell.runs[0].method.training]  # without it the seed is not known
        by_seeds: dict[str, list[str]] = {}
        for cell in trained:
            by_seeds.setdefault(", ".join(map(str, cell.seeds)), []).append(cell.name)
        if len(by_seeds) > 1:
            seeds = "; ".join(f"{numbers}: {list_names(names, 4)}" for numbers, names in by_seeds.items())
            fix = "run the missing seeds, or name run directories with the same ones"
            raise UserError(f"cells with different seeds: {seeds}", where="seeds", fix=fix)


def require_all_seeds_measured(cells: Sequence[Cell], metrics: Sequence[str]) -> None:
    """Whether all runs of a cell have a metric or none.

    Raises:
        UserError: some have it.
    """
    for cell in cells:
        for metric in metrics:
            lacking = [run for run in cell.runs if _lacks(run, metric)]
            if 0 < len(lacking) < len(cell.runs):
                done = next((verb for start, verb in _MEASURED_BY.items() if metric.startswith(start)), "evaluate")
                fix = f"{done} them as the other seeds were, or leave the metric out"
                raise UserError(f"missing in {list_runs(lacking)}, but not in other seeds", where=metric, fix=fix)


def _lacks(run: Run, metric: str) -> bool:
    """Whether a run did not measure a metric that it could have, if evaluated as others are."""
    return metric not in run.metrics and not _unparsable(run, metric) and _NEWER.get(metric) not in run.metrics


def _unparsable(run: Run, metric: str) -> bool:
    """Whether a metric has no value since no reply of the run names a strategy, which it depends on."""
    of_strategies = metric.partition("/")[0] in ("generated", "sra", "adherence")
    return metric not in run.metrics and of_strategies and run.metrics.get("generated/unparsable") == 1


def _require_similar_test_set(runs: Sequence[Run]) -> None:
    """Without its predictions a run's test set is not known: what it was made by has to be as in the others."""
    if all(run.predictions for run in runs):
        return
    fix = "compare runs with their predictions.jsonl, of one test set"
    sizes = {run: f"{run.metrics['decisions']:g}" for run in runs if "decisions" in run.metrics}
    require_equal(sizes, "test sets differ in their decisions", fix)
    for name in _TEST_SET:
        require_equal(_values(runs, name), f"test sets differ: {name}", fix)


def require_same_test_set(tests: Mapping[Run, TestSet]) -> None:
    """Whether runs are of the same decisions, or talks.

    Raises:
        UserError: they are not; it says how they differ.
    """
    by_identity = {test.identity: test for test in tests.values()}
    if len(by_identity) < 2:
        return
    sizes = "; ".join(
        f"{len(test.keys)} {test.kind[0]} of {test.dialogues} {test.kind[1]} in "
        + list_runs([run for run, other in tests.items() if other.identity == identity])
        for identity, test in by_identity.items()
    )
    first, second = ({*test.keys} for test in [*by_identity.values()][:2])
    shared, rows = len(first & second), next(iter(by_identity.values())).kind[0]
    of_talks = rows == "talks"
    if shared == len(first) == len(second):
        how = f"the same {rows} with other {'situations' if of_talks else 'gold strategies'}"
    else:
        how = f"{shared} {rows} are in both" if len(by_identity) == 2 else f"{shared} in the first two"
    fix = "evaluate all on one split of one corpus, with the same data.limit, merge and score_opening"
    if of_talks:
        fix = "converse with the same cards and converse.talks; resume=RUN finishes what a budget has stopped"
    raise UserError(f"test sets differ: {sizes}; {how}", where="test sets", fix=fix)


def check_metrics(run: Run, table: PredictionTable, metrics: Sequence[str]) -> None:
    """Whether what a run left by decision (or talk) gives what metrics.json says.

    Raises:
        UserError: it does not.
    """
    for metric in metrics:
        definition = find_metric(metric).definition
        if definition is None or metric not in run.metrics:
            continue
        computed, written = definition.compute(table), run.metrics[metric]
        if not (math.isnan(computed) or math.isclose(computed, written, rel_tol=1e-6, abs_tol=1e-6)):
            file = TALK_MEASURES if run.of_talks else PREDICTIONS
            message = f"metrics.json says {metric} = {written:g}, {file} gives {computed:g}"
            raise UserError(message, where=str(run.directory), fix="evaluate the run again")


def _layout(run: Run) -> Mapping[str, Any]:
    """The layout of the prompts with its words; empty for a run that is older than these in a configuration."""
    layout: Mapping[str, Any] = run.config.get("prompt", {}).get("eval", {}).get("layout") or {}
    return layout


def _name_control(layout: Mapping[str, Any]) -> str:
    """What net attention is net of under a layout; two runs can be contrasted where it is the same."""
    if "choice" in layout["system"]:
        return "the other strategies of the list"
    words = {name: layout["wording"].get(name) for name in ("instruction", "strategy", "neutral", "neutral_phrase")}
    phrases, orders = (
        ", ".join(text) if isinstance(text := words[name], list) else str(text)
        for name in ("neutral_phrase", "instruction")
    )
    if "{neutral}" not in orders:
        return "nothing"
    return f"neutral phrases {phrases} (words {fingerprint(words)[:6]})"


def require_equal(values: Mapping[Run, str], message: str, fix: str) -> None:
    """Whether the values of runs are the same.

    Raises:
        UserError: they are not; behind the message it says which runs have which.
    """
    if len(set(values.values())) > 1:
        raise UserError(f"{message}: {_describe(values)}", where="evaluations", fix=fix)


def _named_by(setting: str, runs: Iterable[Run]) -> bool:
    """Whether the names of all runs say the setting."""
    return all(f" {setting}=" in run.name for run in runs)


def _describe(values: Mapping[Run, str]) -> str:
    """`1 in a, b; 2 in c`."""
    distinct = dict.fromkeys(values.values())
    return "; ".join(f"{value} in {list_runs([r for r, v in values.items() if v == value])}" for value in distinct)


def list_runs(runs: Sequence[Run]) -> str:
    """Their directories."""
    return list_names([str(run.directory) for run in runs], 4)


def _values(runs: Iterable[Run], setting: str) -> dict[Run, str]:
    """The value of a setting by its dotted name, by run, without runs that are older than the setting."""
    values = {}
    for run in runs:
        value: Any = run.config
        for key in setting.split("."):
            value = value.get(key, _MISSING) if isinstance(value, Mapping) else _MISSING
        if value is not _MISSING:
            values[run] = str(value)
    return values
