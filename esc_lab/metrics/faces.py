"""Strategy choice and attention as `torchmetrics.Metric` classes: they count, the definitions compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torchmetrics
from torch import Tensor

from esc_lab.metrics import strategy_choice
from esc_lab.metrics.attention import DEFINITIONS, KINDS, ReplySRA, span_measures
from esc_lab.metrics.prediction_table import FloatArray


class StrategyConfusion(torchmetrics.Metric):
    """Counts predicted against gold strategies. Base of the strategy metrics, which say what is computed from them.

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

    def counts(self) -> FloatArray:
        """The confusion counts as float64, [n_classes + 1, n_classes].

        Raises:
            ValueError: no decision was counted yet.
        """
        if self.confusion.sum() == 0:
            raise ValueError(f"{type(self).__name__} has no decisions to compute from: call update() first")
        return self.confusion.double().cpu().numpy()

    def _tensor(self, value: FloatArray) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64, device=self.device)


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
    and the accuracy. It is in no class's precision and is no class of its own. If all are unparsable, these four are
    nan: nothing was chosen. Kang et al. score nothing unless every output parses, so with `unparsable` above 0 the
    numbers have no published counterpart.

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

    def compute(self) -> dict[str, Tensor]:
        margins = strategy_choice.count_margins(self.counts())
        values = {
            "macro_f1": strategy_choice.macro_f1,
            "macro_f1_inventory": strategy_choice.macro_f1_inventory,
            "weighted_f1": strategy_choice.weighted_f1,
            "accuracy": strategy_choice.accuracy,
            "n": strategy_choice.decisions,
            "classes_predicted": strategy_choice.classes_predicted,
            "classes_gold": strategy_choice.classes_gold,
            "unparsable": strategy_choice.unparsable,
        }
        return {name: self._tensor(value(margins)) for name, value in values.items()}

    def per_class(self) -> dict[str, Tensor]:
        """`precision`, `recall`, `f1`, `support` (gold) and `predicted` of every class: [n_classes] each, float64.

        Like `confusion`, these are the numbers of this process, except inside `with metric.sync_context():`.
        """
        return {name: self._tensor(value) for name, value in strategy_choice.class_scores(self.counts()).items()}


class PreferenceBias(StrategyConfusion):
    r"""Preference bias B (Kang et al. 2024): standard deviation of the model's preference for each strategy.

    With w[i][j] = number of decisions where i was predicted and j is gold, n classes, and p = 1 at the start::

        20 times:
            for i in order, in place:
                p[i] = sum_{j!=i} w[i][j] p[j] / (p[i] + p[j])  /  sum_{j!=i} w[j][i] / (p[i] + p[j])
            p = p / geometric mean of the positive p
        p = p * n / sum(p)

    and B is the population standard deviation of p: 0 without preferences, at most sqrt(n - 1).

    `compute` returns float64 scalars:

    - `bias` (B). It grows as n shrinks: print `n` and `classes_predicted` beside it.
    - `n`: decisions that B is computed from, the unparsable ones left out.
    - `classes_predicted`: number of classes that were predicted at least once.
    - `unparsable`: share of all predictions that are -1 and so were left out.
    - `guard`: 1 if the guard acted, else 0.

    **Guard.** The formula fits a Bradley-Terry model (Newman 2023) in which i beats j whenever i is predicted in
    place of j. It divides by zero, for example, if a class is never missed (always right, or absent from gold), if
    two classes are never predicted wrongly, or if there are no errors at all. Then, and only then, half an error in
    each direction is added for every class, spread evenly over the other classes: w[i][j] + 1 / (2 (n - 1)). Now
    every class has won and lost against every other, which is what the model needs to have finite strengths (Ford
    1957): all terms are positive, and B is finite whatever the data. All classes are treated alike. Without any error
    B = 0; for a model that always predicts one class B nears sqrt(n - 1) as its errors grow; a class without errors
    lands between the others. Half an error is less than any that can be observed, so a class that was never missed is
    preferred, but not infinitely.

    Limits: where the guard acts, B depends on that half error (less as n grows), is not the same for w and k w, and
    can step when the first missing error turns up. Where it does not act, B is the published one with its own traits:
    a class that is never predicted wrongly has p = 0; and the order of the classes shows if 20 iterations are not
    enough, or if the classes fall into groups that are never confused with each other.

    Raises:
        ValueError: from `compute` and `preference`, if no decision was counted. If all of them are unparsable, n is 0
            and B, the guard and the preferences are nan.

    Example:
        >>> metric = PreferenceBias(["Question", "Information", "Others"])
        >>> metric.update(torch.tensor([0, 0, 0, 1, 2, 0, -1]), torch.tensor([0, 1, 2, 0, 1, 1, 2]))
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}
        {'bias': 0.496, 'n': 6.0, 'classes_predicted': 3.0, 'unparsable': 0.143, 'guard': 0.0}
        >>> metric.preference
        tensor([1.6601, 0.4631, 0.8768], dtype=torch.float64)
        >>> metric.reset()
        >>> metric.update(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 1, 2, 1]))
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}
        {'bias': 0.93, 'n': 4.0, 'classes_predicted': 1.0, 'unparsable': 0.0, 'guard': 1.0}
    """

    higher_is_better = False

    def compute(self) -> dict[str, Tensor]:
        counts = self.counts()
        margins = strategy_choice.count_margins(counts)
        values = {
            "bias": strategy_choice.bias(counts[:-1]),
            "n": counts[:-1].sum(),
            "classes_predicted": strategy_choice.classes_predicted(margins),
            "unparsable": strategy_choice.unparsable(margins),
            "guard": strategy_choice.guard(counts[:-1]),
        }
        return {name: self._tensor(value) for name, value in values.items()}

    @property
    def preference(self) -> Tensor:
        """Preference p [n_classes], float64, mean 1; of this process, except inside `with metric.sync_context():`."""
        return self._tensor(strategy_choice.preferences(self.counts()[:-1]))


