"""Strategy-Relevant Attention as a metric over replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from esc_lab.metrics.sra import DEFINITIONS, KINDS, ReplySRA
from esc_lab.prompts.layouts import TEMPLATES

Group = Literal["strategy", "depth", "template"]


class StrategyRelevantAttention(Metric):
    """Strategy-Relevant Attention (SRA, arXiv 2402.10453) of replies: eq. 5, its mean logarithm, and two controls.

    `compute` returns float64 scalars, each a mean over replies:

    - `sra`: attention per token of the strategy span, over response tokens, layers and heads.
    - `log_sra`: natural logarithm of a reply's `sra`; the published values.
    - `sham_net`: `log_sra` minus that of a neutral span of equal length in the same instruction. Where a span stands in
      the prompt moves `log_sra`; this difference says what the strategy adds.
    - `log_relative`: logarithm of attention times the number of visible keys; 0 = attention spread evenly.
    - `n`: number of replies.

    Args:
        strategies: names of the inventory.
        definition: `paper` or `reference` (without attention on the first token, renormalised): see `head_attention`.
        span: `name` of the strategy, `quoted` (with quotation marks) or `instruction` (name with its definition).
        heads: layers and heads of the model, for the property `heads`; left out, nothing is kept by head.

    Raises:
        ValueError: an unknown definition or span; `compute` without a reply; the replies were not measured on the span.
    """

    full_state_update = False
    values: list[Tensor]
    groups: list[Tensor]
    head_sums: Tensor

    def __init__(
        self,
        strategies: Sequence[str],
        *,
        definition: str = "paper",
        span: str = "name",
        heads: tuple[int, int] = (0, 0),
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if definition not in DEFINITIONS or span not in KINDS:
            raise ValueError(f"no SRA '{definition}/{span}': {' or '.join(DEFINITIONS)}, {', '.join(KINDS)}")
        self.measure = f"{definition}/{span}"
        self.labels: dict[Group, list[Any]] = {"strategy": list(strategies), "template": list(TEMPLATES)}
        self.add_state("values", [], dist_reduce_fx="cat")  # [replies, 3] sra, control, relative
        self.add_state("groups", [], dist_reduce_fx="cat")  # [replies, 3] strategy, depth, template
        self.add_state("head_sums", torch.zeros(heads, dtype=torch.float64), dist_reduce_fx="sum")
        self.reset()

    def reset(self) -> None:
        super().reset()
        # For an empty list torchmetrics would send float32: a process without replies must gather what the others do.
        self.values.append(torch.zeros(0, 3, dtype=torch.float64, device=self.device))
        self.groups.append(torch.zeros(0, 3, dtype=torch.int64, device=self.device))

    def update(
        self, replies: Sequence[ReplySRA], strategies: Sequence[str], depths: Sequence[int], templates: Sequence[str]
    ) -> None:
        """Add replies.

        Args:
            strategies: which each reply was told to follow, or names.
            depths: number of turns before each reply.
            templates: prompt template of each.
        """
        if not replies:
            return
        missing = [reply for reply in replies if self.measure not in reply]
        if missing:
            raise ValueError(f"replies without '{self.measure}', only {', '.join(missing[0])}")
        found = [reply[self.measure] for reply in replies]
        rows = [(one.sra, one.control, one.relative) for one in found]
        self.values.append(torch.tensor(rows, dtype=torch.float64, device=self.device))
        numbers = [
            (self.labels["strategy"].index(strategy), depth, self.labels["template"].index(template))
            for strategy, depth, template in zip(strategies, depths, templates, strict=True)
        ]
        self.groups.append(torch.tensor(numbers, device=self.device))
        if self.head_sums.numel():
            summed = torch.from_numpy(np.stack([one.heads for one in found]).sum(axis=0, dtype=np.float64))
            self.head_sums = self.head_sums + summed.to(self.device)

    def compute(self) -> dict[str, Tensor]:
        return _means(_joined(self.values))

    def by(self, group: Group) -> dict[Any, dict[str, Tensor]]:
        """`compute` for each strategy, template, or depth that occurs; of this process alone."""
        values, numbers = _joined(self.values), _joined(self.groups)
        column = numbers[:, ("strategy", "depth", "template").index(group)]
        labels = self.labels.get(group)
        return {
            labels[number] if labels else number: _means(values[column == number])
            for number in column.unique().tolist()
        }

    @property
    def heads(self) -> Tensor:
        """SRA of each head [layers, heads], mean over the replies; its mean is `sra`."""
        return self.head_sums / len(_joined(self.values))


def _joined(state: list[Tensor] | Tensor) -> Tensor:
    """A list state, which torchmetrics turns into one tensor when it gathers from processes."""
    joined = state if isinstance(state, Tensor) else torch.cat(state)
    if not len(joined):
        raise ValueError("StrategyRelevantAttention has no replies to compute from: call update() first")
    return joined


def _means(values: Tensor) -> dict[str, Tensor]:
    sra, control, relative = values.unbind(dim=1)
    return {
        "sra": sra.mean(),
        "log_sra": sra.log().mean(),
        "sham_net": (sra.log() - control.log()).mean(),
        "log_relative": relative.log().mean(),
        "n": torch.tensor(len(values), dtype=torch.float64),
    }
