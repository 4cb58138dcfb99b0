"""What the training modules share: optimizer, schedule, a step over several rows, checkpoints of trained weights."""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor
from transformers import get_scheduler

from esc_lab.config.training import OptimizerConfig, SchedulerConfig
from esc_lab.errors import UserError
from esc_lab.models.sharded import is_sharded, shard_model, whole
from esc_lab.seeds import derive_seed
from esc_lab.training.checkpoints import LastCheckpoint
from esc_lab.training.processes import stop_together
from esc_lab.training.sharding import ShardedStrategy

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

    Args:
        gradient_clip: largest global norm of the gradient; 0 = any.
        seed: the run's seed. Dropout draws anew from it in each step, so that a resumed training draws the same.
    """

    def __init__(
        self, model: Any, optimizer: OptimizerConfig, scheduler: SchedulerConfig, gradient_clip: float, seed: int
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold the trained weights only
        self.model = model
        self.optimizer_settings, self.scheduler_settings = optimizer, scheduler
        self.gradient_clip, self.seed = gradient_clip, seed

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ShardedStrategy) and not is_sharded(self.model):
            shard_model(self.model, self.trainer.strategy.device_mesh["data_parallel"])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(derive_seed(self.seed, "step", self.trainer.global_step, self.global_rank))

    def optimize(self, losses: Iterable[Tensor], rows: int, tokens: int, dialogues: Sequence[str]) -> float:
        """One optimizer step over lazily computed row losses; returns their sum on this process.

        Args:
            losses: loss of each of the `rows`, computed when asked for, so that one row's graph exists at a time.
            tokens: of the rows, for the throughput in the log.
            dialogues: ids of the step's dialogues, for the error message.

        Raises:
            UserError: the loss or the gradient is not finite; the step has not been taken then.
        """
        started = time.perf_counter()
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        # Numbers stay where they are computed until the step is: a GPU would be waited for at each.
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, loss in enumerate(losses):
            # DDP and FSDP2 average gradients over processes; the loss is a sum over them.
            with nullcontext() if number + 1 == rows else self._no_sync():
                self.manual_backward(loss * self.trainer.world_size)
            total += loss.detach()
        scale = self._scaler.get_scale() if self._scaler else 1.0  # float16 gradients are still scaled
        loss_sum, norm = torch.stack([total, self._clip_gradient(scale).double()]).tolist()
        norm /= scale
        self._stop_unless_finite(loss_sum, norm, dialogues)
        optimizer.step()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        self.log("train/lr", float(schedule.get_last_lr()[0]))
        self.log("train/grad_norm", norm)
        if self.device.type == "cpu":
            _return_freed_memory()
        self.log("tokens_per_s", tokens / (time.perf_counter() - started), prog_bar=True)
        return float(loss_sum)

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        """The gradient scaler of float16 training."""
        precision = self.trainer.precision_plugin
        return precision.scaler if isinstance(precision, MixedPrecision) else None

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def _clip_gradient(self, scale: float) -> Tensor:
        """Clip the global norm of the gradient, which is `scale` times too large; returns its norm before, as it is."""
        return whole(torch.nn.utils.clip_grad_norm_(self._trained(), (self.gradient_clip or math.inf) * scale))

    def _stop_unless_finite(self, loss: float, norm: float, dialogues: Sequence[str]) -> None:
        # The scaler skips steps with overflown gradients by itself, until it has found a scale that fits.
        finite = math.isfinite(loss) and (self._scaler is not None or math.isfinite(norm))
        if self.trainer.strategy.reduce_boolean_decision(finite):
            return
        callbacks: Any = self.trainer.callbacks  # type: ignore[attr-defined]
        last = next((callback for callback in callbacks if isinstance(callback, LastCheckpoint)), None)
        saved = last.describe() if last else "there is none"
        error = UserError(
            f"loss {loss:g}, gradient norm {norm:g}; the step was not taken. Last checkpoint: {saved}",
            where=f"optimizer step {self.trainer.global_step + 1}, dialogues {', '.join(dialogues)}",
            fix="lower optimizer.lr or trainer.gradient_clip, or compute in float32 (model.dtype, trainer.precision)",
        )
        stop_together(self.trainer, error)

    def _no_sync(self) -> Any:
        strategy_model: Any = self.trainer.strategy.model
        return strategy_model.no_sync() if hasattr(strategy_model, "no_sync") else nullcontext()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, in groups with settings of their own; the first group has the configured learning rate."""
        return [{"params": self._trained()}]

    def configure_optimizers(self) -> Any:
        settings, parameters = self.optimizer_settings, self.parameter_groups()
        common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
        optimizer: torch.optim.Optimizer
        if settings.name == "sgd":
            optimizer = torch.optim.SGD(parameters, momentum=settings.momentum, **common)
        else:
            first, second = settings.betas
            optimizer = torch.optim.AdamW(parameters, betas=(first, second), eps=settings.eps, **common)
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        planned = self.scheduler_settings
        options = {"num_cycles": planned.cycles} if planned.name == "cosine_restarts" else None
        warmup = round(planned.warmup * steps)
        schedule = get_scheduler(_SCHEDULES[planned.name], optimizer, warmup, steps, options)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name in trained}
