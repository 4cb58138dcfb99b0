"""Before a judge's numbers are believed: does it tell the gold reply from one of another dialogue?

The rule: the share of comparisons that the gold reply wins (for the rubric judge the AUC of its scores, for the
pairwise judge the share of pairs, an order mismatch half) reaches a limit, and the lower end of its 95 % interval lies
above one half. The first asks for a judge that is good, the second that it was not good by luck on few contexts.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from esc_lab.data.dialogue import Dialogue, Turn
from esc_lab.judging.results import Pair
from esc_lab.search.judge_check import check_judge, draw_check_pairs
from esc_lab.statistics.bootstrap import ClusterSample

DRAWS = 10_000


@dataclass(frozen=True)
class Gate:
    """How a judge (`rubric` or `pairwise`) did.

    Attributes:
        value, low, high: AUC or share of pairs, and its 95 % interval; nan if it gave no usable answer.
        contexts, dialogues: what it was measured on.
        min_value: the limit of the value.
    """

    judge: str
    value: float
    low: float
    high: float
    contexts: int
    dialogues: int
    min_value: float

    @property
    def passed(self) -> bool:
        return self.value >= self.min_value and self.low > 0.5

    @property
    def text(self) -> str:
        """What was measured, in words."""
        if not self.contexts:
            return f"{self.judge} judge: no usable answer"
        name, what = ("AUC", "above") if self.judge == "rubric" else ("share", "preferred to")
        value = f"{name} {self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.judge} judge: {value} of gold {what} shuffled replies ({self.contexts} contexts)"


async def check_rubric(
    score: Callable[[Sequence[Turn]], Awaitable[float | None]],
    dialogues: Sequence[Dialogue],
    contexts: int,
    min_value: float,
    seed: int,
) -> Gate:
    """The check that the search makes of its judge, with a limit; raises what `draw_check_pairs` does."""
    check = await check_judge(score, dialogues, contexts, seed)
    if check is None:
        return Gate("rubric", math.nan, math.nan, math.nan, 0, 0, min_value)
    return Gate("rubric", check.auc, check.low, check.high, check.pairs, check.dialogues, min_value)


async def check_pairwise(
    compare: Callable[[Sequence[Turn], Turn, Turn], Awaitable[Pair]],
    dialogues: Sequence[Dialogue],
    contexts: int,
    min_value: float,
    seed: int,
) -> Gate:
    """The share of contexts in which the gold reply is preferred to the shuffled one.

    Args:
        compare: the pair of two replies to a history, asked in both orders.

    Raises:
        UserError: see `draw_check_pairs`.
    """
    drawn = draw_check_pairs(dialogues, contexts, seed)
    pairs = await asyncio.gather(*(compare(check.history, check.gold, check.shuffled) for check in drawn))
    known = [
        (check.tree_id, pair.outcome) for check, pair in zip(drawn, pairs, strict=True) if pair.outcome is not None
    ]
    if not known:
        return Gate("pairwise", math.nan, math.nan, math.nan, 0, 0, min_value)
    sample = ClusterSample([tree for tree, _ in known], DRAWS, seed)
    share = sample.mean(np.array([outcome for _, outcome in known], dtype=np.float64))
    low, high = (0.0, 1.0) if sample.clusters < 2 else (share.low, share.high)
    return Gate("pairwise", share.value, low, high, len(known), sample.clusters, min_value)
