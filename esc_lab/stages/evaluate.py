"""Stage `evaluate`: strategy choice, preference bias, text overlap and perplexity of a base or fine-tuned model."""

from __future__ import annotations

import json
import logging
import random
import time
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger

from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.datamodule import ESCDataModule
from esc_lab.evaluation import EvaluationModule, Prediction, summarize
from esc_lab.models.generate import Sampling
from esc_lab.models.load import load_model
from esc_lab.prompts import TEMPLATES
from esc_lab.report.tables import print_strategies
from esc_lab.seeds import derive_seed
from esc_lab.stages.build import build_data, build_trainer, data_metrics, prepare, run_logger
from esc_lab.stages.held_out_pairs import preference_metrics
from esc_lab.strategies import INVENTORIES

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Evaluate; predictions.jsonl, strategies.json and metrics.json go into the run directory."""
    prepare(cfg)
    checkpoint = Path(cfg.checkpoint) if cfg.checkpoint else None
    loaded = load_model(cfg.model, Path(cfg.cache_dir), checkpoint=checkpoint)
    data = build_data(cfg, loaded)
    data.setup("test")
    generation = cfg.evaluate.generation
    inventory = INVENTORIES[cfg.inventory.name]
    module = EvaluationModule(
        loaded,
        inventory,
        TEMPLATES[cfg.prompt.eval.template],
        inference=cfg.prompt.inference,
        row_tokens=data.row_tokens,
        sampling=Sampling(generation.max_new_tokens, generation.temperature, generation.top_p)
        if generation.enabled
        else None,
        generate_for=_chosen(data, generation.decisions, cfg.seed),
        seed=cfg.seed,
        predictions=Path(cfg.run_dir) / "predictions.jsonl",
    )
    started = time.time()
    with run_logger(cfg, "evaluate") as logger:
        build_trainer(cfg, None, training=False).test(module, datamodule=data, verbose=False)
        metrics, tables = summarize(module.predictions, inventory)
        metrics |= preference_metrics(cfg, loaded, data)
        metrics["evaluate/seconds"] = time.time() - started
        metrics |= data_metrics(data)
        if logger:
            _log(logger, metrics, module.predictions)
    write_atomic(Path(cfg.run_dir) / "strategies.json", json.dumps(tables, indent=1))
    for group, table in tables.items():
        print_strategies(f"{cfg.model.name}: {group}", table["per_strategy"], metrics, group)
    return metrics


def _chosen(data: ESCDataModule, count: int | None, seed: int) -> frozenset[tuple[str, int]] | None:
    """Which decisions get a generated reply: all, or a number of them drawn with the seed."""
    if count is None:
        return None
    decisions = sorted((d.dialogue.id, d.turn) for group in data.decisions for d in group)
    draw = random.Random(derive_seed(seed, "decisions to generate for"))
    return frozenset(draw.sample(decisions, min(count, len(decisions))))


def _log(logger: Logger, metrics: dict[str, float], predictions: list[Prediction]) -> None:
    logger.log_metrics(metrics)
    written = [prediction for prediction in predictions if prediction.reply is not None][:50]
    if isinstance(logger, WandbLogger) and written:
        columns = ["dialogue", "turn", "gold", "gold_reply", "strategy", "reply"]
        rows: list[list[Any]] = [
            [p.dialogue, p.turn, ", ".join(p.gold), p.gold_reply, p.strategy or "(none)", p.reply] for p in written
        ]
        logger.log_table("replies", columns=columns, data=rows)
