"""Preference bias: how unevenly the wrong choices fall on the strategies."""

from __future__ import annotations

import torch
from torch import Tensor

from esc_lab.metrics.confusion import StrategyConfusion

ITERATIONS = 20


def strategy_preference(confusion: Tensor) -> tuple[Tensor, Tensor]:
    """Preference p of a model for each strategy (Kang et al. 2024), guarded: see `PreferenceBias`.

    Args:
        confusion: counts [..., n_classes, n_classes], rows predicted, columns gold; leading dimensions are independent
            tables, such as bootstrap samples.

    Returns:
        p [..., n_classes], float64, with mean 1 over the classes; and bool [...], true where the guard acted.

    Example:
        >>> p, guarded = strategy_preference(torch.tensor([[9, 4, 2], [1, 5, 1], [1, 2, 7]]))
        >>> p, guarded
        (tensor([1.7143, 0.4286, 0.8571], dtype=torch.float64), tensor(False))
    """
    errors = confusion.double()
    raw = _iterate(errors)
    guarded = ~raw.isfinite().all(-1)
    half_an_error = 0.5 / (errors.shape[-1] - 1)
    return torch.where(guarded.unsqueeze(-1), _iterate(errors + half_an_error), raw), guarded


def _iterate(errors: Tensor) -> Tensor:
    """The published iteration, unguarded: p [..., n], nan where it divides by zero. The diagonal is not read."""
    n = errors.shape[-1]
    p = torch.ones_like(errors[..., 0])
    for _ in range(ITERATIONS):
        for i in range(n):
            others = [j for j in range(n) if j != i]
            both = p[..., i : i + 1] + p[..., others]
            wins = (errors[..., i, others] * p[..., others] / both).sum(-1)
            p[..., i] = wins / (errors[..., others, i] / both).sum(-1)
        positive = p > 0
        p = p / (torch.where(positive, p.log(), 0.0).sum(-1, keepdim=True) / positive.sum(-1, keepdim=True)).exp()
    return p * n / p.sum(-1, keepdim=True)


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
        ValueError: from `compute` and `preference`, if no decision was counted. If all of them are unparsable, n and B
            are 0 and the guard is 1.

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

    @property
    def preference(self) -> Tensor:
        """Preference p [n_classes], float64, mean 1; of this process, except inside `with metric.sync_context():`."""
        return strategy_preference(self.counts()[:-1])[0]

    def compute(self) -> dict[str, Tensor]:
        counts = self.counts()
        preference, guarded = strategy_preference(counts[:-1])
        return {
            "bias": preference.std(correction=0),
            "n": counts[:-1].sum(),
            "classes_predicted": (counts[:-1].sum(1) > 0).sum().double(),
            "unparsable": counts[-1].sum() / counts.sum(),
            "guard": guarded.double(),
        }
