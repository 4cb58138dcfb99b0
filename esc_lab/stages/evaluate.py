"""Stage `evaluate`: strategy choice, preference bias, text overlap, perplexity, attention and adherence of a model."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import esc_lab.stages.classifier  # noqa: F401  trains the judge, so its code decides what is measured here
from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.config.model import ENDPOINT
from esc_lab.data.corpora import write_dialogues
from esc_lab.data.strategies import Inventory, build_inventory
from esc_lab.evaluation.adherence import judge_adherence
from esc_lab.evaluation.boost import check_other_dialogues
from esc_lab.evaluation.curve import EvaluationCurve
from esc_lab.evaluation.decisions import draw_decisions
from esc_lab.evaluation.held_out_pairs import preference_metrics
from esc_lab.evaluation.module import EvaluationModule
from esc_lab.evaluation.read_table import read_table
from esc_lab.evaluation.served_replies import write_replies
from esc_lab.evaluation.summary import print_strategies, summarize
from esc_lab.metrics.predictions import Prediction, measure_texts, write_predictions
from esc_lab.models.checks import check_probe
from esc_lab.models.frozen_states import share_frozen_states
from esc_lab.models.load import LoadedModel, load_model
from esc_lab.models.shared_weights import share_weights
from esc_lab.prompts.layouts import BEST_OF
from esc_lab.prompts.trained import warn_of_training
from esc_lab.report.attention_files import write_attention
from esc_lab.runs.layout import DIALOGUES, PREDICTIONS, STRATEGIES
from esc_lab.scorers.classifier import StrategyClassifier
from esc_lab.scorers.classifier_files import load_judge
from esc_lab.scorers.reward_files import load_reward
from esc_lab.scorers.reward_model import RewardModel
from esc_lab.stages.run_stage import run_substage
from esc_lab.training.datamodule import build_data, check_unseen, data_metrics, load_splits
from esc_lab.training.processes import leave_process_group
from esc_lab.training.trainer import build_trainer, prepare

# Metrics, and the table of each measure of strategy choice.
Evaluated: TypeAlias = tuple[dict[str, float], dict[str, Any]]


def run(cfg: Config) -> dict[str, float]:
    """Evaluate; predictions.jsonl, strategies.json and what SRA leaves go into the run directory.

    So does dialogues.jsonl, the evaluated dialogues, which reports take the context from. Of an endpoint it leaves the
    journal of all calls, too.

    Of SRA: sra.json (by strategy, depth and head), sra_heads.safetensors (`heads` [replies, layers, heads], a row for
    each prediction with SRA, in order), and a page for each token heat map.
    """
    prepare(cfg)
    inventory = build_inventory(cfg.inventory)
    # Before the model: it may have to be trained first.
    classifier = load_judge(cfg, cfg.evaluate.classifier, run_substage)
    started = time.time()
    evaluate = _evaluate_served if cfg.model.source == ENDPOINT else _evaluate_loaded
    metrics, strategies = evaluate(cfg, inventory, classifier)
    if not metrics:  # a further process
        return metrics
    if classifier and classifier.accuracy is not None:
        metrics["adherence/classifier_accuracy"] = classifier.accuracy
    metrics.setdefault("evaluate/seconds", time.time() - started)
    write_atomic(Path(cfg.run_dir) / STRATEGIES, json.dumps(strategies, indent=1))
    for group, of_group in strategies.items():
        print_strategies(f"{cfg.model.name}: {group}", of_group, metrics, group)
    return metrics


def _evaluate_served(cfg: Config, inventory: Inventory, classifier: StrategyClassifier | None) -> Evaluated:
    """A model at an endpoint, by its replies."""
    splits, report = load_splits(cfg, inventory)
    dialogues = splits.get(cfg.evaluate.split, [])
    predictions, spent = write_replies(cfg, dialogues)
    write_dialogues(dialogues, Path(cfg.run_dir) / DIALOGUES, inventory=inventory)
    if classifier:
        judge_adherence(predictions, classifier, inventory, row_tokens=cfg.data.row_tokens)
    measure_texts(predictions, inventory)
    metrics, strategies = _summarize(cfg, inventory, predictions)
    return metrics | spent | {f"data/{name}": float(value) for name, value in asdict(report).items()}, strategies


def _evaluate_loaded(cfg: Config, inventory: Inventory, classifier: StrategyClassifier | None) -> Evaluated:
    """A model whose weights are here; of several processes the first one has the results of all, the others nothing."""
    checkpoint = Path(cfg.checkpoint) if cfg.checkpoint else None
    loaded = load_model(cfg.model, Path(cfg.cache_dir), checkpoint=checkpoint)
    reward = _load_chooser(cfg, loaded)
    if classifier:
        share_weights(classifier.model, loaded.model)
    data = build_data(cfg, loaded)
    seen = check_unseen(cfg, data.splits.get(data.eval_split, ()))
    boosted = {dialogue.id for dialogue in data.splits.get(data.eval_split, ())}
    check_other_dialogues(cfg.evaluate.boost, boosted, allow=cfg.data.overlap == "allow")
    if checkpoint:
        warn_of_training(checkpoint, inventory, cfg.prompt.eval.template)
    data.setup("test")
    keys = ((decision.dialogue.id, decision.turn) for group in data.decisions for decision in group)
    module = EvaluationModule(
        loaded, inventory, cfg.prompt, cfg.evaluate, seed=cfg.seed, row_tokens=data.pass_tokens,
        reply_for=draw_decisions(keys, cfg.evaluate.generation), classifier=classifier,
    )  # fmt: skip
    if reward:
        module.choose_by(reward)
    if module.replies.measures:
        check_probe(loaded.model)
    started = time.time()
    adapted = cfg.adapter.layers if cfg.evaluate.share_states else None
    trainer = build_trainer(cfg, training=False)
    trainer.callbacks.append(EvaluationCurve(inventory.names, classifier))  # type: ignore[attr-defined]
    with share_frozen_states(loaded.model, adapted, Path(cfg.cache_dir)):
        trainer.test(module, datamodule=data, verbose=False)
    leave_process_group(trainer)
    if not trainer.is_global_zero:
        return {}, {}
    module.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
    write_dialogues(data.splits[data.eval_split], Path(cfg.run_dir) / DIALOGUES, inventory=inventory)
    metrics, strategies = _summarize(cfg, inventory, module.predictions)
    metrics |= preference_metrics(cfg, loaded, data)
    metrics |= module.best_of.metrics() if module.best_of else {}
    metrics["evaluate/seconds"] = time.time() - started
    metrics |= data_metrics(data) | {"data/dialogues_trained_on": float(seen)}
    if module.measured:
        write_attention(cfg, loaded, module.measured, module.replies.attention_boost)
    return metrics, strategies


def _summarize(cfg: Config, inventory: Inventory, predictions: Sequence[Prediction]) -> Evaluated:
    """Metrics of predictions and tables of their strategies, by way of predictions.jsonl."""
    path = Path(cfg.run_dir) / PREDICTIONS
    write_predictions(path, predictions)
    measure = f"{cfg.evaluate.sra.definition}/{cfg.evaluate.sra.span}"
    return summarize(read_table(path, inventory.names, sra=measure, texts=True))


def _load_chooser(cfg: Config, loaded: LoadedModel) -> RewardModel | None:
    """The reward model that chooses among replies, if one is to."""
    if cfg.prompt.inference != BEST_OF:
        return None
    path, inventory = Path(cfg.evaluate.best_of.reward or ""), build_inventory(cfg.inventory)
    return load_reward(path, inventory, Path(cfg.cache_dir), beside=loaded.model)
