"""Stage `evaluate`: strategy choice, preference bias, text overlap, perplexity, attention and adherence of a model."""

from __future__ import annotations

import json
import logging
import random
import time
from pathlib import Path

import esc_lab.stages.classifier  # noqa: F401  trains the judge, so its code decides what is measured here
from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.data.corpora import write_dialogues
from esc_lab.data.strategies import build_inventory
from esc_lab.evaluation.held_out_pairs import preference_metrics
from esc_lab.evaluation.module import EvaluationModule
from esc_lab.evaluation.read_table import read_table
from esc_lab.evaluation.summary import print_strategies, summarize
from esc_lab.metrics.predictions import write_predictions
from esc_lab.models.checks import check_probe
from esc_lab.models.load import load_model
from esc_lab.prompts.layouts import BEST_OF
from esc_lab.report.attention_files import write_attention
from esc_lab.runs.layout import DIALOGUES, PREDICTIONS, STRATEGIES
from esc_lab.scorers.classifier_files import load_judge
from esc_lab.scorers.reward_files import load_reward
from esc_lab.scorers.reward_model import RewardModel
from esc_lab.seeds import EVALUATION_SEED, derive_seed
from esc_lab.stages.run_stage import run_substage
from esc_lab.training.datamodule import ESCDataModule, build_data, check_unseen, data_metrics
from esc_lab.training.trainer import build_trainer, prepare

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Evaluate; predictions.jsonl, strategies.json and what SRA leaves go into the run directory.

    So does dialogues.jsonl, the evaluated dialogues, which reports take the context from.

    Of SRA: sra.json (by strategy, depth and head), sra_heads.safetensors (`heads` [replies, layers, heads], a row for
    each prediction with SRA, in order), and a page for each token heat map.
    """
    prepare(cfg)
    directory, inventory = Path(cfg.run_dir), build_inventory(cfg.inventory)
    # Before the model: it may have to be trained first.
    classifier = load_judge(cfg, cfg.evaluate.classifier, run_substage)
    reward = _load_chooser(cfg)
    checkpoint = Path(cfg.checkpoint) if cfg.checkpoint else None
    loaded = load_model(cfg.model, Path(cfg.cache_dir), checkpoint=checkpoint)
    data = build_data(cfg, loaded)
    seen = check_unseen(cfg, data.splits.get(data.eval_split, ()))
    data.setup("test")
    write_dialogues(data.splits[data.eval_split], directory / DIALOGUES, inventory=inventory)
    module = EvaluationModule(
        loaded, inventory, cfg.prompt, cfg.evaluate, seed=cfg.seed, row_tokens=data.row_tokens,
        reply_for=_draw_decisions(data, cfg.evaluate.generation.decisions), classifier=classifier,
    )  # fmt: skip
    if reward:
        module.choose_by(reward)
    if module.replies.measures:
        check_probe(loaded.model)
    started = time.time()
    build_trainer(cfg, training=False).test(module, datamodule=data, verbose=False)
    write_predictions(directory / PREDICTIONS, module.predictions)
    measure = f"{cfg.evaluate.sra.definition}/{cfg.evaluate.sra.span}"
    table = read_table(directory / PREDICTIONS, inventory.names, sra=measure, texts=True)
    metrics, strategies = summarize(table)
    metrics |= preference_metrics(cfg, loaded, data)
    metrics |= module.best_of.metrics() if module.best_of else {}
    if classifier and classifier.accuracy is not None:
        metrics["adherence/classifier_accuracy"] = classifier.accuracy
    metrics["evaluate/seconds"] = time.time() - started
    metrics |= data_metrics(data) | {"data/dialogues_trained_on": float(seen)}
    if module.measured:
        write_attention(cfg, loaded, module.measured, module.replies.attention_boost)
    write_atomic(directory / STRATEGIES, json.dumps(strategies, indent=1))
    for number, (group, of_group) in enumerate(strategies.items()):
        print_strategies(f"{cfg.model.name}: {group}", of_group, metrics, group, explain=number == 0)
    return metrics


def _load_chooser(cfg: Config) -> RewardModel | None:
    """The reward model that chooses among replies, if one is to."""
    if cfg.prompt.inference != BEST_OF:
        return None
    return load_reward(Path(cfg.evaluate.best_of.reward or ""), build_inventory(cfg.inventory), Path(cfg.cache_dir))


def _draw_decisions(data: ESCDataModule, count: int | None) -> frozenset[tuple[str, int]] | None:
    """Which decisions get a reply: all (None), or a number of them that is drawn alike in all runs."""
    if count is None:
        return None
    decisions = sorted((d.dialogue.id, d.turn) for group in data.decisions for d in group)
    draw = random.Random(derive_seed(EVALUATION_SEED, "decisions to generate for"))
    return frozenset(draw.sample(decisions, min(count, len(decisions))))
