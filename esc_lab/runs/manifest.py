"""A multirun: what it was started with, what became of its jobs, and which of them an earlier one has done.

The manifest has a line of JSON when a job starts and one when it ends, so that a job whose process died shows up too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esc_lab.artifacts import READ_ERRORS, write_atomic
from esc_lab.config import place_names
from esc_lab.errors import UserError
from esc_lab.runs.layout import MANIFEST, METRICS

log = logging.getLogger(__name__)

DONE = ("done", "reused")
REQUEUED = "requeued"  # its time was up, and it is in Slurm's queue again
_OVERRIDES = "multirun.json"
_STOP = ".stop"  # where it is, no further job starts
# Hydra's own settings that change no result.
_HYDRA_NEUTRAL = ("hydra.launcher", "hydra/launcher", "hydra.sweep.", "hydra.sweeper.n_trials", "hydra.verbose")


@dataclass(frozen=True)
class Job:
    """A job of a multirun, as it ended last.

    Attributes:
        number: its number in the multirun.
        overrides: what it was started with.
        directory: its run directory.
        status: `done`, `reused` (nothing had to be computed), `failed`, `requeued` (Slurm is to start it again), or
            `running` (or its process is no more).
        error: why it failed.
        seconds: how long it took.
        metrics: what it returned.
        stages: of each stage in it, whether its result was reused.
    """

    number: int
    overrides: tuple[str, ...]
    directory: Path
    status: str
    error: str = ""
    seconds: float = 0.0
    metrics: Mapping[str, float] | None = None
    stages: Mapping[str, bool] | None = None


def append_record(directory: Path, job: Mapping[str, Any]) -> None:
    """Append a record to the manifest of a multirun, in one write so that jobs do not mix."""
    with (directory / MANIFEST).open("ab", buffering=0) as file:
        file.write(f"{json.dumps(job)}\n".encode())


def read_jobs(directory: Path) -> list[Job]:
    """The jobs of a multirun that were started, by number. One that was started again counts as it ended last.

    Raises:
        UserError: a line of the manifest is no record of a job.
    """
    path, latest = directory / MANIFEST, dict[tuple[str, ...], Job]()
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            record = json.loads(line)
            place = Path(record["directory"])
            place = place if place.exists() else directory / place.name  # the multirun may have been moved
            known = {key: record[key] for key in ("error", "seconds", "metrics", "stages") if key in record}
            words = tuple(record["overrides"])
            key = tuple(sorted(drop_resume(words)))  # the words of a multirun may change places, and so its numbers
            latest[key] = _check_types(Job(record["job"], words, place, record["status"], **known))
        except READ_ERRORS as error:
            fix = "correct the line, or name the run directories one by one"
            raise UserError("not the record of a job", where=f"{path}:{number}", fix=fix) from error
    return sorted(latest.values(), key=lambda job: job.number)


def _check_types(job: Job) -> Job:
    mappings = (job.metrics or {}, job.stages or {})
    numbers = (job.number, job.seconds, *(job.metrics or {}).values())
    if not all(isinstance(number, int | float) for number in numbers) or not all(isinstance(m, dict) for m in mappings):
        raise TypeError("no job")
    if not all(isinstance(text, str) for text in (job.status, job.error)):
        raise TypeError("no job")
    return job


def find_finished_job(directory: Path, overrides: Sequence[str]) -> Job | None:
    """The job with these overrides (`resume=` aside), if the multirun has done it and its results are still there."""
    for job in read_jobs(directory):
        same = sorted(drop_resume(job.overrides)) == sorted(drop_resume(overrides))
        if same and job.status in DONE and (job.directory / METRICS).exists():
            return job
    return None


def stop_multirun(directory: Path) -> None:
    """No further job starts, until the multirun goes on."""
    (directory / _STOP).touch()


def is_stopped(directory: Path) -> bool:
    """Whether no further job is to start."""
    return (directory / _STOP).exists()


def write_overrides(directory: Path, overrides: Sequence[str], common: Sequence[str] = ()) -> None:
    """Keep what a multirun is started with, and the keys that its jobs have in common. Its jobs may start."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _STOP).unlink(missing_ok=True)
    write_atomic(directory / _OVERRIDES, json.dumps({"words": drop_places(overrides), "common": [*common]}))


def read_job_overrides(directory: Path) -> list[str] | None:
    """The overrides that set a job apart in its multirun, by its run directory; None for a run of its own."""
    path = directory.absolute().parent / _OVERRIDES
    if not path.exists():
        return None
    common = {"resume", *_read_start(path).get("common", ())}
    overrides = next((job.overrides for job in read_jobs(path.parent) if job.directory.name == directory.name), ())
    return [word for word in overrides if word.partition("=")[0].lstrip("+") not in common]


def read_overrides(directory: Path) -> list[str] | None:
    """The overrides that a multirun was started with, less those that change no result; None if it is none.

    Raises:
        UserError: what it was started with cannot be read.
    """
    path = directory / _OVERRIDES
    return _read_start(path)["words"] if path.exists() else None


def _read_start(path: Path) -> dict[str, list[str]]:
    try:
        start = {name: [*words] for name, words in json.loads(path.read_text(encoding="utf-8")).items()}
        if "words" not in start or not all(isinstance(word, str) for words in start.values() for word in words):
            raise ValueError("no words")
    except READ_ERRORS as error:
        fix = "delete the file; its jobs can be named one by one"
        raise UserError("not what a multirun was started with", where=str(path), fix=fix) from error
    return start


def find_multirun(root: Path, overrides: Sequence[str]) -> Path | None:
    """The newest multirun below `root` that was started with these overrides, those that change no result aside.

    One that cannot be read is left out with a warning.
    """
    wanted = sorted(drop_places(overrides))
    same = []
    for path in root.glob(f"*/{_OVERRIDES}"):
        try:
            if sorted(drop_places(read_overrides(path.parent) or [])) == wanted:
                same.append(path)
        except UserError as error:
            log.warning("left out: %s", error)
    return max(same, key=lambda path: path.stat().st_mtime).parent if same else None


def drop_places(overrides: Sequence[str]) -> list[str]:
    """The overrides that a result depends on."""
    keys = {override: override.lstrip("+~").partition("=")[0] for override in overrides}
    return [text for text, key in keys.items() if key not in place_names() and not key.startswith(_HYDRA_NEUTRAL)]


def drop_resume(overrides: Sequence[str]) -> list[str]:
    """Overrides that say what a job is: `resume=` only says how it is run."""
    return [word for word in overrides if not word.startswith("resume=")]
