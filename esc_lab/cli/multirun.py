"""Multiruns: the jobs of one command, each noted in the manifest, with a table of how they ended."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf

from esc_lab.cli.compositions import compose_config, one_line, quote
from esc_lab.cli.overrides import expand_multirun
from esc_lab.config import place_names
from esc_lab.config.files import CHECKOUT, COMMAND
from esc_lab.errors import UserError
from esc_lab.runs import manifest
from esc_lab.runs.layout import LOG, MANIFEST, METRICS
from esc_lab.runs.signals import TERMINATED, end_on_sigterm
from esc_lab.terminal import console, escape

_RUN = [str(CHECKOUT / "run.py")] if CHECKOUT else ["-m", "esc_lab.cli"]
_RESUME_FIX = "resume=auto runs what is missing"
_PROCESS = "ESC_LAB_MULTIRUN"  # the environment variable that names the process of a multirun to its workers
_COMPARED = ("evaluate", "converse", "sft", "cso", "pipeline")  # stages whose runs can be compared
_GRACE_S = 20.0  # of jobs that are to end; Slurm kills after 30

_job: Path | None = None  # the directory of the multirun whose job this process runs
_watcher: threading.Thread | None = None  # in a worker


def run_multirun(words: Sequence[str], first: Sequence[str], start: Callable[[], Any]) -> int:
    """Run all jobs and report how each ended; 1 if any of them did not come to its end.

    Args:
        words: the overrides of the multirun. With `resume=auto`, the newest multirun of the same words goes on: jobs
            that it has done are left as they are.
        first: the overrides of its first job.
        start: hands the command line, `sys.argv`, to Hydra.
    """
    # The directory is settled here, and not by Hydra, so that the manifest can be read when the jobs are done.
    cfg, hydra = compose_config(*first)
    slurm = _prepare_slurm(hydra.launcher, str(cfg.stage))
    jobs, common = expand_multirun(words)
    directory = Path(hydra.sweep.dir)
    if "resume=auto" in words and not any(word.startswith("hydra.sweep.dir=") for word in words):
        before = manifest.find_multirun(directory.parent, words)
        print(f"resume=auto: {f'going on with {before}' if before else 'no such multirun before'}", file=sys.stderr)
        directory = before or directory
    if slurm:
        slurm.refuse_twice(directory)
    sys.argv.append(f"hydra.sweep.dir={quote(str(directory))}")
    if common:  # a job's directory is named by what sets it apart from the others
        excluded = sorted({*place_names(), *common})
        sys.argv.append(f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(quote, excluded))}]")
    manifest.write_overrides(directory, words, common)
    failure: BaseException | None = None
    os.environ[_PROCESS] = str(os.getpid())
    try:
        with end_on_sigterm(lambda: None if slurm else _end_jobs(directory)):
            start()
    except BaseException as error:  # of the launcher, or the end of this process: a job's own are in the manifest
        failure = error
    finally:
        del os.environ[_PROCESS]
    if slurm:
        failure = slurm.explain_end(directory, failure)
    started = manifest.read_jobs(directory)
    print_jobs(started, jobs, cfg.optimize_metric)
    failed = sum(job.status not in manifest.DONE for job in started)
    total = max(len(started), len(jobs))
    ended = f"{failed} of {total} jobs failed" if failed else f"{len(started)} of {total} jobs done"
    print(f"{ended}; {directory / MANIFEST} lists them all", file=sys.stderr)
    if hint := describe_next(directory, str(cfg.stage), total, total - len(started) + failed):
        print(hint, file=sys.stderr)
    if isinstance(failure, BrokenProcessPool):
        raise UserError("a job's process died: killed, or out of memory", fix=_RESUME_FIX)
    if isinstance(failure, RuntimeError):
        raise UserError(f"the launcher gave up: {type(failure).__name__}: {one_line(failure)}", fix=_RESUME_FIX)
    if failure:
        raise failure
    return int(failed > 0)


def describe_next(directory: Path, stage: str, jobs: int, failed: int) -> str:
    """What to do with the jobs now; nothing where they cannot be compared."""
    if failed:
        return f"{_RESUME_FIX}, and leaves the others as they are"
    if stage not in _COMPARED or jobs < 2:
        return ""
    name = str(directory) if re.fullmatch(r"[\w./-]+", str(directory)) else quote(str(directory))
    return f"compare them: {COMMAND} {shlex.join(['stage=compare', f'compare.runs=[{name}]'])}"


def _prepare_slurm(launcher: Any, stage: str) -> ModuleType | None:
    """What knows Slurm, if its launcher is to submit the jobs.

    Raises:
        UserError: Slurm is not there, or does not have what they ask for; or Ray is to run them, and is not there.
    """
    if launcher._target_.endswith(".RayLauncher") and find_spec("hydra_plugins.hydra_ray_launcher") is None:
        raise UserError("Ray is not installed", where="hydra/launcher=ray", fix="pip install 'esc-lab[ray]'")
    if not launcher._target_.endswith(".SlurmLauncher"):
        return None
    from esc_lab.cli import slurm  # with submitit, of the extra `sweeps`

    slurm.check_cluster(launcher, stage)
    return slurm


def in_slurm() -> bool:
    """Whether this process is a job of a multirun that Slurm has started."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def _end_jobs(directory: Path) -> None:
    """Let jobs in other processes end, and wait a while until they have noted it."""
    manifest.stop_multirun(directory)
    until = time.monotonic() + _GRACE_S
    while time.monotonic() < until and any(job.status == "running" for job in manifest.read_jobs(directory)):
        time.sleep(0.1)


