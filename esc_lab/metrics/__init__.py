"""Metrics of the field as `torchmetrics.Metric` classes: strategy choice, attention, text overlap,
diversity, perplexity."""

from esc_lab.metrics.attention import StrategyRelevantAttention
from esc_lab.metrics.preference import PreferenceBias, strategy_preference
from esc_lab.metrics.proficiency import StrategyProficiency, resolve_gold
from esc_lab.metrics.text import Diversity, ReplyPerplexity, TextOverlap, bleu_counts

__all__ = [
    "Diversity",
    "PreferenceBias",
    "ReplyPerplexity",
    "StrategyProficiency",
    "StrategyRelevantAttention",
    "TextOverlap",
    "bleu_counts",
    "resolve_gold",
    "strategy_preference",
]
