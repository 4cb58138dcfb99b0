"""What is asked of Slurm before and after jobs are submitted, with commands that answer as it does.

tests/slurm has multiruns in a real one.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from hydra.utils import instantiate
from submitit.core.utils import FailedJobError, UncompletedJobError
from submitit.slurm.slurm import SlurmExecutor

from esc_lab.cli import slurm
from esc_lab.cli.jobs import show_jobs
from esc_lab.errors import UserError
from esc_lab.runs import manifest
from tests.cli.test_sweeps import composed

LAUNCHER = {"nodes": 1, "tasks_per_node": 1, "partition": None}


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """`commands(name, text)` puts a shell script of this name first on the PATH."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    def write(name: str, text: str) -> None:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    return write


def check(stage: str = "sft", **settings: object) -> str:
    with pytest.raises(UserError) as error:
        slurm.check_cluster(SimpleNamespace(**{**LAUNCHER, **settings}), stage)
    return str(error.value)


def test_partitions(commands):
    commands("sinfo", "echo gpu; echo gpu; echo cpu")
    told = check(partition="cpu,pgu")
    assert told == "hydra.launcher.partition=cpu,pgu: no partition 'pgu'; did you mean 'gpu'? Fix: choose of cpu, gpu"
    for partition in (None, "gpu", "cpu,gpu"):
        slurm.check_cluster(SimpleNamespace(**LAUNCHER | {"partition": partition}), "sft")


def test_no_slurm_or_no_answer(commands, monkeypatch):
    commands("sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    assert "Slurm does not answer: slurm_load_partitions: Unable to contact slurm controller" in check()
    monkeypatch.setenv("PATH", "")
    assert check().startswith("hydra/launcher=slurm: no Slurm on this machine: there is no sinfo")


def test_only_a_training_is_shared_by_processes(commands):
    commands("sinfo", "echo gpu")
    told = check("pipeline", tasks_per_node=8)
    assert told == (
        "hydra.launcher.nodes=1, hydra.launcher.tasks_per_node=8: stage=pipeline runs in one process. "
        "Fix: leave them at 1; several processes share the training of stage=sft or stage=cso"
    )
    slurm.check_cluster(SimpleNamespace(**LAUNCHER | {"nodes": 2, "tasks_per_node": 8}), "cso")


def test_jobs_that_are_queued(commands, tmp_path, capsys):
    commands("squeue", "echo '12_0 RUNNING'; echo '12_1 PENDING'; echo '120_0 RUNNING'; echo '7 RUNNING'")
    manifest.write_overrides(tmp_path, ["stage=sft", "seed=1,2"])
    for name in ("12", "12_0", "12_1"):
        (tmp_path / ".submitit" / name).mkdir(parents=True)
    assert slurm.queued_jobs(tmp_path) == {"12_0": "RUNNING", "12_1": "PENDING"}
    assert slurm.queued_jobs(tmp_path / "other") == {}
    with pytest.raises(UserError, match=r"still with Slurm: 12_0, 12_1\. Fix: wait for them, or scancel 12"):
        slurm.refuse_twice(tmp_path)
    slurm.refuse_twice(tmp_path / "other")
    show_jobs(tmp_path)
    assert "in Slurm's queue: 12_0 running, 12_1 pending" in capsys.readouterr().out
    commands("squeue", "echo 'slurm_load_jobs error: Socket timed out' >&2; exit 1")
    with pytest.raises(UserError, match="Slurm does not answer: slurm_load_jobs error: Socket timed out"):
        slurm.refuse_twice(tmp_path)
    show_jobs(tmp_path)
    assert "in Slurm's queue: nobody knows. Slurm does not answer: " in capsys.readouterr().out


def test_jobs_that_have_left_the_queue(commands):
    """Also those that a cluster without accounting, or of another state than submitit knows, would tell nothing of."""
    commands("squeue", "echo '12_0 CONFIGURING'")
    watcher = slurm.QueueWatcher()
    for job in ("12_0", "12_1"):
        watcher.register_job(job)
    assert not watcher.is_done("12_0")
    assert watcher.is_done("12_1")
    commands("squeue", "exit 1")  # a controller that is restarted
    watcher = slurm.QueueWatcher()
    watcher.register_job("12_0")
    assert not watcher.is_done("12_0")


def test_how_a_launcher_ended(commands, tmp_path, capsys):
    (tmp_path / ".submitit" / "12").mkdir(parents=True)
    # It is asked again where it does not answer.
    commands("squeue", f"test -e {tmp_path}/asked && exit 0; touch {tmp_path}/asked; exit 1")
    died = UncompletedJobError("Job 12_0 (task: 0) with path x\nhas not produced any output (state: ENDED)")
    assert slurm.explain_end(tmp_path, died) is None
    refused = slurm.explain_end(tmp_path, FailedJobError("sbatch: error: warned\nsbatch: error: Invalid account"))
    assert isinstance(refused, UserError)
    assert "Slurm refused the jobs: Invalid account" in str(refused)
    other = ValueError("x")
    assert slurm.explain_end(tmp_path, other) is other
    commands("squeue", "echo '12 RUNNING'")
    stop = KeyboardInterrupt()
    assert slurm.explain_end(tmp_path, stop) is stop
    assert "1 jobs stay with Slurm: " in (told := capsys.readouterr().err)
    assert "scancel 12 ends them" in told
    commands("squeue", "exit 1")
    assert slurm.explain_end(tmp_path, stop) is stop
    assert "jobs may be with Slurm still (Slurm does not answer: squeue failed): " in capsys.readouterr().err


def test_what_reaches_sbatch(tmp_path, monkeypatch):
    """Nodes, processes on each and GPUs of a job, as submitit writes them for the settings."""
    words = ["stage=sft", "hydra/launcher=slurm", f"hydra.sweep.dir={tmp_path}", "hydra.launcher.partition=gpu"]
    words += ["hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=8", "hydra.launcher.gpus_per_node=8"]
    (cfg,) = composed(words, hydra=True)
    written: list[str] = []

    def submit(self, command: str):
        text = self._make_submission_file_text(command, "0")
        written.extend(text.splitlines())
        raise FailedJobError("refused")

    monkeypatch.setattr(SlurmExecutor, "_submit_command", submit)
    monkeypatch.setattr(SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    launcher = instantiate(cfg.hydra.launcher)
    launcher.setup(hydra_context=None, task_function=None, config=cfg)
    with pytest.raises(FailedJobError):
        launcher.launch([["seed=1"], ["seed=2"]], 0)
    asked = {line.removeprefix("#SBATCH --") for line in written}
    assert asked >= {
        "nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "cpus-per-task=8", "mem=64GB", "partition=gpu", "time=720",
        "signal=USR2@120", "array=0-1%2", "export SLURM_KILL_BAD_EXIT=1",
    }  # fmt: skip
