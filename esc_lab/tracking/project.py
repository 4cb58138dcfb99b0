"""W&B's public API, with errors that say what to do; runs of a project as run directories, for comparisons.

Such runs are downloaded once, and then read like those of this machine.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from esc_lab.artifacts import write_atomic
from esc_lab.errors import UserError
from esc_lab.runs.layout import CONFIG, METRICS

if TYPE_CHECKING:
    from wandb import Api
    from wandb.apis.public import Run

log = logging.getLogger(__name__)


def open_api(where: str) -> Api:
    """The API of the account that is logged in; `where` is the setting that asks for it.

    Raises:
        UserError: nobody is logged in, or the server does not answer.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    with explain_failures(where):
        try:
            return wandb.Api(timeout=30)
        except wandb.errors.UsageError as error:
            fix = "`wandb login`, or set WANDB_API_KEY"
            raise UserError("nobody is logged in to W&B", where=where, fix=fix) from error


@contextmanager
def explain_failures(where: str) -> Iterator[None]:
    """Failures of W&B as errors of the user: no such project, no access, no network.

    Raises:
        UserError: as said.
    """
    from wandb.errors import Error
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Could not find project"):
            raise
        fix = "check the name (entity/project), and `wandb sync` the offline runs first"
        raise UserError(f"W&B has no such project, or not for this account ({error})", where=where, fix=fix) from error
    except (Error, WandbApiFailedError, OSError) as error:
        fix = "look whether the server can be reached, and `wandb login` again if it refuses the key"
        raise UserError(f"W&B: {error}", where=where, fix=fix) from error


def download_evaluations(project: str, cache: Path, groups: Sequence[str] = ()) -> list[Path]:
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
    api = open_api(where)
    with explain_failures(where):
        runs = [run for run in api.runs(project, filters=filters, lazy=False) if run.state == "finished"]
        evaluations = [run for run in runs if run.job_type == "evaluate"]
        if not evaluations:
            of = f" in {', '.join(groups)}" if groups else ""
            fix = "check the group, or `wandb sync` the offline runs first"
            raise UserError(f"it holds no finished evaluation{of}", where=where, fix=fix)
        configs = {run.id: nest(run.config) for run in runs}
        places = {run.id: cache / "wandb" / Path(*run.path) for run in runs}
        moves = {str(configs[run.id].get("run_dir", "")): places[run.id].absolute() for run in runs}
        for run in runs:
            if not places[run.id].exists():
                _write_run(run, configs[run.id], places[run.id], moves)
    log.info("%s: %d finished evaluations", project, len(evaluations))
    return [places[run.id] for run in evaluations]


def _write_run(run: Run, config: dict[str, Any], place: Path, moves: Mapping[str, Path]) -> None:
    """Make the run directory of a run, whole or not at all; `moves`: directories of runs where they ran -> here."""
    arriving = place.with_name(f".{place.name}")
    shutil.rmtree(arriving, ignore_errors=True)
    evaluation = run.job_type == "evaluate"
    results = [artifact for artifact in run.logged_artifacts() if artifact.type == "evaluation"] if evaluation else []
    if results:
        results[-1].download(root=str(arriving), skip_cache=True)
    for section, name in ((config, "checkpoint"), (config, "init_from"), (config.get("data", {}), "path")):
        if section.get(name):
            section[name] = _move(section[name], moves)
    write_atomic(arriving / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    if not (arriving / METRICS).exists():
        summary = {name: value for name, value in dict(run.summary).items() if not name.startswith("_")}
        metrics = {name: float(value) for name, value in summary.items() if type(value) in (int, float)}
        write_atomic(arriving / METRICS, json.dumps(metrics, indent=2, sort_keys=True))
        if evaluation:
            log.info("%s: without predictions", run.name)
    arriving.rename(place)


def _move(path: str, moves: Mapping[str, Path]) -> str:
    """A path in a run directory as the path in its directory here; other paths stay as they are."""
    parts = Path(path).parts
    for count in range(len(parts), 0, -1):  # a step of a pipeline before the pipeline
        for there, here in moves.items():
            if there and Path(there).parts[-count:] == parts[:count]:
                return str(here.joinpath(*parts[count:]))
    return path


def nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted names as nested ones."""
    config: dict[str, Any] = {}
    for name, value in settings.items():
        *path, last = name.split(".")
        section = config
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return config
