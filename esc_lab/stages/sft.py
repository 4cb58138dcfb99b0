"""Stage `sft`: fine-tune on the supporter turns of the training dialogues."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from esc_lab.config import Config
from esc_lab.models.load import add_adapter, load_model, save_trained
from esc_lab.sft import SFTModule
from esc_lab.stages.build import build_data, build_trainer, data_metrics, prepare, run_logger

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Train; the best weights by validation loss go into `adapter/` (or `model/`) of the run directory.

    Without a validation split these are the last weights.
    """
    prepare(cfg)
    checkpoint = Path(cfg.checkpoint) if cfg.checkpoint else None
    loaded = load_model(cfg.model, Path(cfg.cache_dir), checkpoint=checkpoint)
    data = build_data(cfg, loaded)
    loaded = add_adapter(loaded, cfg.adapter, cfg.model)
    if cfg.model.gradient_checkpointing:
        loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
        loaded.model.enable_input_require_grads()
    trained = sum(parameter.numel() for parameter in loaded.model.parameters() if parameter.requires_grad)
    log.info("%s: training %s parameters (%s)", cfg.model.name, f"{trained:,}", cfg.adapter.kind)
    loaded.model.train()
    module = SFTModule(loaded.model, cfg.optimizer, cfg.scheduler, cfg.trainer.gradient_clip)
    started = time.time()
    with run_logger(cfg, "sft") as logger:
        trainer = build_trainer(cfg, logger, training=True, validation=bool(data.splits.get("val")))
        trainer.fit(module, datamodule=data)
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if best:
            # Written by this very run; tensors only.
            state = torch.load(best, weights_only=True)["state_dict"]
            module.load_state_dict(state, strict=False)
        metrics = {
            "train/steps": float(trainer.global_step),
            "train/seconds": time.time() - started,
            "train/parameters": float(trained),
            **data_metrics(data),
        }
        for name in ("train/loss", "val/loss"):
            if name in trainer.callback_metrics:
                metrics[name] = float(trainer.callback_metrics[name])
        if best:
            metrics["val/loss"] = float(trainer.checkpoint_callback.best_model_score)  # type: ignore[union-attr]
        if logger:
            logger.log_metrics({f"final/{name}": value for name, value in metrics.items()})
    if trainer.is_global_zero:
        target = save_trained(loaded, cfg.model, Path(cfg.run_dir))
        best_loss = f"; best validation loss {metrics['val/loss']:.4f}" if "val/loss" in metrics else ""
        log.info("saved %s%s", target, best_loss)
    return metrics
