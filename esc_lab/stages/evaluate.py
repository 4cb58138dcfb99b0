"""Stage `evaluate`: strategy choice, preference bias, text overlap, perplexity, attention and adherence of a model."""

from __future__ import annotations

import json
import logging
import random
import time
from pathlib import Path

from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.data.corpora import write_dialogues
from esc_lab.data.strategies import build_inventory
from esc_lab.evaluation.held_out_pairs import preference_metrics
from esc_lab.evaluation.module import SRAEvaluationModule
from esc_lab.evaluation.prompted_replies import MEASURABLE, PromptedReplies
from esc_lab.evaluation.summary import attention_metrics, summarize
from esc_lab.metrics import StrategyRelevantAttention
from esc_lab.models.generate import Sampling
from esc_lab.models.load import LoadedModel, load_model
from esc_lab.models.probe_check import check_probe
from esc_lab.models.tree_attention import base_model
from esc_lab.report.attention_files import write_attention
from esc_lab.report.tables import print_strategies
from esc_lab.scorers.classifier import StrategyClassifier
from esc_lab.scorers.classifier_files import load_classifier
from esc_lab.seeds import EVALUATION_SEED, derive_seed
from esc_lab.stages.classifier import stored_classifier
from esc_lab.training.datamodule import ESCDataModule
from esc_lab.training.trainer import build_data, build_trainer, data_metrics, prepare

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Evaluate; predictions.jsonl, strategies.json and what SRA leaves go into the run directory.

    So does dialogues.jsonl, the evaluated dialogues, which reports take the context from.

    Of SRA: sra.json (by strategy, depth and head), sra_heads.safetensors (`heads` [replies, layers, heads], a row for
    each prediction with SRA, in order), and a page for each token heat map.
    """
    prepare(cfg)
    inventory = build_inventory(cfg.inventory)
    classifier = _classifier(cfg)  # before the model: it may have to be trained first
    checkpoint = Path(cfg.checkpoint) if cfg.checkpoint else None
    loaded = load_model(cfg.model, Path(cfg.cache_dir), checkpoint=checkpoint)
    data = build_data(cfg, loaded)
    data.setup("test")
    write_dialogues(data.splits[data.eval_split], Path(cfg.run_dir) / "dialogues.jsonl", inventory=inventory)
    module = _module(cfg, loaded, data, classifier)
    started = time.time()
    build_trainer(cfg, training=False).test(module, datamodule=data, verbose=False)
    metrics, tables = summarize(module.predictions, inventory)
    attention = _attention(cfg, loaded)
    metrics |= attention_metrics(module.measured, module.predictions, attention)
    if classifier and classifier.accuracy is not None:
        metrics["adherence/classifier_accuracy"] = classifier.accuracy
    metrics |= preference_metrics(cfg, loaded, data)
    metrics["evaluate/seconds"] = time.time() - started
    metrics |= data_metrics(data)
    if module.measured:
        write_attention(cfg, loaded, module, attention)
    write_atomic(Path(cfg.run_dir) / "strategies.json", json.dumps(tables, indent=1))
    for group, table in tables.items():
        print_strategies(f"{cfg.model.name}: {group}", table["per_strategy"], metrics, group)
    return metrics


def _classifier(cfg: Config) -> StrategyClassifier | None:
    if cfg.evaluate.classifier is None:
        return None
    path = stored_classifier(cfg) if cfg.evaluate.classifier == "auto" else Path(cfg.evaluate.classifier)
    found = load_classifier(path, build_inventory(cfg.inventory), Path(cfg.cache_dir))
    accuracy = "unknown" if found.accuracy is None else f"{found.accuracy:.3f}"
    log.info("adherence is judged by %s, accuracy on held-out replies %s", path, accuracy)
    return found


def _module(
    cfg: Config, loaded: LoadedModel, data: ESCDataModule, classifier: StrategyClassifier | None
) -> SRAEvaluationModule:
    settings, generation = cfg.evaluate, cfg.evaluate.generation
    inventory = build_inventory(cfg.inventory)
    measured = settings.sra.enabled and cfg.prompt.inference in MEASURABLE
    if measured:
        check_probe(loaded.model)
    given = settings.replies == "given"
    replies = PromptedReplies(
        loaded,
        inventory,
        cfg.prompt.eval,
        inference=cfg.prompt.inference,
        sampling=Sampling(generation.max_new_tokens, generation.temperature, generation.top_p),
        seed=cfg.seed,
        measured=measured,
    )
    return SRAEvaluationModule(
        loaded,
        inventory,
        cfg.prompt.eval,
        replies=replies if given or generation.enabled else None,
        predictions=Path(cfg.run_dir) / "predictions.jsonl",
        inference=cfg.prompt.inference,
        likelihood=settings.likelihood,
        given=given,
        prompted=settings.prompted,
        prompted_share=settings.prompted_share,
        samples=generation.samples,
        row_tokens=data.row_tokens,
        replies_together=generation.batch,
        reply_for=_chosen(data, generation.decisions),
        classifier=classifier,
        seed=cfg.seed,
    )


def _attention(cfg: Config, loaded: LoadedModel) -> StrategyRelevantAttention:
    text = base_model(loaded.model).config.get_text_config()
    return StrategyRelevantAttention(
        build_inventory(cfg.inventory).names,
        definition=cfg.evaluate.sra.definition,
        span=cfg.evaluate.sra.span,
        heads=(text.num_hidden_layers, text.num_attention_heads),
    )


def _chosen(data: ESCDataModule, count: int | None) -> frozenset[tuple[str, int]] | None:
    """Which decisions get a reply: all, or a number of them that is drawn alike in all runs."""
    if count is None:
        return None
    decisions = sorted((d.dialogue.id, d.turn) for group in data.decisions for d in group)
    draw = random.Random(derive_seed(EVALUATION_SEED, "decisions to generate for"))
    return frozenset(draw.sample(decisions, min(count, len(decisions))))
