"""Stage `classifier`: train a classifier that tells the strategy of a reply, the judge of strategy adherence."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.data.strategies import build_inventory
from esc_lab.runs.layout import STRATEGIES, read_config
from esc_lab.scorers.classifier_files import new_classifier, save_classifier
from esc_lab.scorers.classifier_training import ClassifierModule, ReplySteps, print_scores, score_classifier
from esc_lab.training.datamodule import load_splits
from esc_lab.training.fit import fit_best, start_training
from esc_lab.training.model_card import write_card
from esc_lab.training.steps import StepDataModule
from esc_lab.training.trainer import prepare

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Train, and score on the replies of the test split; classifier/ and strategies.json go into the run directory.

    The weights are the best by validation loss if there is a validation split, else the last.
    """
    prepare(cfg)
    cfg = replace(cfg, trainer=replace(cfg.trainer, devices="1"))
    inventory, directory = build_inventory(cfg.inventory), Path(cfg.run_dir)
    splits, report = load_splits(cfg, inventory)
    classifier = new_classifier(
        cfg.model, cfg.adapter, inventory, Path(cfg.cache_dir), reply_tokens=cfg.classifier.reply_tokens, seed=cfg.seed
    )
    row_tokens, step_replies = cfg.data.row_tokens, cfg.classifier.batch
    steps = ReplySteps(
        splits, classifier, step_replies=step_replies, row_tokens=row_tokens, seed=cfg.seed,
        last=cfg.data.loss == "last_reply",
    )  # fmt: skip
    start_training(cfg, classifier.model)
    module = ClassifierModule(classifier, cfg.optimizer, cfg.scheduler, cfg.trainer.gradient_clip, cfg.seed)
    metrics = fit_best(cfg, StepDataModule(splits, steps), module, validation=bool(steps.examples["val"]))
    metrics |= {f"data/{name}": float(value) for name, value in (asdict(report) | steps.counts()).items()}
    if steps.examples["test"]:
        scores, rows = score_classifier(classifier, steps.examples["train"], steps.examples["test"], row_tokens)
        metrics |= scores
        write_atomic(directory / STRATEGIES, json.dumps(rows, indent=1))
        print_scores(f"{cfg.model.name}: strategies of held-out replies of {cfg.data.name}", metrics, rows)
    target = save_classifier(classifier, cfg.model, directory, metrics.get("classifier/accuracy"))
    card = write_card(read_config(directory), metrics, run=directory, adapter=cfg.adapter.kind == "lora")
    write_atomic(target / "README.md", card)
    log.info("saved %s", target)
    return metrics
