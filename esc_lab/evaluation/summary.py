"""Predictions of an evaluation as metrics and per-strategy tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esc_lab.data.strategies import Inventory
from esc_lab.evaluation.predictions import Prediction
from esc_lab.evaluation.prompted_replies import PromptedReply
from esc_lab.metrics import (
    Diversity,
    PreferenceBias,
    ReplyPerplexity,
    StrategyProficiency,
    StrategyRelevantAttention,
    TextOverlap,
    resolve_gold,
)

GENERATED = "generated"


def summarize(predictions: Sequence[Prediction], inventory: Inventory) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics of a set of predictions, and per-strategy tables.

    Returns:
        Flat metrics. `strategy/...` from the exact distribution, `generated/...` from parsed generations, `text/...` of
        generated replies against the gold ones (not of prompts that name another strategy), `adherence/...` of judged
        replies; a group is absent where nothing was measured. All samples of a decision count, in `n` and
        `text/replies` too; `text/distinct_...`, which depends on the number of replies, is the mean over the samples.
        `generation/...` says how the replies were drawn.
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
    written = [p for p in predictions if p.reply is not None and p.to_gold]
    if written:
        if written[0].prompted is None:
            _choice(GENERATED, written, [p.strategy for p in written], inventory, metrics, tables)
        metrics |= _text_metrics(written)
    metrics |= _sampling(predictions) | _spread(written)
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
    overlap = TextOverlap()
    overlap.update([p.reply or "" for p in predictions], [p.gold_reply for p in predictions])
    samples = sorted({prediction.sample for prediction in predictions})
    diverse = _diversity([p.reply or "" for p in predictions if p.sample == sample] for sample in samples)
    values = {**diverse, **{name: float(value) for name, value in overlap.compute().items()}}
    return {f"text/{name}": value for name, value in values.items()}


def _diversity(groups: Iterable[Sequence[str]]) -> dict[str, float]:
    """Distinct-n and length of each group of replies on its own, means over the groups."""
    found = []
    for replies in groups:
        metric = Diversity()
        metric.update(replies)
        found.append(metric.compute())
    return {name: float(np.mean([one[name] for one in found])) for name in ("distinct_1", "distinct_2", "reply_length")}


def _sampling(predictions: Sequence[Prediction]) -> dict[str, float]:
    """How replies were drawn: `generation/temperature`, `top_p`, `max_new_tokens` and `samples`."""
    drawn = next((prediction.sampling for prediction in predictions if prediction.sampling), None)
    if drawn is None:
        return {}
    found = {name: float(drawn[name]) for name in ("temperature", "top_p", "max_new_tokens")}
    found["samples"] = 1.0 + max(prediction.sample for prediction in predictions)
    return {f"generation/{name}": value for name, value in found.items()}


def _spread(written: Sequence[Prediction]) -> dict[str, float]:
    """How samples of one prompt differ, and how strategies that were sampled differ from the exact distribution.

    Returns:
        `generated/agreement`: the share of pairs of samples with the same strategy, among those that name one.
        `text/self_distinct_1`, `text/self_distinct_2`: distinct-n of the samples of a prompt, mean over the prompts.
        `generated/distance_to_exact`: total variation distance (0 to 1) between how often each strategy was written and
        how probable it was at these decisions; of replies drawn as the model has it (temperature 1, top_p 1).
    """
    prompts: dict[tuple[str, int, str | None], list[Prediction]] = {}
    for one in written:
        prompts.setdefault((one.dialogue, one.turn, one.prompted), []).append(one)
    found: dict[str, float] = {}
    several = [group for group in prompts.values() if len(group) > 1]
    if several:
        alone = _diversity([one.reply or "" for one in group] for group in several)
        found |= {f"text/self_{name}": alone[name] for name in ("distinct_1", "distinct_2")}
        named = ([one.strategy for one in group if one.strategy] for group in several)
        pairs = [first == second for names in named for first, second in combinations(names, 2)]
        if pairs and written[0].prompted is None:
            found["generated/agreement"] = float(np.mean(pairs))
    sampling = written[0].sampling if written else {}
    scored = [group for group in prompts.values() if group[0].distribution and any(one.strategy for one in group)]
    if scored and (sampling.get("temperature"), sampling.get("top_p")) == (1.0, 1.0):
        found["generated/distance_to_exact"] = _distance_to_exact(scored)
    return found


def _distance_to_exact(groups: Sequence[Sequence[Prediction]]) -> float:
    """Total variation distance of the strategies that were written from their probabilities at the same decisions."""
    difference: Counter[str] = Counter()
    for group in groups:
        names = [one.strategy for one in group if one.strategy]
        difference.update(names)
        difference.subtract({name: len(names) * share for name, share in group[0].distribution.items()})
    total = sum(one.strategy is not None for group in groups for one in group)
    return sum(map(abs, difference.values())) / (2 * total)
