"""Multiruns in a real Slurm: what jobs share, how they fail, how they go on, and what their launcher's end means.

Run where `slurm-wlm` and `munge` are installed, as root: `python -m pytest -m slurm tests/slurm`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from esc_lab.runs import manifest
from tests.cli.test_run import finished_run
from tests.conftest import CACHE, HANGS_S, ROOT
from tests.e2e.conftest import SEARCH, execute
from tests.slurm.cluster import start_cluster, why_not

REASON = why_not()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(REASON is not None, reason=REASON or "")]

SLURM = ("-m", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1", "logger=none")
TRAINING = (
    "stage=sft", "model=tiny_llama", "data.limit={train: 4, val: 1, test: 1}", "reuse=false",
    "trainer.max_epochs=-1", "allow=[tests]", f"cache_dir={CACHE}",
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[Mapping[str, str]]:
    with tempfile.TemporaryDirectory(prefix="slurm") as directory:  # a socket's path is short
        try:
            stack = start_cluster(Path(directory), nodes=2)
            variables = stack.__enter__()
        except RuntimeError as error:
            pytest.skip(str(error))
        try:
            yield {**os.environ, **variables, "MASTER_ADDR": "127.0.0.1"}
        finally:
            stack.__exit__(None, None, None)


def launch(place: Path, variables: Mapping[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *SLURM, *words],
        cwd=place, env=dict(variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(place: Path, variables: Mapping[str, str], *words: str) -> tuple[int, str, str]:
    process = launch(place, variables, *words)
    output, errors = process.communicate(timeout=HANGS_S)
    return process.returncode, output, errors


def ask(variables: Mapping[str, str], *command: str) -> str:
    return subprocess.run(command, env=dict(variables), capture_output=True, text=True, check=True).stdout


def jobs(place: Path) -> list[manifest.Job]:
    return [job for path in place.glob("outputs/multirun/*") for job in manifest.read_jobs(path)]


def wait_for(state: Callable[[], object]) -> None:
    until = time.monotonic() + HANGS_S
    while not state():
        assert time.monotonic() < until
        time.sleep(0.1)


def find_process(place: Path, index: int) -> int:
    """The process of a job of the multirun there, by its place in the array."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            job = f"SLURM_ARRAY_TASK_ID={index}".encode() in (path / "environ").read_bytes().split(b"\0")
            words = (path / "cmdline").read_bytes().split(b"\0")
            if job and b"submitit.core._submit" in words and b"srun" not in words and str(place).encode() in words[-2]:
                return int(path.name)
    raise AssertionError("no such process")


def compare(*runs: Path) -> tuple[str, str]:
    return "stage=compare", "compare.runs=" + ",".join(f"[{run}]" for run in runs)


@pytest.fixture
def good(tmp_path) -> Path:
    return finished_run(tmp_path / "good", **{"strategy/Q": 0.25})


@pytest.fixture
def endless(tmp_path) -> Path:
    """A run that cannot be read to its end, as nobody writes into the pipe."""
    run = finished_run(tmp_path / "endless")
    (run / "metrics.json").unlink()
    os.mkfifo(run / "metrics.json")
    return run


def test_what_slurm_does_not_have(tmp_path, cluster, good):
    status, _, errors = finish(tmp_path, cluster, *compare(good), "hydra.launcher.partition=mian")
    assert status == 1
    assert errors == (
        "error: hydra.launcher.partition=mian: no partition 'mian'; did you mean 'main'? Fix: choose of main, other\n"
    )
    assert not list(tmp_path.glob("outputs/*/*"))
    status, _, errors = finish(tmp_path, cluster, *compare(good), "hydra.launcher.gpus_per_node=9")
    assert status == 1
    assert "Slurm refused the jobs: Batch job submission failed: Requested node configuration" in errors


def test_what_is_asked_for_arrives(tmp_path, cluster, good):
    words = ("hydra.launcher.cpus_per_task=2", "hydra.launcher.partition=other", "hydra.launcher.timeout_min=90")
    status, _, errors = finish(tmp_path, cluster, *compare(good), *words)
    assert status == 0, errors
    (job,) = jobs(tmp_path)
    assert json.loads((job.directory / "environment.json").read_text())["cpus"] == 2
    (script,) = tmp_path.glob("outputs/multirun/*/.submitit/*/*.sh")
    asked = {line.removeprefix("#SBATCH --") for line in script.read_text().splitlines() if "#SBATCH" in line}
    assert asked >= {
        "nodes=1", "ntasks-per-node=1", "gpus-per-node=1", "cpus-per-task=2", "mem=1GB", "partition=other", "time=90",
        "signal=USR2@120",
    }  # fmt: skip


def test_a_job_that_fails_and_one_that_is_killed(tmp_path, cluster, good, endless):
    """The others go on, and the launcher waits for them."""
    bad = finished_run(tmp_path / "bad")
    process = launch(tmp_path, cluster, *compare(endless, bad, good))
    wait_for(lambda: {job.number: job.status for job in jobs(tmp_path)}.get(0) == "running")
    os.kill(find_process(tmp_path, 0), signal.SIGKILL)  # as for its memory
    output, errors = process.communicate(timeout=HANGS_S)
    assert process.returncode == 1, errors
    assert [job.status for job in jobs(tmp_path)] == ["running", "failed", "done"]
    assert "its process ended without a word" in " ".join(output.replace("│", " ").split())
    assert "2 of 3 jobs failed" in errors
    assert "Traceback" not in errors
    assert "sacct" not in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_jobs_live_on_without_their_launcher(number, tmp_path, cluster, good, endless):
    process = launch(tmp_path, cluster, *compare(endless, good))
    wait_for(lambda: {job.number: job.status for job in jobs(tmp_path)}.get(0) == "running")
    process.send_signal(number)
    output, errors = process.communicate(timeout=HANGS_S)
    if number == signal.SIGTERM:
        assert process.returncode == 143, errors
        assert "under way" in output
        assert "jobs stay with Slurm: " in errors
    (directory,) = tmp_path.glob("outputs/multirun/*")
    command = (sys.executable, "-m", "esc_lab.cli.jobs", str(directory))
    assert "_0 running" in ask(cluster, *command)
    with (endless / "metrics.json").open("w") as pipe:
        pipe.write('{"strategy/Q": 0.5}')
    wait_for(lambda: [job.status for job in jobs(tmp_path)] == ["done", "done"])
    wait_for(lambda: not ask(cluster, "squeue", "-h"))
    told = ask(cluster, *command)
    assert "in Slurm's queue: none" in told
    assert "2 of 2 jobs are done" in told


