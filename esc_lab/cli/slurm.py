"""Jobs of a multirun in Slurm: what is asked before they are submitted, how they are waited for, and how a job whose
time is up goes on. Submitit, behind `hydra/launcher=slurm`, submits them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from submitit import JobEnvironment
from submitit.core.utils import UncompletedJobError
from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

from esc_lab.config import Config
from esc_lab.errors import UserError, list_names, nearest
from esc_lab.runs.environment import first_process
from esc_lab.runs.signals import TERMINATED

_SIGNAL = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")  # which Slurm sends signal_delay_s before a job's time is up
_SEVERAL = ("sft", "cso")  # stages whose training several processes can share
_POLL_S = 2.0
_ASK_S = 60.0  # most between two questions to a busy controller

_submitit: Any = None  # its handler of the signal
_time_is_up = False


class QueueWatcher(SlurmInfoWatcher):
    """Whether jobs have left the queue, by `squeue`.

    Submitit asks `sacct`, which needs a database that not every cluster has: a job that died would be waited for
    without end.
    """

    def _make_command(self) -> list[str] | None:
        return _SQUEUE if self._registered - self._finished else None

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        queued = _read_queue(string.decode() if isinstance(string, bytes) else string)
        return {job: {"State": "RUNNING" if job in queued else "ENDED"} for job in self._registered}


_SQUEUE = ["squeue", "--me", "--noheader", "--array", "--format=%i %T"]


def _read_queue(text: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line)


def check_cluster(launcher: Any, stage: str) -> None:
    """Whether Slurm is there, has the partition, and starts as many processes of the stage as can work together.

    Args:
        launcher: the settings in `hydra.launcher`.

    Raises:
        UserError: it does not.
    """
    tasks = launcher.nodes * launcher.tasks_per_node
    if tasks > 1 and stage not in _SEVERAL:
        where = f"hydra.launcher.nodes={launcher.nodes}, hydra.launcher.tasks_per_node={launcher.tasks_per_node}"
        fix = f"leave them at 1; several processes share the training of stage={' or stage='.join(_SEVERAL)}"
        raise UserError(f"stage={stage} runs in one process", where=where, fix=fix)
    try:
        asked = subprocess.run(["sinfo", "--noheader", "--format=%R"], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        fix = "start it where sbatch works, or hydra/launcher=processes"
        raise UserError("no Slurm on this machine: there is no sinfo", where="hydra/launcher=slurm", fix=fix) from error
    if asked.returncode:
        raise _no_answer(asked.stderr, "sinfo")
    partitions = sorted(set(asked.stdout.split()))
    for name in (launcher.partition or "").split(","):
        if name and name not in partitions:
            what = f"no partition '{name}'{nearest(name, partitions)}"
            fix = f"choose of {list_names(partitions, 20)}"
            raise UserError(what, where=f"hydra.launcher.partition={launcher.partition}", fix=fix)
    SlurmJob.watcher = QueueWatcher(delay_s=int(_ASK_S))


def _no_answer(said: str, command: str) -> UserError:
    reason = (said.strip().splitlines() or [f"{command} failed"])[-1]
    fix = f"see that {command} works here"
    return UserError(f"Slurm does not answer: {reason}", where="hydra/launcher=slurm", fix=fix)


def queued_jobs(directory: Path) -> dict[str, str]:
    """The jobs of a multirun that wait or run in Slurm, by number `ARRAY_INDEX`, with their states.

    Empty where there is no Slurm.

    Raises:
        UserError: it does not answer.
    """
    own = {path.name.partition("_")[0] for path in (directory / ".submitit").glob("[0-9]*")}
    if not own:
        return {}
    try:
        asked = subprocess.run(_SQUEUE, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return {}
    if asked.returncode:
        raise _no_answer(asked.stderr, "squeue")
    return {job: state for job, state in _read_queue(asked.stdout).items() if job.partition("_")[0] in own}


def refuse_twice(directory: Path) -> None:
    """A multirun does not go on while Slurm still has jobs of it: they would run twice.

    Raises:
        UserError: it has.
    """
    if left := queued_jobs(directory):
        fix = f"wait for them, or scancel {_arrays(left)}"
        raise UserError(f"jobs of it are still with Slurm: {list_names([*left], 5)}", where=str(directory), fix=fix)


def _arrays(jobs: Iterable[str]) -> str:
    return " ".join(sorted({job.partition("_")[0] for job in jobs}))


def explain_end(directory: Path, failure: BaseException | None) -> BaseException | None:
    """What is left of the failure of a launcher, when it has been waited for what goes on without it.

    A job whose process died ends the launcher; the others go on, and are waited for. Where this process is to end, it
    says which jobs go on.
    """
    if isinstance(failure, UncompletedJobError):
        text = str(failure)
        if "has not produced any output" not in text and not text.startswith("Job (task="):
            reason = (text.strip().splitlines() or ["no word of sbatch"])[-1].removeprefix("sbatch: error: ")
            fix = "change hydra.launcher.*; resume=auto goes on with this multirun"
            return UserError(f"Slurm refused the jobs: {reason}", where="hydra/launcher=slurm", fix=fix)
        try:
            while _may_be_queued(directory):
                time.sleep(_POLL_S)
        except (KeyboardInterrupt, SystemExit) as stop:
            return explain_end(directory, stop)
        return None  # the table tells
    if isinstance(failure, KeyboardInterrupt | SystemExit):
        ask = f"python -m esc_lab.cli.jobs {directory}"
        try:
            if left := queued_jobs(directory):
                end = f"scancel {_arrays(left)}"
                print(f"{len(left)} jobs stay with Slurm: {ask} tells of them, {end} ends them", file=sys.stderr)
        except UserError as error:
            print(f"jobs may be with Slurm still ({error.message}): {ask} tells of them", file=sys.stderr)
    return failure


def _may_be_queued(directory: Path) -> bool:
    """Also where Slurm does not answer: a controller that is restarted still has its jobs."""
    try:
        return bool(queued_jobs(directory))
    except UserError:
        return True


def is_restarted() -> bool:
    """Whether Slurm has started this job before."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def count_tasks() -> int:
    """Processes that Slurm has started for this job."""
    return int(os.environ.get("SLURM_NTASKS", "1"))


