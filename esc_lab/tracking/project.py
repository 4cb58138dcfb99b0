"""Runs of a W&B project as run directories, for comparisons: downloaded once, then read like those of this machine."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from esc_lab.artifacts import write_atomic
from esc_lab.errors import UserError
from esc_lab.tracking.api import answering, api

if TYPE_CHECKING:
    from wandb.apis.public import Run

log = logging.getLogger(__name__)


def runs_of_project(project: str, cache: Path, groups: Sequence[str] = ()) -> list[Path]:
    """Directories of the finished evaluations of a project, each with what the run left.

    A run that logged its results as an artifact comes with predictions.jsonl and all else; of another one there are
    its configuration and its metrics. What is there already is not downloaded again. The configuration of the training
    that an evaluation goes back to comes along, so that its method is known.

    Args:
        project: `entity/project`, or `project` of the default entity.
        cache: the cache directory.
        groups: only runs of these groups; empty = all.

    Raises:
        UserError: nobody is logged in, there is no such project, or it holds no finished evaluation.
    """
    where = f"compare.wandb={project}"
    filters: dict[str, Any] = {"group": {"$in": [*groups]}} if groups else {}
    service = api(where)
    with answering(where):
        runs = [run for run in service.runs(project, filters=filters, lazy=False) if run.state == "finished"]
        evaluations = [run for run in runs if run.job_type == "evaluate"]
        if not evaluations:
            of = f" in {', '.join(groups)}" if groups else ""
            fix = "check the group, or `wandb sync` the offline runs first"
            raise UserError(f"it holds no finished evaluation{of}", where=where, fix=fix)
        configs = {run.id: nested(run.config) for run in runs}
        places = {run.id: cache / "wandb" / Path(*run.path) for run in runs}
        here = {str(configs[run.id].get("run_dir", "")): places[run.id].absolute() for run in runs}
        for run in runs:
            if not places[run.id].exists():
                _lay_out(run, configs[run.id], places[run.id], here)
    log.info("%s: %d finished evaluations", project, len(evaluations))
    return [places[run.id] for run in evaluations]


def _lay_out(run: Run, config: dict[str, Any], place: Path, here: Mapping[str, Path]) -> None:
    """Make the run directory of a run; it appears when it is whole.

    Args:
        here: directories of runs on the machine that ran them -> here.
    """
    arriving = place.with_name(f".{place.name}")
    shutil.rmtree(arriving, ignore_errors=True)
    logged = [one for one in run.logged_artifacts() if one.type == "evaluation"] if run.job_type == "evaluate" else []
    if logged:
        logged[-1].download(root=str(arriving), skip_cache=True)
    for section, name in ((config, "checkpoint"), (config, "init_from"), (config.get("data", {}), "path")):
        if section.get(name):
            section[name] = _moved(section[name], here)
    write_atomic(arriving / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    if not (arriving / "metrics.json").exists():
        summary = {name: _number(value) for name, value in dict(run.summary).items() if not name.startswith("_")}
        metrics = {name: value for name, value in summary.items() if value is not None}
        write_atomic(arriving / "metrics.json", json.dumps(metrics, indent=2, sort_keys=True))
        if run.job_type == "evaluate":
            log.info("%s: without predictions", run.name)
    arriving.rename(place)


def _moved(path: str, here: Mapping[str, Path]) -> str:
    """A path in a run directory as the path in its directory here; other paths stay as they are."""
    parts = Path(path).parts
    for count in range(len(parts), 0, -1):  # a step of a pipeline before the pipeline
        for there, place in here.items():
            if there and Path(there).parts[-count:] == parts[:count]:
                return str(place.joinpath(*parts[count:]))
    return path


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted names as nested ones."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        *path, last = name.split(".")
        place = found
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
    return found


def _number(value: Any) -> float | None:
    """A number of a summary; None for anything else, such as a table."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
