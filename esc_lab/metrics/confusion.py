"""Confusion counts of strategy decisions: the state that the strategy metrics share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class StrategyConfusion(Metric):
    """Counts predicted against gold strategies. Base of the strategy metrics; it computes nothing itself.

    Attributes:
        classes: strategy names; their order gives the class indices.
        confusion: counts [n_classes + 1, n_classes], int64; rows are predictions, columns gold, the last row holds
            unparsable predictions. With several processes it holds this process's counts, except inside
            `with metric.sync_context():`.

    Args:
        classes: the inventory, two names or more.
        kwargs: settings of `torchmetrics.Metric`.

    Raises:
        ValueError: fewer than two classes, or a name occurs twice.
    """

    full_state_update = False
    is_differentiable = False
    confusion: Tensor

    def __init__(self, classes: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = tuple(classes)
        n = len(self.classes)
        if n < 2 or len(set(self.classes)) < n:
            raise ValueError(f"a strategy metric needs two or more different classes, got {self.classes}")
        self.add_state("confusion", torch.zeros(n + 1, n, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count N decisions.

        Args:
            preds: predicted class indices [N]; -1 where the output names no strategy of the inventory.
            target: gold class indices [N].

        Raises:
            ValueError: shapes differ or are not [N], values are not integers, or an index is out of range.
        """
        n = len(self.classes)
        if preds.ndim != 1 or preds.shape != target.shape:
            raise ValueError(f"preds and target must both be [N], got {list(preds.shape)} and {list(target.shape)}")
        if preds.is_floating_point() or target.is_floating_point():
            raise ValueError(f"preds and target must be class indices, got {preds.dtype} and {target.dtype}")
        if ((preds < -1) | (preds >= n)).any() or ((target < 0) | (target >= n)).any():
            raise ValueError(
                f"with {n} classes preds must lie in [-1, {n - 1}] and target in [0, {n - 1}], "
                f"got preds {sorted(set(preds.tolist()))} and target {sorted(set(target.tolist()))}"
            )
        rows = torch.where(preds < 0, n, preds.long())
        cells = torch.bincount(rows * n + target.long(), minlength=(n + 1) * n)
        self.confusion = self.confusion + cells.view(n + 1, n)

    def counts(self) -> Tensor:
        """The confusion counts as float64, [n_classes + 1, n_classes].

        Raises:
            ValueError: no decision was counted yet.
        """
        if self.confusion.sum() == 0:
            raise ValueError(f"{type(self).__name__} has no decisions to compute from: call update() first")
        return self.confusion.double()