def share_training(settings: Config) -> Config:
    """A job of several processes: each is one of the training's, as many on a node as Slurm has started there.

    Nothing is taken from earlier runs: all processes start together, and must all train.
    """
    devices = os.environ.get("SLURM_NTASKS_PER_NODE", "1")
    return replace(settings, reuse=False, trainer=replace(settings.trainer, devices=devices))


@contextmanager
def end_before_time() -> Iterator[None]:
    """In this block Slurm's signal that the time of this job is up ends the run like SIGTERM; `requeue` may follow.

    Submitit alone would queue the job again at once, wherever the run is, and lose what came after the last checkpoint.
    Of several processes the first ends at once: they may be at different places, and Slurm ends the others.
    """
    global _submitit, _time_is_up

    def end(number: int, frame: FrameType | None) -> None:
        global _time_is_up
        _time_is_up = True
        if count_tasks() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        elif first_process():
            raise SystemExit(TERMINATED)

    _submitit, _time_is_up = signal.signal(_SIGNAL, end), False
    try:
        yield
    finally:
        signal.signal(_SIGNAL, _submitit)


def requeue() -> str | None:
    """Put this job back into the queue if its time is up: the reason why not, empty if it is there, None if it is not.

    Submitit counts how often that was, up to hydra.launcher.max_num_timeout.
    """
    if not _time_is_up:
        return None
    try:
        _submitit(_SIGNAL, None)
    except (UncompletedJobError, subprocess.SubprocessError, OSError) as error:
        return f"its time was up. {error}"
    except SystemExit:
        pass
    return ""
