"""A multirun: its jobs as its manifest tells them, and which of them an earlier one has done.

The manifest has a line of JSON when a job starts and one when it ends, so that a job whose process died shows up too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esc_lab.artifacts import write_atomic
from esc_lab.config import place_names
from esc_lab.errors import UserError
from esc_lab.runs.layout import LOG, METRICS
from esc_lab.runs.layout import MANIFEST as MANIFEST

DONE = ("done", "reused")
_WORDS = "multirun.json"
# Hydra's own settings that change no result.
_HYDRA_ASIDE = ("hydra.launcher", "hydra/launcher", "hydra.sweep.", "hydra.sweeper.n_trials", "hydra.verbose")


@dataclass(frozen=True)
class Job:
    """A job of a multirun, as it ended last.

    Attributes:
        number: its number in the multirun.
        overrides: what it was started with.
        directory: its run directory.
        status: `done`, `reused` (nothing had to be computed), `failed`, or `running` (or its process is no more).
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


def note(directory: Path, job: Mapping[str, Any]) -> None:
    """Append a record to the manifest of a multirun, in one write so that jobs do not mix."""
    with (directory / MANIFEST).open("ab", buffering=0) as file:
        file.write(f"{json.dumps(job)}\n".encode())


def jobs(directory: Path) -> list[Job]:
    """The jobs of a multirun that were started, by number. One that was started again counts as it ended last.

    Raises:
        UserError: a line of the manifest is no record of a job.
    """
    path, found = directory / MANIFEST, dict[tuple[str, ...], Job]()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], 1):
        try:
            record = json.loads(line)
            place = Path(record["directory"])
            place = place if place.exists() else directory / place.name  # the multirun may have been moved
            known = {key: record[key] for key in ("error", "seconds", "metrics", "stages") if key in record}
            words = tuple(record["overrides"])
            key = tuple(sorted(without_resume(words)))  # the words of a multirun may change places, and so its numbers
            found[key] = Job(record["job"], words, place, record["status"], **known)
        except (ValueError, KeyError, TypeError) as error:
            fix = "mend the line, or name the run directories one by one"
            raise UserError("not the record of a job", where=f"{path}:{number}", fix=fix) from error
    return sorted(found.values(), key=lambda job: job.number)


def finished(directory: Path, overrides: Sequence[str]) -> Job | None:
    """The job with these overrides (`resume=` aside), if the multirun has done it and its results are still there."""
    for job in jobs(directory):
        same = sorted(without_resume(job.overrides)) == sorted(without_resume(overrides))
        if same and job.status in DONE and (job.directory / METRICS).exists():
            return job
    return None


def run_apart(script: Path, overrides: Sequence[str], directory: Path) -> dict[str, float]:
    """A job on several devices: a single run in a process of its own.

    Lightning starts a process for each device with the command line of the first; in a multirun that would be the whole
    multirun. Slurm's variables are kept from it: they would make Lightning expect that Slurm has started all processes.

    Returns:
        Its metrics.

    Raises:
        UserError: it failed; its messages are on the terminal and in run.log.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    command = [sys.executable, str(script), *overrides, path_override("hydra.run.dir", directory)]
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        log = directory / LOG
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        told = [line.partition(" error: ")[2] for line in lines if " error: " in line]
        raise UserError(told[-1] if told else f"ended with status {status}", where=str(log))
    metrics: dict[str, float] = json.loads((directory / METRICS).read_text(encoding="utf-8"))
    return metrics


def path_override(key: str, path: Path) -> str:
    """`key='path'` as a word of the command line, whatever characters the path has."""
    quoted = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{quoted}'"


def begin(directory: Path, words: Sequence[str], common: Sequence[str] = ()) -> None:
    """Note what a multirun is started with, for `earlier` and `words_of`, and the keys that its jobs have in common."""
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / _WORDS, json.dumps({"words": _telling(words), "common": [*common]}))


def read_job_overrides(directory: Path) -> list[str] | None:
    """The overrides that set a job apart in its multirun, by its run directory; None for a run of its own."""
    path = directory.absolute().parent / _WORDS
    if not path.exists():
        return None
    common = {"resume", *json.loads(path.read_text(encoding="utf-8")).get("common", ())}
    overrides = next((job.overrides for job in jobs(path.parent) if job.directory.name == directory.name), ())
    return [word for word in overrides if word.partition("=")[0].lstrip("+") not in common]


def words_of(directory: Path) -> list[str] | None:
    """The overrides that a multirun was started with, less those that change no result; None if it is none."""
    path = directory / _WORDS
    return json.loads(path.read_text(encoding="utf-8"))["words"] if path.exists() else None


def earlier(root: Path, words: Sequence[str]) -> Path | None:
    """The newest multirun below `root` that was started with these words, those that change no result aside."""
    paths = root.glob(f"*/{_WORDS}")
    found = [path for path in paths if sorted(_telling(words_of(path.parent) or [])) == sorted(_telling(words))]
    return max(found, key=lambda path: path.stat().st_mtime).parent if found else None


def _telling(words: Sequence[str]) -> list[str]:
    keys = {word: word.lstrip("+~").partition("=")[0] for word in words}
    return [word for word, key in keys.items() if key not in place_names() and not key.startswith(_HYDRA_ASIDE)]


def without_resume(overrides: Sequence[str]) -> list[str]:
    """Overrides that say what a job is: `resume=` only says how it is run."""
    return [word for word in overrides if not word.startswith("resume=")]


def print_jobs(found: Sequence[Job], planned: Sequence[Sequence[str]], metric: str | None) -> None:
    """A table of all jobs on standard output: done, reused, failed and why.

    Args:
        found: the jobs that were started.
        planned: overrides of all jobs, by number, where they are known; those without a record were never started.
        metric: of the jobs, to be shown too.
    """
    from rich.markup import escape
    from rich.table import Table

    from esc_lab.terminal import console

    started = {job.number for job in found}
    missing = [(number, words) for number, words in enumerate(planned) if number not in started]
    everything = [*found, *(Job(number, tuple(words), Path(), "not started") for number, words in missing)]
    common = set.intersection(*(set(job.overrides) for job in everything)) if len(everything) > 1 else set()
    table = Table(title="jobs")
    table.add_column("job", justify="right")
    table.add_column("what differs", overflow="fold")
    table.add_column("status")
    if metric:
        table.add_column(metric, justify="right")
    table.add_column("stages reused", justify="right")
    table.add_column("time", justify="right")
    table.add_column("why", overflow="fold")
    for job in sorted(everything, key=lambda job: job.number):
        differing = " ".join(word for word in job.overrides if word not in common)
        value = [_number((job.metrics or {}).get(metric))] if metric else []
        status = "did not finish" if job.status == "running" else job.status
        why = "its process ended without a word: killed, or out of memory" if job.status == "running" else job.error
        table.add_row(
            str(job.number), escape(differing), f"[{_colour(job.status)}]{status}[/]", *value, _reused(job),
            f"{job.seconds:.0f} s" if job.seconds else "", escape(why),
        )  # fmt: skip
    console().print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _colour(status: str) -> str:
    return {"done": "green", "reused": "cyan"}.get(status, "red")


def _reused(job: Job) -> str:
    return f"{sum(job.stages.values())} of {len(job.stages)}" if job.stages else ""
