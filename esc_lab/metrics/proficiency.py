"""Strategy proficiency: how often the supporter chooses the gold strategy, class by class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from esc_lab.metrics.confusion import StrategyConfusion


def resolve_gold(preds: Tensor, gold_sets: Sequence[Sequence[int]]) -> Tensor:
    """One gold class a decision, where several are right: the predicted one if it is in the set, else the set's first.

    The gold class then follows the prediction, so class supports differ between models that are scored on the same
    decisions, and scores are higher than with the first strategy as the only gold.

    Args:
        preds: predicted class indices [N], -1 for unparsable (never in a set).
        gold_sets: for every decision the gold class indices, most important first.

    Returns:
        Gold class indices [N], int64, on the device of `preds`.

    Raises:
        ValueError: the lengths differ or a set is empty.

    Example:
        >>> resolve_gold(torch.tensor([2, 1, -1]), [[0, 2], [0, 2], [0, 2]])
        tensor([2, 0, 0])
    """
    if len(preds) != len(gold_sets):
        raise ValueError(f"{len(preds)} predictions, but {len(gold_sets)} gold sets")
    empty = [i for i, gold in enumerate(gold_sets) if not gold]
    if empty:
        raise ValueError(f"decision {empty[0]} has no gold strategy")
    chosen = [pred if pred in gold else gold[0] for pred, gold in zip(preds.tolist(), gold_sets, strict=True)]
    return torch.tensor(chosen, dtype=torch.int64, device=preds.device)


class StrategyProficiency(StrategyConfusion):
    r"""Proficiency Q and Q_W (Kang et al. 2024): macro and weighted F1 of the chosen strategies.

    With hits, predictions and gold decisions of class c: precision = hits / predicted, recall = hits / gold,
    F1 = 2 hits / (predicted + gold); each is 0 where its denominator is 0.

    `compute` returns float64 scalars:

    - `macro_f1` (Q): mean F1 of the classes that occur in gold or prediction.
    - `macro_f1_inventory`: mean F1 of all classes; one that occurs nowhere counts 0.
    - `weighted_f1` (Q_W): mean F1 weighted by the gold decisions of each class.
    - `accuracy`: hits / n.
    - `n`: decisions, the unparsable ones included.
    - `classes_predicted`, `classes_gold`: number of classes that occur there.
    - `unparsable`: share of the n predictions that are -1.

    An unparsable prediction is a miss of its gold class: it lowers that class's recall and F1, hence all three F1 means
    and the accuracy. It is in no class's precision and is no class of its own. Kang et al. score nothing unless every
    output parses, so with `unparsable` above 0 the numbers have no published counterpart.

    Raises:
        ValueError: from `compute` and `per_class`, if no decision was counted.

    Example:
        >>> metric = StrategyProficiency(["Question", "Information", "Self-disclosure", "Others"])
        >>> metric.update(torch.tensor([0, 0, 1, -1]), torch.tensor([0, 1, 1, 1]))
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}  # doctest: +NORMALIZE_WHITESPACE
        {'macro_f1': 0.583, 'macro_f1_inventory': 0.292, 'weighted_f1': 0.542, 'accuracy': 0.5, 'n': 4.0,
         'classes_predicted': 2.0, 'classes_gold': 2.0, 'unparsable': 0.25}
        >>> metric.per_class()["recall"]
        tensor([1.0000, 0.3333, 0.0000, 0.0000], dtype=torch.float64)
        >>> metric.confusion  # rows predicted, the last one unparsable; columns gold
        tensor([[1, 1, 0, 0],
                [0, 1, 0, 0],
                [0, 0, 0, 0],
                [0, 0, 0, 0],
                [0, 1, 0, 0]])
    """

    higher_is_better = True

    def per_class(self) -> dict[str, Tensor]:
        """`precision`, `recall`, `f1` and `support` (gold decisions) of every class: [n_classes] each, float64.

        Like `confusion`, these are the numbers of this process, except inside `with metric.sync_context():`.
        """
        counts = self.counts()
        hits = counts.diagonal()
        predicted, support = counts[:-1].sum(1), counts.sum(0)
        # Counts are whole numbers, so clamping touches only denominators of 0, where the hits are 0 too.
        return {
            "precision": hits / predicted.clamp(min=1),
            "recall": hits / support.clamp(min=1),
            "f1": 2 * hits / (predicted + support).clamp(min=1),
            "support": support,
        }

    def compute(self) -> dict[str, Tensor]:
        # torchmetrics' own F1 has no place for predictions outside the classes, hence the means are taken here.
        counts, scores = self.counts(), self.per_class()
        f1, support = scores["f1"], scores["support"]
        predicted, n = counts[:-1].sum(1), counts.sum()
        return {
            "macro_f1": f1[predicted + support > 0].mean(),
            "macro_f1_inventory": f1.mean(),
            "weighted_f1": (f1 * support).sum() / n,
            "accuracy": counts.diagonal().sum() / n,
            "n": n,
            "classes_predicted": (predicted > 0).sum().double(),
            "classes_gold": (support > 0).sum().double(),
            "unparsable": counts[-1].sum() / n,
        }
