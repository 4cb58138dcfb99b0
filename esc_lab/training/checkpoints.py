"""Checkpoints of a training in progress: when they are written, what they hold, how another run goes on from one."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from esc_lab.artifacts import replace_file
from esc_lab.errors import UserError
from esc_lab.models.sharded import local_part
from esc_lab.runs.layout import SHARDS
from esc_lab.runs.signals import sigterm_waits
from esc_lab.training.processes import identify_dialogues

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their target and renames them, so that a target is whole at any time.

    Lightning's own way is a temporary file in the system's directory for such, and a move. Where that is another file
    system the move is a copy, which can be cut short.
    """

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Raises UserError where several processes have written it, each its part."""
        checkpoint = super().load_checkpoint(path, map_location, weights_only)
        if SHARDS in checkpoint:
            fix = "go on with trainer.strategy=fsdp2 (on any number of devices), or start anew with resume=null"
            raise UserError("it was written by trainer.strategy=fsdp2", where=str(path), fix=fix)
        return checkpoint

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(target) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # the latter by torch's own writer
            reason = getattr(error, "strerror", None) or f"is the disk full? {str(error).splitlines()[0]}"
            fix = "make room there, or choose another output_root"
            raise UserError(f"cannot write the checkpoint: {reason}", where=str(path), fix=fix) from error


class LastCheckpoint(Callback):
    """Keeps a checkpoint of the whole training state, from which another run goes on exactly.

    It is written at the beginning of a step, when all that belongs to the steps before is done (validation, best
    weights, early stopping, log): every `every` steps and after each validation. A training on one process that is
    ended by SIGTERM or Ctrl-C writes it once more, but not before a validation that is due has come to its end: no
    resumed run would make up for it. Weights that are not finite are not written.

    The loop counters in it are set to what they are between two steps. Lightning saves them as they are in the middle
    of one, and for several such places it then repeats or leaves out a validation.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self.newest: Path | None = None  # the file, or that which the run goes on from
        self.step = 0  # of the newest checkpoint
        self._validated = False
        self._validating = False
        self._between_steps = False  # weights, optimizer and schedule all belong to the same step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The directory of a training that has begun is kept, whatever ends it; that of a refused one is not.
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        # The step that loggers see. Lightning counts one too many where a restart falls on a validation.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        self._between_steps = True
        if self._validated or trainer.global_step % self.every == 0:
            self._write(trainer)
        self._validated = False
        if sigterm_waits() and trainer.world_size == 1:  # it came before Lightning listened
            raise SIGTERMException

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self._between_steps = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validating = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated, self._validating = True, False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, KeyboardInterrupt | SIGTERMException):
            return
        # Lightning waits for the end of a step before it obeys SIGTERM. Several processes may be at different places.
        # In the middle of a validation it does not wait.
        between_steps = self._between_steps or isinstance(exception, SIGTERMException)
        if between_steps and not self._validating and trainer.world_size == 1 and not trainer.fit_loop.done:
            self._write(trainer)
        log.warning(
            "interrupted after step %d; last checkpoint, for resume=auto: %s", trainer.global_step, self.describe()
        )

    def describe(self) -> str:
        """Where the newest checkpoint is, for messages."""
        return f"{self.newest} (step {self.step})" if self.newest else "there is none yet"

    def _write(self, trainer: pl.Trainer) -> None:
        if trainer.global_step == self.step:
            return
        trained = [parameter for parameter in trainer.lightning_module.parameters() if parameter.requires_grad]
        finite = all(bool(local_part(parameter).isfinite().all()) for parameter in trained)
        if not trainer.strategy.reduce_boolean_decision(finite):
            return  # the next loss will say so
        trainer.save_checkpoint(self.path, weights_only=False)
        self.newest, self.step = self.path, trainer.global_step
        for logger in trainer.loggers:
            logger.save()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["dialogues"] = identify_dialogues(trainer)
        _set_position(checkpoint["loops"]["fit_loop"], trainer.global_step, int(trainer.num_training_batches))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        source = Path(str(trainer.ckpt_path))
        if checkpoint["dialogues"] != identify_dialogues(trainer):
            fix = "bring the data back, or start anew with resume=null"
            raise UserError("the training dialogues have changed since it was written", where=str(source), fix=fix)
        self.newest, self.step = source, checkpoint["global_step"]
        best = trainer.checkpoint_callback
        if isinstance(best, ModelCheckpoint):
            _take_over_best(checkpoint["callbacks"][best.state_key], source.parent, best, trainer.is_global_zero)


def _set_position(loops: dict[str, Any], step: int, epoch_steps: int) -> None:
    """Set the counters of Lightning's loops to what they are after `step` batches, before the next one is asked for."""
    epoch, batch = divmod(step, epoch_steps)
    epochs = {"ready": epoch + 1, "started": epoch + 1, "processed": epoch, "completed": epoch}
    loops["epoch_progress"] = {"total": dict(epochs), "current": dict(epochs)}
    loops["epoch_loop.batch_progress"] = {
        "total": dict.fromkeys(epochs, step),
        "current": dict.fromkeys(epochs, batch),
        "is_last_batch": False,
    }


def _take_over_best(state: dict[str, Any], source: Path, best: ModelCheckpoint, first_process: bool) -> None:
    """Copy the best weights of the interrupted run and let the loaded state of `ModelCheckpoint` name the copy.

    Otherwise Lightning forgets the best score when the directory is another one.
    """
    state["dirpath"] = best.dirpath
    if not state["best_model_path"]:
        return
    assert best.dirpath is not None
    name = Path(state["best_model_path"]).name
    old, new = source / name, Path(best.dirpath) / name
    if not old.exists():
        raise UserError("the best weights so far are missing", where=str(old), fix="start anew with resume=null")
    if first_process and old.resolve() != new.resolve():
        new.parent.mkdir(parents=True, exist_ok=True)
        for shards in source.glob(f"{name}.*/"):
            shutil.copytree(shards, new.with_name(shards.name), dirs_exist_ok=True)
        with replace_file(new) as temporary:
            shutil.copyfile(old, temporary)
    state |= {
        "best_model_path": str(new),
        "kth_best_model_path": str(new),
        "best_k_models": {str(new): state["best_model_score"]},
    }
