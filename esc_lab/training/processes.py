"""What the processes of a training or an evaluation do together: tell each other, do the same work, and end."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback

from esc_lab.artifacts import fingerprint
from esc_lab.errors import UserError
from esc_lab.runs.identity import code_version


def gather_objects(own: Any) -> list[Any]:
    """What each process brings; of one process its own."""
    if not dist.is_initialized():
        return [own]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, own)
    return values


def leave_process_group(trainer: pl.Trainer) -> None:
    """The end of the processes' common work, if there was any.

    Gloo aborts a process whose peers end before it lets go of them: the first process does so, the others wait for it.
    """
    if not dist.is_initialized():
        return
    if trainer.world_size == 1:
        dist.destroy_process_group()
        return
    store = dist.distributed_c10d._get_default_store()
    dist.barrier()
    if trainer.is_global_zero:
        dist.destroy_process_group()
        store.set("first process has left", "")
    else:
        with suppress(RuntimeError):  # it has ended already
            store.wait(["first process has left"], timedelta(minutes=5))


def stop_together(trainer: pl.Trainer, error: UserError) -> NoReturn:
    """End all processes; the first one raises the error, which is thus told once."""
    leave_process_group(trainer)
    if not trainer.is_global_zero:
        raise SystemExit
    raise error


def identify_dialogues(trainer: pl.Trainer, split: str = "train") -> str:
    """Identifies the dialogues of a split and their order."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return fingerprint([dialogue.id for dialogue in data.splits[split]])


class SameWork(Callback):
    """Refuses processes with other code or other dialogues than the first, before the first step or decision."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._compare(trainer, "training dialogues", "train")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._compare(trainer, "dialogues", trainer.datamodule.eval_split)  # type: ignore[attr-defined]

    def _compare(self, trainer: pl.Trainer, name: str, split: str) -> None:
        if trainer.world_size == 1:
            return
        works = gather_objects({"code": code_version(self.stage), name: identify_dialogues(trainer, split)})
        for rank, work in enumerate(works):
            if other := [what for what in work if work[what] != works[0][what]]:
                message = f"process {rank} of {len(works)} has other {' and '.join(other)} than the first"
                fix = "install the same version of esc-lab, and copy the data, to all machines"
                stop_together(trainer, UserError(message, where=f"stage={self.stage}", fix=fix))