def in_worker() -> bool:
    """Whether this process runs jobs of a multirun that another one has started."""
    return in_slurm() or os.environ.get(_PROCESS, str(os.getpid())) != str(os.getpid())


def is_orphan(launcher: str) -> bool:
    """Whether this is a worker on the machine of a multirun whose own process is no more.

    Args:
        launcher: the class of Hydra's launcher.
    """
    return launcher.endswith(".JoblibLauncher") and in_worker() and os.environ[_PROCESS] != str(os.getppid())


@contextmanager
def end_with_multirun(directory: Path) -> Iterator[None]:
    """In a worker, SIGTERM for the job in this block when its multirun, in that directory, is stopped or gone.

    A worker without a job ends when the process of the multirun is gone.
    """
    global _job, _watcher
    _job = directory
    if in_worker() and _watcher is None:
        _watcher = threading.Thread(target=_watch, args=(os.getppid(),), daemon=True)
        _watcher.start()
    try:
        yield
    finally:
        _job = None


def _watch(parent: int) -> None:
    while True:
        time.sleep(1.0)
        job, gone = _job, os.getppid() != parent
        if job and (gone or manifest.is_stopped(job)):
            os.kill(os.getpid(), signal.SIGTERM)
        elif gone:
            os._exit(TERMINATED)


def describe_jobs(words: Sequence[str], first: Sequence[str], part: str, *, resolve: bool) -> str:
    """The configuration of each job of a multirun, as YAML documents headed by the job's overrides.

    Args:
        first: the overrides of its first job, the only one that is known where a sweeper chooses jobs as it goes.
        part: `job`, `hydra`, or `all` for both.
    """
    jobs, _ = expand_multirun(words)
    documents = [] if jobs else ["# the sweeper chooses the jobs as it goes; the first of each choice:\n"]
    for number, job in enumerate(jobs or [[*first]]):
        cfg, hydra = compose_config(*job)
        choices: dict[str, list[Any]] = {"job": [cfg], "hydra": [{"hydra": hydra}], "all": [cfg, {"hydra": hydra}]}
        text = "".join(OmegaConf.to_yaml(section, resolve=resolve) for section in choices[part])
        documents.append(f"# job {number} of {len(jobs) or 'many'}: {' '.join(job)}\n{text}")
    return "---\n".join(documents)


