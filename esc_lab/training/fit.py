"""What the training stages share: the trainable model, the fit itself, the best weights and the metrics of the run."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from esc_lab.config import Config
from esc_lab.models.load import LoadedModel, add_adapter, save_trained
from esc_lab.training.datamodule import ESCDataModule
from esc_lab.training.module import TrainingModule
from esc_lab.training.trainer import build_trainer, data_metrics, train

log = logging.getLogger(__name__)


def trainable(cfg: Config, loaded: LoadedModel) -> LoadedModel:
    """The model with the weights that are to be trained, in training mode."""
    loaded = add_adapter(loaded, cfg.adapter, cfg.model)
    if cfg.model.gradient_checkpointing:
        loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
        loaded.model.enable_input_require_grads()
    log.info("%s: training %s parameters (%s)", cfg.model.name, f"{_trained(loaded):,}", cfg.adapter.kind)
    loaded.model.train()
    return loaded


def fit(cfg: Config, loaded: LoadedModel, data: ESCDataModule, module: TrainingModule) -> dict[str, float]:
    """Train; the best weights by validation loss go into `adapter/` (or `model/`) of the run directory.

    Without a validation split these are the last weights.
    """
    started = time.time()
    trainer = build_trainer(cfg, training=True, validation=bool(data.splits.get("val")))
    train(cfg, trainer, module, data)
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if best:
        # Written by this very run; tensors only.
        state = torch.load(best, weights_only=True)["state_dict"]
        module.load_state_dict(state, strict=False)
    metrics = {
        "train/steps": float(trainer.global_step),
        "train/seconds": time.time() - started,
        "train/parameters": float(_trained(loaded)),
        **data_metrics(data),
    }
    for name, value in trainer.callback_metrics.items():
        if name == "val/loss" or (name.startswith("train/") and name != "train/lr"):
            metrics[name] = float(value)
    if best:
        metrics["val/loss"] = float(trainer.checkpoint_callback.best_model_score)  # type: ignore[union-attr]
    if trainer.is_global_zero:
        target = save_trained(loaded, cfg.model, Path(cfg.run_dir))
        best_loss = f"; best validation loss {metrics['val/loss']:.4f}" if "val/loss" in metrics else ""
        log.info("saved %s%s", target, best_loss)
    trainer.strategy.barrier()  # no process tells of the end before the weights are there
    return metrics


def _trained(loaded: LoadedModel) -> int:
    return sum(parameter.numel() for parameter in loaded.model.parameters() if parameter.requires_grad)
