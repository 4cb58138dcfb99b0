"""What the training modules share: optimizer, schedule, a step over several rows, checkpoints of trained weights."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from transformers import get_scheduler

from esc_lab.config import OptimizerConfig, SchedulerConfig

_SCHEDULES = {
    "constant": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_restarts": "cosine_with_restarts",
}


def _return_freed_memory() -> None:
    """Give freed memory back. Rows differ in length, so glibc's heap fragments: without this it grew to 10 GB."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in every C library
        if trim:
            trim(0)


class TrainingModule(pl.LightningModule):
    """A LightningModule whose batch is a whole optimizer step.

    Subclasses call `optimize` with the summed loss of each row, already divided by the step's total weight: the
    gradient is then the mean over the step whatever the packing or the number of processes.
    """

    def __init__(
        self, model: Any, optimizer: OptimizerConfig, scheduler: SchedulerConfig, gradient_clip: float
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the trained weights only
        self.model = model
        self.optimizer_settings, self.scheduler_settings = optimizer, scheduler
        self.gradient_clip = gradient_clip

    def optimize(self, losses: Iterable[Tensor], rows: int, tokens: int) -> float:
        """One optimizer step over lazily computed row losses; returns their sum on this process.

        Args:
            losses: loss of each row, computed when asked for, so that one row's graph exists at a time.
            rows: number of losses.
            tokens: tokens of the rows, for the throughput in the log.
        """
        started = time.perf_counter()
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        total = 0.0
        for number, loss in enumerate(losses):
            # DDP averages gradients over processes; the loss is a sum over them.
            with nullcontext() if number + 1 == rows else self._no_sync():
                self.manual_backward(loss * self.trainer.world_size)
            total += float(loss.detach())
        if self.gradient_clip:
            self.clip_gradients(optimizer, gradient_clip_val=self.gradient_clip, gradient_clip_algorithm="norm")
        optimizer.step()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        self.log("train/lr", float(schedule.get_last_lr()[0]))
        if self.device.type == "cpu":
            _return_freed_memory()
        self.log("tokens_per_s", tokens / (time.perf_counter() - started), prog_bar=True)
        return total

    def _no_sync(self) -> Any:
        strategy_model: Any = self.trainer.strategy.model
        return strategy_model.no_sync() if hasattr(strategy_model, "no_sync") else nullcontext()

    def configure_optimizers(self) -> Any:
        settings = self.optimizer_settings
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer: torch.optim.Optimizer
        if settings.name == "sgd":
            optimizer = torch.optim.SGD(
                parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
            )
        else:
            optimizer = torch.optim.AdamW(
                parameters,
                lr=settings.lr,
                betas=(settings.betas[0], settings.betas[1]),
                eps=settings.eps,
                weight_decay=settings.weight_decay,
            )
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        cycles = (
            {"num_cycles": self.scheduler_settings.cycles}
            if self.scheduler_settings.name == "cosine_restarts"
            else None
        )
        schedule = get_scheduler(
            _SCHEDULES[self.scheduler_settings.name],
            optimizer,
            num_warmup_steps=round(self.scheduler_settings.warmup * steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=cycles,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name in trained}
