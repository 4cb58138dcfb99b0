"""Predictions of an evaluation as metrics and per-strategy tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esc_lab.metrics import (
    Diversity,
    PreferenceBias,
    ReplyPerplexity,
    StrategyProficiency,
    StrategyRelevantAttention,
    TextOverlap,
    resolve_gold,
)
from esc_lab.predictions import Prediction
from esc_lab.prompted_replies import PromptedReply
from esc_lab.strategies import Inventory

GENERATED = "generated"


def summarize(predictions: Sequence[Prediction], inventory: Inventory) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics of a set of predictions, and per-strategy tables.

    Returns:
        Flat metrics. `strategy/...` from the exact distribution, `generated/...` from parsed generations, `text/...` of
        generated replies against the gold ones (not of prompts that name another strategy), `adherence/...` of judged
        replies; a group is absent where nothing was measured.
        For each measure of strategy choice, a table: rows of strategy, precision, recall, F1, support, predicted and
        preference, and the confusion matrix [predicted, gold] with unparsable predictions as last row.
    """
    metrics: dict[str, float] = {"decisions": float(len({(p.dialogue, p.turn) for p in predictions}))}
    tables: dict[str, Any] = {}
    likely = [prediction for prediction in predictions if prediction.tokens]
    if likely:
        perplexity = ReplyPerplexity()
        perplexity.update(
            torch.tensor([prediction.log_prob for prediction in likely], dtype=torch.float64),
            torch.tensor([prediction.tokens for prediction in likely]),
        )
        metrics["text/perplexity"] = float(perplexity.compute()["reply_perplexity"])
    scored = [prediction for prediction in predictions if prediction.distribution]
    if scored:
        names = [max(p.distribution, key=lambda name: p.distribution[name]) for p in scored]
        _choice("strategy", scored, names, inventory, metrics, tables)
        metrics["strategy/label_mass"] = float(np.mean([prediction.label_mass for prediction in scored]))
    written = [p for p in predictions if p.reply is not None and (p.prompted is None or p.prompted in p.gold)]
    if written:
        if written[0].prompted is None:
            _choice(GENERATED, written, [p.strategy for p in written], inventory, metrics, tables)
        metrics |= _text_metrics(written)
    judged = [prediction.adheres for prediction in predictions if prediction.adheres is not None]
    if judged:
        metrics |= {"adherence/accuracy": float(np.mean(judged)), "adherence/n": float(len(judged))}
    return metrics, tables


def attention_metrics(
    measured: Sequence[PromptedReply], predictions: Sequence[Prediction], attention: StrategyRelevantAttention
) -> dict[str, float]:
    """`sra/...`: the means of a metric that is fed with all measured replies, and how many could not be measured.

    The reasons are counted as `sra/skipped_...`.
    """
    attention.update(
        [reply.sra for reply in measured if reply.sra],
        [str(reply.prediction.followed) for reply in measured],
        [reply.prediction.turn for reply in measured],
        [reply.prediction.template for reply in measured],
    )
    metrics = {name: float(value) for name, value in attention.compute().items()} if measured else {}
    reasons = Counter(prediction.unmeasured for prediction in predictions if prediction.unmeasured)
    metrics |= {f"skipped_{reason.replace(' ', '_')}": float(count) for reason, count in reasons.items()}
    return {f"sra/{name}": value for name, value in metrics.items()}


def _choice(
    group: str,
    predictions: Sequence[Prediction],
    chosen: Sequence[str | None],
    inventory: Inventory,
    metrics: dict[str, float],
    tables: dict[str, Any],
) -> None:
    preds = torch.tensor([-1 if name is None else inventory.index(name) for name in chosen])
    gold = resolve_gold(preds, [[inventory.index(name) for name in p.gold] for p in predictions])
    proficiency, bias = StrategyProficiency(inventory.names), PreferenceBias(inventory.names)
    proficiency.update(preds, gold)
    bias.update(preds, gold)
    values, biases = proficiency.compute(), bias.compute()
    metrics[f"{group}/Q"] = float(values["macro_f1"])
    metrics[f"{group}/Q_inventory"] = float(values["macro_f1_inventory"])
    metrics[f"{group}/Q_W"] = float(values["weighted_f1"])
    metrics[f"{group}/B"] = float(biases["bias"])
    metrics[f"{group}/B_guard"] = float(biases["guard"])
    for name in ("accuracy", "n", "classes_predicted", "classes_gold", "unparsable"):
        metrics[f"{group}/{name}"] = float(values[name])
    tables[group] = _table(proficiency, bias, inventory)


def _table(proficiency: StrategyProficiency, bias: PreferenceBias, inventory: Inventory) -> dict[str, Any]:
    per_class: dict[str, Tensor] = proficiency.per_class()
    counts = proficiency.counts()
    rows = [
        {
            "strategy": name,
            **{key: float(values[index]) for key, values in per_class.items()},
            "predicted": float(counts[index].sum()),
            "preference": float(bias.preference[index]),
        }
        for index, name in enumerate(inventory.names)
    ]
    return {"per_strategy": rows, "confusion": {"predicted_by_gold": counts.tolist(), "classes": [*inventory.names]}}


def _text_metrics(predictions: Sequence[Prediction]) -> dict[str, float]:
    replies = [prediction.reply or "" for prediction in predictions]
    overlap, diversity = TextOverlap(), Diversity()
    overlap.update(replies, [prediction.gold_reply for prediction in predictions])
    diversity.update(replies)
    values = {**overlap.compute(), **diversity.compute()}
    return {f"text/{name}": float(value) for name, value in values.items()}
