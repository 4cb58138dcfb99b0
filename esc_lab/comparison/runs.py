"""Finished runs, read from run directories, multiruns and pipelines, and gathered into cells: a method with its seeds.

Nothing is written into what is read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from esc_lab.artifacts import READ_ERRORS, file_fingerprint
from esc_lab.config.pipeline import BASE
from esc_lab.config.search import LOADED
from esc_lab.errors import UserError
from esc_lab.metrics.records import METRICS
from esc_lab.runs.layout import CONFIG, ENVIRONMENT, MANIFEST, PREDICTIONS, TALKS_FILE, Settings, read_config
from esc_lab.runs.lineage import Method, find_distinguishing_settings, read_method
from esc_lab.runs.manifest import DONE, read_jobs

log = logging.getLogger(__name__)

CONVERSE = "converse"
_FIX = "name run directories of stage=evaluate, of stage=converse, of a training, of a pipeline or of a multirun"
# Of a pipeline, in the order in which it takes them; evaluations of the base under several templates come first.
_STEPS = (BASE, "evaluate_sft", "evaluate_extra_sft", "evaluate_cso")


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        directory: where it lies.
        model, template, inventory: names of the model, of the prompt template and of the inventory of strategies.
        method: how it came to its model.
        name: of the method among the runs that are compared, with the settings that tell it apart from others.
        config: its configuration.
        metrics: its metrics.json.
        environment: its environment.json; empty if there is none.
    """

    directory: Path
    model: str
    template: str
    inventory: str
    method: Method
    name: str
    config: Settings
    metrics: Mapping[str, float]
    environment: Mapping[str, Any]

    @property
    def evaluation(self) -> bool:
        """Whether it measures a model: by its decisions, or in whole talks."""
        return self.config["stage"] in ("evaluate", CONVERSE)

    @property
    def of_talks(self) -> bool:
        """Whether it held whole talks with simulated seekers."""
        return bool(self.config["stage"] == CONVERSE)

    @property
    def predictions(self) -> Path | None:
        """The file with its predictions; None of a training, of talks, or if there is none."""
        path = self.directory / PREDICTIONS
        return path if self.config["stage"] == "evaluate" and path.exists() else None

    @property
    def result(self) -> Path | None:
        """The file that tells what its model did: its predictions or its talks."""
        return self.directory / TALKS_FILE if self.of_talks else self.predictions


@dataclass(frozen=True)
class Cell:
    """The runs of one model and method under one template: one for each seed, in their order."""

    model: str
    method: str
    template: str
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        return f"{self.model} {self.method} ({self.template})"

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.method.seed for run in self.runs)

    @property
    def evaluation(self) -> bool:
        return self.runs[0].evaluation

    def run_name(self, run: Run) -> str:
        """The cell's name, with the run's seed where there are several."""
        return self.name + (f", seed {run.method.seed}" if len(self.runs) > 1 else "")


