"""What the training stages share: trainable weights, the fit, the best weights and the metrics of the run."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pytorch_lightning.utilities.exceptions import SIGTERMException

from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.models.load import LoadedModel, add_adapter, save_trained
from esc_lab.models.sharded import gather_weights, is_sharded
from esc_lab.runs.layout import ADAPTER, CHECKPOINT, TRAINING_TREES, read_config
from esc_lab.runs.signals import TERMINATED, hold_sigterm
from esc_lab.training.datamodule import ESCDataModule, data_metrics
from esc_lab.training.model_card import write_card
from esc_lab.training.module import TrainingModule
from esc_lab.training.processes import leave_process_group
from esc_lab.training.sharding import ShardedStrategy
from esc_lab.training.steps import StepDataModule
from esc_lab.training.trainer import build_trainer

log = logging.getLogger(__name__)


def prepare_model(cfg: Config, loaded: LoadedModel) -> LoadedModel:
    """The model with the weights that are to be trained (an adapter, or all), in training mode."""
    loaded = add_adapter(loaded, cfg.adapter, cfg.model)
    start_training(cfg, loaded.model)
    return loaded


def start_training(cfg: Config, model: Any) -> None:
    """Training mode, with gradient checkpointing if it is asked for; logs how many parameters are trained."""
    if cfg.model.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    log.info("%s: training %s parameters (%s)", cfg.model.name, f"{_count_trained(model):,}", cfg.adapter.kind)
    model.train()


def fit(cfg: Config, loaded: LoadedModel, data: ESCDataModule, module: TrainingModule) -> dict[str, float]:
    """Train; the best weights by validation loss go into `adapter/` (or `model/`) of the run directory.

    Without a validation split these are the last weights.
    """
    metrics = fit_best(cfg, data, module, validation=bool(data.splits.get("val"))) | data_metrics(data)
    sharded, adapter = is_sharded(loaded.model), isinstance(loaded.model, PeftModel)
    weights = gather_weights(loaded.model, trained_only=adapter) if sharded else None
    if module.trainer.is_global_zero:
        run = Path(cfg.run_dir)
        trees = sorted({dialogue.tree_id for dialogue in data.splits["train"]})
        write_atomic(run / TRAINING_TREES, json.dumps(trees))
        target = save_trained(loaded, cfg.model, run, weights)
        card = write_card(read_config(run), metrics, run=run, adapter=target.name == ADAPTER)
        write_atomic(target / "README.md", card)
        best_loss = f"; best validation loss {metrics['val/loss']:.4f}" if "val/loss" in metrics else ""
        log.info("saved %s%s", target, best_loss)
    leave_process_group(module.trainer)  # no process reports the end before the weights are there
    return metrics


def fit_best(cfg: Config, data: StepDataModule, module: TrainingModule, *, validation: bool) -> dict[str, float]:
    """Train until the module has its best weights by validation loss, or without validation the last ones.

    It goes on from where the run `cfg.resume` stopped, if there is one.

    Raises:
        UserError: it cannot go on from there, or there is nothing to learn from a step.
        SystemExit: with status 1 on Ctrl-C, 143 on SIGTERM.
    """
    start, checkpoint = time.time(), Path(cfg.resume) / CHECKPOINT if cfg.resume else None
    trainer = build_trainer(cfg, training=True, validation=validation)
    try:
        with hold_sigterm():  # Lightning obeys it between two steps
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException as stop:  # which another process of this training has told
        # Lightning's exception would end the process with status 0.
        raise SystemExit(TERMINATED) from stop
    metrics = {
        "train/steps": float(trainer.global_step),
        "train/seconds": time.time() - start,
        "train/parameters": float(_count_trained(module.model)),
    }
    for name, value in trainer.callback_metrics.items():
        if name == "val/loss" or (name.startswith("train/") and name != "train/lr"):
            metrics[name] = float(value)
    best: Any = trainer.checkpoint_callback
    if best is not None and best.best_model_path:
        if isinstance(trainer.strategy, ShardedStrategy):
            trainer.strategy.load_weights(Path(best.best_model_path))
        else:  # written by this very run; tensors only
            module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"], strict=False)
        metrics["val/loss"] = float(best.best_model_score)
    return metrics


def _count_trained(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
