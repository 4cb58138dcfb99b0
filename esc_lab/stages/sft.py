"""Stage `sft`: fine-tune on the supporter turns of the training dialogues."""

from __future__ import annotations

from pathlib import Path

from esc_lab.config import Config
from esc_lab.models.load import load_model
from esc_lab.training.datamodule import build_data
from esc_lab.training.fit import fit, prepare_model
from esc_lab.training.sft import SFTModule
from esc_lab.training.trainer import prepare


def run(cfg: Config) -> dict[str, float]:
    """Train from the base model or from `init_from`."""
    prepare(cfg)
    init_from = Path(cfg.init_from) if cfg.init_from else None
    loaded = load_model(cfg.model, Path(cfg.cache_dir), checkpoint=init_from, to_device=cfg.trainer.strategy != "fsdp2")
    data = build_data(cfg, loaded)
    loaded = prepare_model(cfg, loaded)
    module = SFTModule(loaded.model, cfg.optimizer, cfg.scheduler, cfg.trainer.gradient_clip, cfg.seed)
    return fit(cfg, loaded, data, module)
