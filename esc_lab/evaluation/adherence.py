"""Whether replies follow the strategy that they were to follow, as a classifier of replies sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from esc_lab.data.strategies import Inventory
from esc_lab.metrics.predictions import Prediction
from esc_lab.scorers.classifier import StrategyClassifier, choose_strategies


def judge_adherence(
    predictions: Sequence[Prediction],
    classifier: StrategyClassifier,
    inventory: Inventory,
    *,
    gold: bool = False,
    row_tokens: int,
) -> None:
    """Let the classifier judge all replies at once.

    Args:
        gold: judge the gold replies, in place of those that were written.
    """
    followed = [prediction for prediction in predictions if prediction.followed]
    texts = [(prediction, prediction.gold_reply if gold else prediction.reply) for prediction in followed]
    asked = [(prediction, text) for prediction, text in texts if text is not None]
    scores: Any = classifier.predict([text for _, text in asked], row_tokens=row_tokens)
    for (prediction, _), number in zip(asked, choose_strategies(scores).tolist(), strict=True):
        prediction.judged = inventory.names[number] if number >= 0 else None
        prediction.adheres = prediction.judged == prediction.followed
