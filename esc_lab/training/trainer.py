"""The Lightning trainer of a run, with its progress, and loggers and callbacks, also those of users by `_target_`."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
import transformers
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.strategies import DDPStrategy

from esc_lab.artifacts import write_atomic
from esc_lab.config import TRAININGS, Config
from esc_lab.config.checks import target_problem
from esc_lab.config.files import COMMAND
from esc_lab.config.training import TrainerConfig
from esc_lab.errors import UserError, nearest
from esc_lab.runs.environment import first_process
from esc_lab.runs.layout import CHECKPOINT, ENVIRONMENT
from esc_lab.terminal import Countdown
from esc_lab.tracking.run import current_run
from esc_lab.training.checkpoints import AtomicCheckpointIO, LastCheckpoint
from esc_lab.training.processes import SameWork
from esc_lab.training.sharding import ShardedStrategy

log = logging.getLogger(__name__)
T = TypeVar("T")


def prepare(cfg: Config) -> None:
    """Seeds, and the noise of libraries turned down; the device goes into environment.json.

    Raises:
        UserError: a training or an evaluation asks for more GPUs than there are.
    """
    if cfg.stage in (*TRAININGS, "evaluate"):
        _check_gpus(cfg.trainer)
    pl.seed_everything(cfg.seed, verbose=False)
    quiet_libraries()
    path = Path(cfg.run_dir) / ENVIRONMENT
    environment = json.loads(path.read_text())
    environment["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    environment["threads"] = torch.get_num_threads()
    write_atomic(path, json.dumps(environment, indent=2))


def _check_gpus(settings: TrainerConfig) -> None:
    if settings.accelerator not in ("auto", "gpu", "cuda") or not settings.devices.isdigit():
        return
    found = torch.cuda.device_count()
    if int(settings.devices) > max(found, 1):
        fix = f"trainer.devices={found}" if found else "trainer.devices=1, or trainer.accelerator=cpu for its cores"
        shown = f"this machine shows {found or 'no'} GPUs"
        raise UserError(shown, where=f"trainer.devices={settings.devices}", fix=fix)


def quiet_libraries() -> None:
    """Turn down what libraries say to each other."""
    transformers.utils.logging.disable_progress_bar()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    # Notes of libraries to each other that a user can do nothing about.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",
        ".*does not have many workers.*",
        "Experiment logs directory .* exists and is not empty",
        ".*your dataloader is not resumable.*",  # StepLoader starts at the right step by itself
        "The `srun` command is available on your system but is not used.*",  # where a single run needs none
    ):
        warnings.filterwarnings("ignore", message=message)


# Both count the steps that were done, as the terminal does: Lightning gives loggers the number of the last one, from 0.
class _CSV(CSVLogger):
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        super().log_metrics(metrics, None if step is None else step + 1)


class _WandB(WandbLogger):
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        super().log_metrics(metrics, None if step is None else step + 1)


def _loggers(cfg: Config) -> list[Logger]:
    """The loggers of a training's curves: metrics.csv, the W&B run of the stage, and those of the user's own."""
    if cfg.trainer.fast_dev_run:
        return []
    loggers: list[Logger] = [] if cfg.logger.name == "none" else [_CSV(cfg.run_dir, name="", version="")]
    if cfg.logger.name == "wandb" and (current_run() or not first_process()):
        loggers.append(_WandB(experiment=current_run(), save_dir=cfg.run_dir, project=cfg.logger.project))
    own = {name: _put_below(cfg.run_dir, section) for name, section in cfg.logger.extra.items()}
    return loggers + instantiate_all(own, Logger, allow=cfg.allow, where="logger.extra")  # type: ignore[type-abstract]


def _put_below(directory: str, section: Any) -> Any:
    """The section of a logger, a relative `save_dir` of it below the run directory."""
    place = section.get("save_dir") if isinstance(section, dict) else None
    return {**section, "save_dir": str(Path(directory, place))} if place and "://" not in place else section


def instantiate_all(sections: Mapping[str, Any], kind: type[T], *, allow: Sequence[str], where: str) -> list[T]:
    """For each section an object of the class that its `_target_` names, with the other keys as its arguments.

    Args:
        kind: what it has to be.
        allow: packages whose code may run, besides those that `target_problem` knows.
        where: the configuration key of the sections, for messages.

    Raises:
        UserError: no `_target_`, a package that is not allowed, no such class, arguments that it refuses, or a class
            of another kind.
    """
    return [_instantiate(section, kind, allow, f"{where}.{name}") for name, section in sections.items()]


def _instantiate(section: Mapping[str, Any], kind: type[T], allow: Sequence[str], where: str) -> T:
    if problem := target_problem(section, allow):
        raise UserError(problem, where=where)
    arguments = dict(section)
    target = arguments.pop("_target_")
    module, _, name = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        fix = "check the name; a module of your own has to be installed, or on PYTHONPATH"
        raise UserError(f"{target}: {error}", where=where, fix=fix) from error
    if not (isinstance(cls, type) and issubclass(cls, kind)):  # asked before any of its code runs
        raise UserError(f"{target} is no {kind.__name__}", where=where, fix=f"name a subclass of {kind.__name__}")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{target}: {error}", where=where, fix="see the arguments of the class") from error


def build_trainer(cfg: Config, *, training: bool, validation: bool = False) -> pl.Trainer:
    """A Lightning trainer; for evaluation on one device unless more are asked for.

    Only training with validation keeps its best weights.

    Raises:
        UserError: Lightning does not know the accelerator, strategy or devices, or this machine lacks them; or early
            stopping without validation.
    """
    if training and cfg.trainer.patience and not validation:
        fix = "set it to 0, or give the split val some dialogues"
        raise UserError("early stopping needs validation", where=f"trainer.patience={cfg.trainer.patience}", fix=fix)
    try:
        return _trainer(cfg, training=training, validation=validation)
    except (ValueError, TypeError, MisconfigurationException) as error:
        settings = cfg.trainer
        where = f"trainer.accelerator={settings.accelerator}, trainer.devices={settings.devices}, "
        raise UserError(
            str(error).strip().splitlines()[0].rstrip("."),
            where=f"{where}trainer.strategy={settings.strategy}, trainer.extra={settings.extra}",
            fix="leave them as they are by default, or see Lightning's Trainer",
        ) from error


def _trainer(cfg: Config, *, training: bool, validation: bool) -> pl.Trainer:
    settings = cfg.trainer
    keeps_best = training and validation and not settings.fast_dev_run
    callbacks: list[Callback] = [RichProgressBar(leave=True) if sys.stderr.isatty() else ProgressLines()]
    if keeps_best:
        # Both look at the loss right after a validation. At the end of an epoch it may be an old one, or missing.
        callbacks.append(
            ModelCheckpoint(
                Path(cfg.run_dir) / CHECKPOINT.parent, filename="best", monitor="val/loss", save_top_k=1,
                save_weights_only=True, save_on_train_epoch_end=False,
            )
        )  # fmt: skip
        if settings.patience:
            callbacks.append(EarlyStopping("val/loss", patience=settings.patience, check_on_train_epoch_end=False))
    if training and not settings.fast_dev_run:
        callbacks.append(LastCheckpoint(Path(cfg.run_dir) / CHECKPOINT, settings.save_every))
    devices = "1" if settings.devices == "auto" and not training else settings.devices
    evaluates_together = not training and devices != "1"
    if training or evaluates_together:
        callbacks.append(SameWork(cfg.stage))
    if training:
        callbacks += instantiate_all(settings.callbacks, Callback, allow=cfg.allow, where="trainer.callbacks")
    interval = settings.validate_every
    arguments: dict[str, Any] = dict(
        default_root_dir=cfg.run_dir,
        accelerator=settings.accelerator,
        devices=int(devices) if devices.lstrip("-").isdigit() else devices,
        strategy=_strategy(settings.strategy) if training else _evaluators() if evaluates_together else "auto",
        precision=settings.precision,
        max_epochs=settings.max_epochs,
        max_steps=settings.max_steps,
        val_check_interval=interval if interval <= 1 else int(interval),
        check_val_every_n_epoch=1 if interval <= 1 else None,
        fast_dev_run=settings.fast_dev_run and training,
        log_every_n_steps=settings.log_every,
        logger=_loggers(cfg) if training else False,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), *_processes(training)],
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        enable_checkpointing=keeps_best,
        limit_val_batches=1.0 if validation else 0,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        inference_mode=True,
    )
    if training and SLURMEnvironment.detect() and "num_nodes" not in settings.extra:
        arguments["num_nodes"] = int(os.environ.get("SLURM_NNODES", "1"))
    if twice := arguments.keys() & settings.extra.keys():
        fix = f"use trainer's own keys for them: `{COMMAND} --help trainer`"
        raise UserError(f"set by esc-lab: {', '.join(sorted(twice))}", where="trainer.extra", fix=fix)
    known = inspect.signature(pl.Trainer).parameters
    if unknown := next((name for name in settings.extra if name not in known), None):
        fix = "see the arguments of Lightning's Trainer"
        raise UserError(f"Trainer has no argument '{unknown}'{nearest(unknown, known)}", where="trainer.extra", fix=fix)
    return pl.Trainer(**arguments, **(settings.extra if training else {}))


def _strategy(name: str) -> str | ShardedStrategy:
    return ShardedStrategy() if name == "fsdp2" else name


def _evaluators() -> DDPStrategy:
    """Processes that meet at the start and at the end of an evaluation; the first that is done waits for the last."""
    return DDPStrategy(process_group_backend="gloo", timeout=timedelta(days=1))


def _processes(training: bool) -> list[ClusterEnvironment]:
    """In a job of Slurm: its processes share a training, and nothing else.

    Lightning would also queue the job again at a signal, from a checkpoint of its own; a multirun does that itself.
    """
    if not SLURMEnvironment.detect():
        return []
    return [SLURMEnvironment(auto_requeue=False) if training else LightningEnvironment()]


class ProgressLines(Callback):
    """Progress where there is no terminal: a line about every tenth of the way, and one for each validation."""

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._countdown = Countdown()

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        done, total = rest[2] + 1, int(sum(trainer.num_test_batches))
        if trainer.is_global_zero and (done % max(total // 10, 1) == 0 or done == total):
            log.info("evaluated batch %d/%d%s", done, total, self._countdown.left(done, total))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._countdown = Countdown(trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        total = max(int(trainer.estimated_stepping_batches), 1)
        step = trainer.global_step
        if step % max(total // 10, 1) == 0 or step == 1:
            values = trainer.callback_metrics
            left = self._countdown.left(step, total)
            figures = values["train/loss"], values["tokens_per_s"]
            log.info("step %d/%d  loss %.3f  %.0f tokens/s%s", step, total, *figures, left)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        log.info("step %d  validation loss %.4f", trainer.global_step, trainer.callback_metrics["val/loss"])
