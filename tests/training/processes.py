"""Trainings of several processes on this machine (gloo), one after the other, in processes that have torch imported."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from esc_lab.training.module import TrainingModule
from tests.conftest import HANGS_S, PROCESSES
from tests.e2e.conftest import execute


def train_together(root: Path, *trainings: tuple[str, ...], world: int = 2, kill_at: int = -1) -> None:
    """Run the trainings with these words, each in the directory that its `hydra.run.dir` names.

    Args:
        kill_at: the step (from 0) of the last training before which all processes are killed.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in trainings]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    plan = [(port, words) for port, words in zip(ports, trainings, strict=True)]
    logs = [root / f"process_{rank}.log" for rank in range(world)]
    started = []
    for rank, log in enumerate(logs):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "NODE_RANK": "0"}
        process = PROCESSES.Process(target=_train, args=(root, log, place, plan, kill_at), daemon=True)
        process.start()
        started.append(process)
    expected, deadline = 0 if kill_at < 0 else -signal.SIGKILL, time.monotonic() + HANGS_S
    while {process.exitcode for process in started} <= {None, expected} and time.monotonic() < deadline:
        if all(process.exitcode == expected for process in started):
            return
        time.sleep(0.02)
    for process in started:  # the others would wait for the one that has failed
        process.kill()
    raise AssertionError("\n".join(log.read_text() for log in logs))


def _train(root: Path, log: Path, place: dict[str, str], plan: list[tuple[int, tuple[str, ...]]], kill_at: int) -> None:
    """What each of the processes does."""
    os.environ |= {**place, "MASTER_ADDR": "127.0.0.1"}
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    for number, (port, words) in enumerate(plan):
        os.environ["MASTER_PORT"] = str(port)
        if number + 1 == len(plan) and kill_at >= 0:
            _kill_before(TrainingModule, kill_at)
        outcome = execute(root, *words)
        assert outcome.status == 0, outcome.errors
        if torch.distributed.is_initialized():  # a process but the first leaves that to its end
            torch.distributed.destroy_process_group()


def _kill_before(module: type, step: int) -> None:
    optimize = module.optimize

    def killed(self, *arguments):
        if self.trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return optimize(self, *arguments)

    module.optimize = killed
