"""Stage `export`: a trained model as a plain model directory with a model card, for transformers without esc-lab."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import GenerationConfig

from esc_lab.artifacts import READ_ERRORS, make_readable, write_atomic
from esc_lab.config import Config
from esc_lab.errors import UserError
from esc_lab.judging.safety_card import describe_safety
from esc_lab.models.default_system import add_default_system
from esc_lab.models.load import LoadedModel, load_model
from esc_lab.runs.layout import METRICS, Settings, find_run, read_config
from esc_lab.training.model_card import system_prompt, write_card
from esc_lab.training.trainer import prepare

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Write the model, an adapter merged into it, whole or not at all.

    Its chat template is that of the training, with the training's system message as the default where all prompts had
    the same, and it generates greedily: what transformers makes of a chat is what an evaluation of the run made of it.

    Raises:
        UserError: the target holds something already, the weights are quantised, the training run is gone, or
            `export.safety` is no safety report of it.
    """
    prepare(cfg)
    assert cfg.checkpoint is not None  # checked with the configuration
    source = Path(cfg.checkpoint)
    target = Path(cfg.export.directory) if cfg.export.directory else Path(cfg.run_dir) / "model"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError("there is something already", where=str(target), fix="choose another export.directory")
    if cfg.model.quantization:
        raise UserError("an adapter cannot be merged into quantised weights", fix="set model.quantization=null")
    training, config = _read_training(source)
    safety = describe_safety(Path(cfg.export.safety) if cfg.export.safety else None, training)
    settings = replace(cfg.model, chat_template=config["model"]["chat_template"])
    if settings.dtype != config["model"]["dtype"]:
        log.warning("model.dtype=%s, trained in %s: replies may differ", settings.dtype, config["model"]["dtype"])
    loaded = load_model(settings, Path(cfg.cache_dir), checkpoint=source)
    model: Any = loaded.model
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    tokenizer = loaded.encoder.tokenizer
    text, shared = system_prompt(config)
    if shared:
        tokenizer.chat_template = add_default_system(loaded.encoder, text)
    model.generation_config = _generation(loaded, config)
    metrics = _read_metrics(training / METRICS)
    card = f"{write_card(config, metrics, run=training, adapter=False)}\n\n{safety}"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_atomic(temporary / "README.md", card)
        make_readable(temporary)
        temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    log.info("wrote %s", target)
    return {"export/parameters": float(sum(parameter.numel() for parameter in model.parameters()))}


def _read_training(checkpoint: Path) -> tuple[Path, Settings]:
    """The run that trained the weights, and its configuration."""
    run = find_run(checkpoint)
    if run is None:
        fix = "name the run directory itself, with its config.yaml: the card and the prompts come from there"
        raise UserError("the run that trained it is not there", where=str(checkpoint), fix=fix)
    try:
        config = read_config(run)
        return run, {**config, "model": {"chat_template": None, **config["model"]}}
    except READ_ERRORS as error:
        raise UserError(f"its config.yaml cannot be read: {error}", where=str(run), fix="copy the run again") from error


def _read_metrics(path: Path) -> dict[str, float]:
    """The metrics of a training; none of one that did not come to its end."""
    if not path.exists():
        return {}
    try:
        return {str(name): float(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}
    except READ_ERRORS as error:
        fix = "copy the run again, or delete the file: the card then shows no results"
        raise UserError(f"not the metrics of a run: {error}", where=str(path), fix=fix) from error


def _generation(loaded: LoadedModel, config: Settings) -> GenerationConfig:
    """Greedy generation to the end of the turn, without the penalties and draws that a base model may bring."""
    tokenizer = loaded.encoder.tokenizer
    stop = sorted(token for token in loaded.encoder.stop_tokens if token is not None)
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=config["evaluate"]["generation"]["max_new_tokens"],
        bos_token_id=tokenizer.bos_token_id, eos_token_id=stop, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
