"""Stage `export`: merge an adapter into a plain model directory with a model card."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path

from peft import PeftModel

from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.errors import UserError
from esc_lab.models.load import load_model
from esc_lab.runs.layout import METRICS
from esc_lab.training.trainer import prepare

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Write the merged model, whole or not at all; transformers loads it without esc-lab.

    Raises:
        UserError: the target holds something already, or the weights are quantised.
    """
    prepare(cfg)
    assert cfg.checkpoint is not None  # checked with the configuration
    source = Path(cfg.checkpoint)
    target = Path(cfg.export.directory) if cfg.export.directory else Path(cfg.run_dir) / "model"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("there is something already", where=str(target), fix="choose another export.directory")
    if cfg.model.quantization:
        raise UserError("an adapter cannot be merged into quantised weights", fix="set model.quantization=null")
    loaded = load_model(cfg.model, Path(cfg.cache_dir), checkpoint=source)
    model = loaded.model
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        model.save_pretrained(temporary)
        loaded.encoder.tokenizer.save_pretrained(temporary)
        write_atomic(temporary / "README.md", _card(cfg, source))
        temporary.chmod(0o755)
        temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    log.info("wrote %s", target)
    return {"export/parameters": float(sum(parameter.numel() for parameter in model.parameters()))}


def _card(cfg: Config, source: Path) -> str:
    """A model card from what the training run left."""
    metrics_file = source / METRICS
    metrics = json.loads(metrics_file.read_text()) if metrics_file.exists() else {}
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in sorted(metrics.items()))
    template = cfg.prompt.eval.template
    return f"""---
base_model: {cfg.model.path}
library_name: transformers
tags: [emotional-support-conversation, esc-lab]
---
# {cfg.model.name}, fine-tuned for emotional support conversation

Made with esc-lab from `{source}`. Base model: {cfg.model.name} (`{cfg.model.path}`); its licence applies, and so does
that of the training data (`{cfg.data.name}`).

It was trained on prompts of the `{template}` layout over the `{cfg.inventory.name}` strategies; other prompts will work
less well. It is a research model: not a counsellor, and not to be used with people in crisis.

| metric of the training run | value |
|---|---|
{rows}
"""
