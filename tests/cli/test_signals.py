"""Signals to the command line: how runs, jobs and multiruns end, and what they leave."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from esc_lab.runs import manifest
from tests.cli.test_run import finished_run
from tests.conftest import HANGS_S, ROOT


@pytest.fixture
def good(tmp_path) -> Path:
    return finished_run(tmp_path / "good", **{"strategy/Q": 0.25})


@pytest.fixture
def endless(tmp_path) -> list[Path]:
    """Runs that cannot be read to their end: nobody writes into the pipes."""
    runs = [finished_run(tmp_path / f"endless{number}") for number in range(4)]
    for run in runs:
        (run / "metrics.json").unlink()
        os.mkfifo(run / "metrics.json")
    return runs


@contextmanager
def started(place: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(ROOT / "run.py"), "stage=compare", "logger=none", *words]
    with subprocess.Popen(
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def wait_for(state: Callable[[], object]) -> None:
    until = time.monotonic() + HANGS_S
    while not state():
        assert time.monotonic() < until
        time.sleep(0.05)


def jobs(place: Path) -> dict[int, str]:
    return {job.number: job.status for path in place.glob("outputs/multirun/*") for job in manifest.read_jobs(path)}


def workers(process: subprocess.Popen[str]) -> list[int]:
    children = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    return [child for child in children if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()]


def sweep(*runs: Path) -> list[str]:
    return ["-m", "compare.runs=" + ",".join(f"[{run}]" for run in runs), "hydra.launcher.n_jobs=2"]


def test_sigterm_to_a_run(tmp_path, endless):
    with started(tmp_path, f"compare.runs=[{endless[0]}]") as process:
        wait_for(lambda: list(tmp_path.glob("outputs/compare/*/environment.json")))
        time.sleep(0.5)  # a signal before it reads ends it in the same way
        process.terminate()
        _, errors = process.communicate(timeout=HANGS_S)
    assert process.returncode == 143, errors
    assert errors.splitlines()[-1] == "error: ended by SIGTERM"
    assert "Traceback" not in errors
    (run,) = tmp_path.glob("outputs/compare/*")
    assert "ended by SIGTERM" in (run / "run.log").read_text()
    assert not (run / "metrics.json").exists()


def test_sigterm_to_a_worker_fails_its_job_alone(tmp_path, good, endless):
    with started(tmp_path, *sweep(*endless[:2], good)) as process:
        wait_for(lambda: jobs(tmp_path) == {0: "running", 1: "running"})
        first, second = workers(process)
        os.kill(first, signal.SIGTERM)
        wait_for(lambda: sorted(jobs(tmp_path).values()) == ["done", "failed", "running"])
        os.kill(second, signal.SIGTERM)
        output, errors = process.communicate(timeout=HANGS_S)
    assert process.returncode == 1, errors
    assert jobs(tmp_path) == {0: "failed", 1: "failed", 2: "done"}
    assert len(re.findall("ended by SIGTERM", output)) == 2
    assert "2 of 3 jobs failed" in errors


def test_sigterm_to_a_multirun_ends_its_jobs(tmp_path, endless):
    with started(tmp_path, *sweep(*endless)) as process:
        wait_for(lambda: jobs(tmp_path) == {0: "running", 1: "running"})
        children = workers(process)
        process.terminate()
        output, errors = process.communicate(timeout=HANGS_S)
    assert process.returncode == 143, errors
    assert jobs(tmp_path) == {0: "failed", 1: "failed"}
    assert len(re.findall("ended by SIGTERM", output)) == 2
    assert len(re.findall("│ +not started", output)) == 2  # rows; the note below names it too
    assert "Traceback" not in errors
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_jobs_end_with_the_process_of_their_multirun(tmp_path, endless):
    with started(tmp_path, *sweep(*endless)) as process:
        wait_for(lambda: jobs(tmp_path) == {0: "running", 1: "running"})
        children = workers(process)
        process.kill()
        process.wait()
        wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    assert jobs(tmp_path) == {0: "failed", 1: "failed"}  # and the others are never started


def test_sigterm_to_jobs_one_after_the_other(tmp_path, endless):
    with started(tmp_path, *sweep(*endless[:2])[:2]) as process:
        wait_for(lambda: jobs(tmp_path) == {0: "running"})
        process.terminate()
        output, errors = process.communicate(timeout=HANGS_S)
    assert process.returncode == 143, errors
    assert jobs(tmp_path) == {0: "failed"}
    assert "ended by SIGTERM" in output
    assert "not started" in output