class StrategyRelevantAttention(torchmetrics.Metric):
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
        definition: `paper`, `reference` (without attention on the first token, renormalised) or `first_token` (that of
            the first reply token alone): see `head_attention`.
        span: `name` of the strategy, `quoted` (with quotation marks), `quoted_strategy` (`"<name>" strategy`) or
            `instruction` (name with its definition).
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
        self.strategies = list(strategies)
        self.add_state("values", [], dist_reduce_fx="cat")  # [replies, 3] sra, control, relative
        self.add_state("groups", [], dist_reduce_fx="cat")  # [replies, 2] strategy, depth
        self.add_state("head_sums", torch.zeros(heads, dtype=torch.float64), dist_reduce_fx="sum")
        self.reset()

    def reset(self) -> None:
        super().reset()
        # For an empty list torchmetrics would send float32: a process without replies must gather what the others do.
        self.values.append(torch.zeros(0, 3, dtype=torch.float64, device=self.device))
        self.groups.append(torch.zeros(0, 2, dtype=torch.int64, device=self.device))

    def update(self, replies: Sequence[ReplySRA], strategies: Sequence[str], depths: Sequence[int]) -> None:
        """Add replies.

        Args:
            strategies: which each reply was told to follow, or names.
            depths: number of turns before each reply.
        """
        if not replies:
            return
        missing = [reply for reply in replies if self.measure not in reply]
        if missing:
            raise ValueError(f"replies without '{self.measure}', only {', '.join(missing[0])}")
        spans = [reply[self.measure] for reply in replies]
        rows = [(span.sra, span.control, span.relative) for span in spans]
        self.values.append(torch.tensor(rows, dtype=torch.float64, device=self.device))
        groups = [[self.strategies.index(name), depth] for name, depth in zip(strategies, depths, strict=True)]
        self.groups.append(torch.tensor(groups, device=self.device))
        if self.head_sums.numel():
            summed = torch.from_numpy(np.stack([span.heads for span in spans]).sum(axis=0, dtype=np.float64))
            self.head_sums = self.head_sums + summed.to(self.device)

    def compute(self) -> dict[str, Tensor]:
        return _means(_joined(self.values))

    def by(self, group: Literal["strategy", "depth"]) -> dict[Any, dict[str, Tensor]]:
        """`compute` for each strategy or depth that occurs; of this process alone."""
        values, numbers = _joined(self.values), _joined(self.groups)[:, ("strategy", "depth").index(group)]
        return {
            self.strategies[number] if group == "strategy" else number: _means(values[numbers == number])
            for number in numbers.unique().tolist()
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
    measures = {name: torch.tensor(v.mean()) for name, v in span_measures(*values.T.cpu().numpy()).items()}
    return {**measures, "n": torch.tensor(float(len(values)), dtype=torch.float64)}
