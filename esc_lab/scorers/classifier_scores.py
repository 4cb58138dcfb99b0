"""How good a strategy classifier is on held-out replies: metrics, and a table by strategy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from esc_lab.metrics import StrategyProficiency
from esc_lab.scorers.adherence import LabelledReply
from esc_lab.scorers.classifier import StrategyClassifier, choose_strategies
from esc_lab.terminal import print_table

_METRICS = {
    "accuracy": "accuracy", "Q": "macro_f1", "Q_W": "weighted_f1", "n": "n", "classes_predicted": "classes_predicted",
}  # fmt: skip


def score_classifier(
    classifier: StrategyClassifier, training: Sequence[LabelledReply], test: Sequence[LabelledReply], row_tokens: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics of the predictions on the test replies, and a row for each strategy.

    `majority_accuracy` is that of always naming the most frequent strategy of the training replies.

    Args:
        row_tokens: budget of one forward pass in padded tokens.
    """
    classifier.model.to("cuda" if torch.cuda.is_available() else "cpu")
    predicted = choose_strategies(classifier.predict([example.text for example in test], row_tokens=row_tokens))
    proficiency = StrategyProficiency(classifier.inventory.names)
    proficiency.update(predicted, torch.tensor([example.strategy for example in test]))
    scores = proficiency.compute()
    ((majority, _),) = Counter(example.strategy for example in training).most_common(1)
    metrics = {name: float(scores[score]) for name, score in _METRICS.items()}
    metrics["majority_accuracy"] = sum(example.strategy == majority for example in test) / len(test)
    columns = {name: values.tolist() for name, values in proficiency.per_class().items()}
    rows = [
        {"strategy": strategy, **{name: values[number] for name, values in columns.items()}}
        for number, strategy in enumerate(classifier.inventory.names)
    ]
    return {f"classifier/{name}": value for name, value in metrics.items()}, rows


def print_scores(title: str, metrics: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> None:
    """The metrics and rows of `score_classifier` as a table."""
    caption = (
        f"accuracy {metrics['classifier/accuracy']:.3f} (most frequent strategy "
        f"{metrics['classifier/majority_accuracy']:.3f})  Q {metrics['classifier/Q']:.3f}  "
        f"n {metrics['classifier/n']:.0f}"
    )
    decimals = {"precision": 3, "recall": 3, "f1": 3, "support": 0, "predicted": 0}
    print_table(
        title,
        ["strategy", "precision", "recall", "F1", "gold", "predicted"],
        [[row["strategy"], *(f"{row[key]:.{digits}f}" for key, digits in decimals.items())] for row in rows],
        caption=caption,
    )