def test_a_job_that_slurm_starts_again(tmp_path, cluster, endless):
    """As after a preemption, or the end of its node: nobody takes the end of its process for that of the job."""
    process = launch(tmp_path, cluster, *compare(endless))
    wait_for(lambda: [job.status for job in jobs(tmp_path)] == ["running"])
    (number,) = ask(cluster, "squeue", "-h", "-o", "%i").split()
    ask(cluster, "scontrol", "requeue", number)
    wait_for(lambda: [job.error for job in jobs(tmp_path)] == ["ended by SIGTERM"])
    wait_for(lambda: [job.status for job in jobs(tmp_path)] == ["running"])
    with (endless / "metrics.json").open("w") as pipe:
        pipe.write('{"strategy/Q": 0.5}')
    _, errors = process.communicate(timeout=HANGS_S)
    assert process.returncode == 0, errors


def waiting(place: Path, **more: object) -> str:
    """A training that waits before its third step until its time is up."""
    arguments = {"_target_": "tests.slurm.waiting.WaitForSignal", "step": 2, "file": str(place / "waited"), **more}
    return f"trainer.callbacks={{wait: {{{', '.join(f'{key}: {value}' for key, value in arguments.items())}}}}}"


def send_signal(place: Path, variables: Mapping[str, str]) -> None:
    """What Slurm sends `signal_delay_s` before a job's time is up, to a training that waits for it."""
    wait_for((place / "waited").exists)
    (number,) = ask(variables, "squeue", "-h", "-o", "%i").split()
    ask(variables, "scancel", "--signal=USR2", number)
    wait_for(lambda: jobs(place)[0].status == manifest.REQUEUED)


def test_a_training_whose_time_is_up_goes_on_by_itself(tmp_path, cluster):
    """From the step that it was in; it ends as if nothing had happened."""
    words = (*TRAINING, waiting(tmp_path), "trainer.max_steps=5", "trainer.save_every=1000")
    process = launch(tmp_path, cluster, *words)
    send_signal(tmp_path, cluster)
    _, errors = process.communicate(timeout=HANGS_S)
    assert process.returncode == 0, errors
    (job,) = jobs(tmp_path)
    assert job.status == "done"
    log = (job.directory / "run.log").read_text()
    assert "it is in Slurm's queue again" in log
    assert "going on from step 3 of" in log
    whole = execute(tmp_path / "whole", *words)  # its time has been up once
    assert whole.status == 0, whole.errors
    assert weights(job.directory) == weights(whole.path)


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("where", ["hydra.launcher.nodes=2", "trainer.devices=2"])
def test_a_training_of_two_processes_goes_on_by_itself(where, tmp_path, cluster):
    """From its last checkpoint: several processes may be at different places when their time is up."""
    words = (*TRAINING, waiting(tmp_path, obeys="false"), "trainer.max_steps=4", "trainer.save_every=1")
    words += ("data.step_dialogues=2", "trainer.strategy=ddp", "trainer.accelerator=cpu", where)
    process = launch(tmp_path, cluster, *words)
    send_signal(tmp_path, cluster)
    _, errors = process.communicate(timeout=HANGS_S)
    assert process.returncode == 0, errors
    (job,) = jobs(tmp_path)
    assert job.status == "done"
    assert "going on from step 2 of" in (job.directory / "run.log").read_text()
    assert job.metrics is not None
    assert job.metrics["train/steps"] == 4


def test_time_is_up_too_often(tmp_path, cluster, endless):
    words = ("hydra.launcher.max_num_timeout=0", "hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=1")
    process = launch(tmp_path, cluster, *compare(endless), *words)
    wait_for(lambda: [job.status for job in jobs(tmp_path)] == ["running"])
    (number,) = ask(cluster, "squeue", "-h", "-o", "%i").split()
    ask(cluster, "scancel", "--signal=USR2", number)
    _, errors = process.communicate(timeout=HANGS_S)
    assert process.returncode == 1, errors
    (job,) = jobs(tmp_path)
    assert job.status == "failed"
    assert "its time was up. Job not requeued because: timed-out too many times" in job.error


def test_shared_inputs_are_made_once(tmp_path, cluster):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "random_models").symlink_to(CACHE / "random_models")
    words = (
        "stage=pipeline", "pipeline.stages=[search,sft,cso]", "model=tiny_llama", "objective=cso,simpo",
        "trainer.max_steps=1", "evaluate.generation.enabled=false", "data.limit={train: 2, val: 1, test: 2}",
        f"cache_dir={tmp_path}/cache", *SEARCH,
    )  # fmt: skip
    status, _, errors = finish(tmp_path, cluster, *words)
    assert status == 0, errors
    done = jobs(tmp_path)
    assert [job.status for job in done] == ["done"] * 2
    computed = Counter(stage for job in done for stage, reused in (job.stages or {}).items() if not reused)
    assert computed["search"] == computed["sft"] == 1
    assert computed["cso"] == 2