def run_in_process(overrides: Sequence[str], directory: Path) -> dict[str, float]:
    """A job on several devices: a single run in a process of its own.

    Lightning starts a process for each device with the command line of the first; in a multirun that would be the whole
    multirun. Slurm's variables are kept from it: they would make Lightning expect that Slurm has started all processes.

    Returns:
        Its metrics.

    Raises:
        UserError: it failed; its messages are on the terminal and in run.log.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SUBMITIT_"))}
    command = [sys.executable, *_RUN, *overrides, f"hydra.run.dir={quote(str(directory))}"]
    with _deaf_to_slurm():
        process = subprocess.Popen(command, env=environment)
    try:
        status = process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:  # its processes wait for each other
            process.kill()
            process.wait()
        raise
    if status:
        log = directory / LOG
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        errors = [line.partition(" error: ")[2] for line in lines if " error: " in line]
        raise UserError(errors[-1] if errors else f"ended with status {status}", where=str(log))
    metrics: dict[str, float] = json.loads((directory / METRICS).read_text(encoding="utf-8"))
    return metrics


@contextmanager
def _deaf_to_slurm() -> Iterator[None]:
    """A process that is started in this block, and those that it starts, leave Slurm's signal to this one.

    Slurm sends it to all processes of a job, and it would end them at once.
    """
    if not in_slurm():
        yield
        return
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


# What the columns of the table of jobs are.
JOB_NOTES = (
    "job: its number; what differs: words of its command that not all jobs have.",
    "status: done; reused: all its results were there; failed, with why; did not finish: its process is gone; "
    "under way; not started.",
    "stages reused: steps of a pipeline whose results other runs had left. time: that it took.",
)


def print_jobs(started: Sequence[manifest.Job], planned: Sequence[Sequence[str]], metric: str | None) -> None:
    """A table of all jobs on standard output: done, reused, failed and why.

    Args:
        started: the jobs that have a record.
        planned: overrides of all jobs, by number, where they are known; those without a record were never started.
        metric: of the jobs, to be shown too.
    """
    from rich.table import Table

    from esc_lab.metrics.records import find_metric
    from esc_lab.runs.directory import is_owned

    numbers = {job.number for job in started}
    jobs = [*started]
    jobs += [
        manifest.Job(number, tuple(words), Path(), "not started")
        for number, words in enumerate(planned)
        if number not in numbers
    ]
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    table = Table(title="jobs")
    right, folded = {"justify": "right"}, {"overflow": "fold"}
    columns: dict[str, dict[str, Any]] = {"job": right, "what differs": folded, "status": {}}
    columns |= {metric: right} if metric else {}
    for name, style in {**columns, "stages reused": right, "time": right, "why": folded}.items():
        table.add_column(name, **style)
    for job in sorted(jobs, key=lambda job: job.number):
        value = (job.metrics or {}).get(metric or "")
        status, died = job.status, False
        if status == "running":
            died = not is_owned(job.directory)
            status = "did not finish" if died else "under way"
        colour = {"done": "green", "reused": "cyan", manifest.REQUEUED: "yellow"}.get(job.status, "red")
        table.add_row(
            str(job.number),
            escape(" ".join(word for word in job.overrides if word not in common)),
            f"[{colour}]{status}[/]",
            *([] if metric is None else ["-" if value is None else f"{value:.4g}"]),
            f"{sum(job.stages.values())} of {len(job.stages)}" if job.stages else "",
            f"{job.seconds:.0f} s" if job.seconds else "",
            escape("its process ended without a word: killed, or out of memory" if died else job.error),
        )
    console().print(table)
    for note in [*JOB_NOTES, *([f"{metric}: {find_metric(metric).gist}"] if metric else [])]:
        console().print(f"- {note}", highlight=False, markup=False, style="dim")