def read_runs(directories: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs in directories: of runs, of pipelines (their evaluations) and of multiruns (all their jobs).

    A directory that is named twice is read once. An evaluation whose predictions (or talks) are the very same as those
    of another with its model, method, template and seed was reused; it counts once.

    Returns:
        The runs, and sentences on what was left out.

    Raises:
        UserError: a directory holds no finished run or none with metrics that can be compared; a job of a multirun
            failed; two runs share model, method, template and seed.
    """
    distinct: dict[Path, Path] = {}
    for directory in directories:
        for path in _run_directories(directory):
            distinct.setdefault(path.resolve(), path)
    runs = [_read_run(path) for path in distinct.values()]
    if not runs:
        raise UserError("there is no run to compare", where=", ".join(map(str, directories)), fix=_FIX)
    groups: dict[tuple[str, str, bool], list[Method]] = {}
    for run in runs:
        groups.setdefault((run.model, run.template, run.of_talks), []).append(run.method)
    differing = find_distinguishing_settings(groups.values())
    return _drop_copies([replace(run, name=_name(run.method, differing[run.method.name])) for run in runs])


def group_cells(runs: Sequence[Run]) -> list[Cell]:
    """The cells, those of one model together, otherwise in order of first appearance."""
    by_model: dict[str, dict[tuple[str, str], list[Run]]] = {}
    for run in runs:
        by_model.setdefault(run.model, {}).setdefault((run.name, run.template), []).append(run)
    return [
        Cell(model, method, template, tuple(sorted(members, key=lambda run: run.method.seed)))
        for model, cells in by_model.items()
        for (method, template), members in cells.items()
    ]


def shorten_names(cells: Sequence[Cell]) -> dict[str, str]:
    """What readers see of each cell, by its name: the same without the prompt template, if all have one."""
    short = len({cell.template for cell in cells}) == 1
    return {cell.name: f"{cell.model} {cell.method}" if short else cell.name for cell in cells}


def _run_directories(directory: Path) -> list[Path]:
    if (directory / MANIFEST).exists():
        return [path for job in _jobs(directory) for path in _run_directories(job)]
    if not directory.is_dir():
        raise UserError("there is no such directory", where=str(directory), fix=_FIX)
    config = _read_config(directory)
    if config.get("stage") != "pipeline":
        return [directory]
    _read_metrics(directory)
    steps = [path for path in directory.glob("evaluate_*") if path.is_dir()]
    templates = config.get("pipeline", {}).get("templates") or ()
    order = [*(f"{BASE}_{template}" for template in templates), *_STEPS]
    return sorted(steps, key=lambda step: (order.index(step.name) if step.name in order else len(order), step.name))


def _jobs(directory: Path) -> list[Path]:
    """Directories of the jobs of a multirun."""
    started = read_jobs(directory)
    unfinished = [job for job in started if job.status not in DONE]
    if unfinished:
        errors = "; ".join(f"{' '.join(job.overrides)}: {job.error or 'it did not finish'}" for job in unfinished[:5])
        fix = "run them again (-m ... resume=auto), or name the run directories of the others"
        raise UserError(f"{len(unfinished)} of {len(started)} jobs failed: {errors}", where=str(directory), fix=fix)
    return [job.directory for job in started]


def _read_run(directory: Path) -> Run:
    metrics, config = _read_metrics(directory), _read_config(directory)
    try:
        method = read_method(directory)
        template = config["prompt"]["eval" if config["stage"] in ("evaluate", CONVERSE) else "train"]["template"]
        model, inventory = _name_model(config), str(config["inventory"]["name"])
    except (LookupError, TypeError, AttributeError) as error:
        message = f"no finished run: a configuration behind it does not say {error}"
        raise UserError(message, where=str(directory), fix=_FIX) from error
    except READ_ERRORS as error:
        message = f"no finished run: a configuration behind it cannot be read: {str(error).splitlines()[0]}"
        raise UserError(message, where=str(directory), fix=_FIX) from error
    if not any(name in metrics for name, metric in METRICS.items() if metric.shown):
        raise UserError("none of its metrics can be compared", where=str(directory), fix=_FIX)
    known = _read_environment(directory / ENVIRONMENT)
    return Run(directory, model, template, inventory, method, method.name, config, metrics, known)


def _name_model(config: Settings) -> str:
    """The model that is measured or trained; in talks with a supporter at an endpoint its name there."""
    supporter = config["llm"]["supporter"] if config["stage"] == CONVERSE else {"client": "local"}
    served = None if supporter["client"] in LOADED else supporter.get("model") or config["llm"]["openai"]["model"]
    return str(served or config["model"]["name"])


def _read_metrics(directory: Path) -> dict[str, float]:
    """The metrics of a run that came to its end."""
    path = directory / "metrics.json"
    if (directory / CONFIG).exists() and not path.exists():
        message = "no finished run: it has no metrics.json, so it crashed or is not done yet"
        raise UserError(message, where=str(directory), fix="finish it (see its run.log), or leave it out")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(value) for name, value in metrics.items()}
    except READ_ERRORS as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no finished run: {reason}", where=str(directory), fix=_FIX) from error


def _read_environment(path: Path) -> dict[str, Any]:
    """What a run ran on; nothing where it does not say."""
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(known, dict):
            raise TypeError("no mapping")
    except READ_ERRORS as error:
        log.warning("%s cannot be read: %s", path, error)
        return {}
    return known


def _read_config(directory: Path) -> Settings:
    try:
        return read_config(directory)
    except READ_ERRORS as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no finished run: {reason}", where=str(directory), fix=_FIX) from error


def _name(method: Method, keys: Sequence[str]) -> str:
    return " ".join([method.name, *(f"{key}={method.settings[key]}" for key in keys if key in method.settings)])


def _drop_copies(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    first: dict[tuple[str, str, str, int, bool], Run] = {}
    copies: dict[str, None] = {}
    for run in runs:
        key = (run.model, run.name, run.template, run.method.seed, run.of_talks)
        other = first.setdefault(key, run)
        name = f"{run.model} {run.name} ({run.template}), seed {run.method.seed}"
        if other is run:
            continue
        if not _same_result(run, other):
            fix = "leave one of them out"
            raise UserError(f"two runs of {name}: {other.directory} and {run.directory}", where="seeds", fix=fix)
        copies[name] = None
    remarks = []
    if copies:
        which = f"{next(iter(copies))} lies" if len(copies) == 1 else f"{len(copies)} evaluations lie"
        remarks = [f"{which} in several directories with the same predictions (reused): each counts once"]
    return list(first.values()), remarks


def _same_result(run: Run, other: Run) -> bool:
    if run.result and other.result:
        return file_fingerprint(run.result) == file_fingerprint(other.result)
    return False
