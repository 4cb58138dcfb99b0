"""Before a judge's numbers are believed: does it tell the reply that was given from one of another dialogue?

The rule: the share of comparisons that the given reply wins (for the rubric judge the AUC of its scores, for the
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
from esc_lab.judging.pairwise import Pair
from esc_lab.search.judge_check import check_judge, draw_check_pairs
from esc_lab.statistics.bootstrap import ClusterSample

CHANCE = 0.5
DRAWS = 10_000


@dataclass(frozen=True)
class Gate:
    """How a judge did.

    Attributes:
        judge: `rubric` or `pairwise`.
        value, low, high: AUC or share of pairs, and its 95 % interval; nan if it gave no usable answer.
        contexts, dialogues: what it was measured on.
        least: the limit of the value.
    """

    judge: str
    value: float
    low: float
    high: float
    contexts: int
    dialogues: int
    least: float

    @property
    def passed(self) -> bool:
        return self.value >= self.least and self.low > CHANCE

    @property
    def text(self) -> str:
        """What was measured, in words."""
        if not self.contexts:
            return f"{self.judge} judge: no usable answer"
        name = "AUC" if self.judge == "rubric" else "share"
        ends = f"[{self.low:.2f}, {self.high:.2f}]"
        what = "given above shuffled replies" if self.judge == "rubric" else "given preferred to shuffled replies"
        return f"{self.judge} judge: {name} {self.value:.2f} {ends} of {what} ({self.contexts} contexts)"


async def rubric_gate(
    score: Callable[[Sequence[Turn]], Awaitable[float | None]],
    dialogues: Sequence[Dialogue],
    contexts: int,
    least: float,
    seed: int,
) -> Gate:
    """The check that the search makes of its judge, with a limit.

    Raises:
        UserError: replies cannot be exchanged between dialogues: there are fewer than two.
    """
    found = await check_judge(score, dialogues, contexts, seed)
    if found is None:
        return Gate("rubric", math.nan, math.nan, math.nan, 0, 0, least)
    return Gate("rubric", found.auc, found.low, found.high, found.pairs, found.dialogues, least)


async def pairwise_gate(
    compare: Callable[[Sequence[Turn], Turn, Turn], Awaitable[Pair]],
    dialogues: Sequence[Dialogue],
    contexts: int,
    least: float,
    seed: int,
) -> Gate:
    """The share of contexts in which the given reply is preferred to the shuffled one.

    Args:
        compare: the pair of two replies to a history, asked in both orders.

    Raises:
        UserError: replies cannot be exchanged between dialogues: there are fewer than two.
    """
    checked = draw_check_pairs(dialogues, contexts, seed)
    pairs = await asyncio.gather(*(compare(one.history, one.gold, one.shuffled) for one in checked))
    known = [(one.tree_id, pair.outcome) for one, pair in zip(checked, pairs, strict=True) if pair.outcome is not None]
    if not known:
        return Gate("pairwise", math.nan, math.nan, math.nan, 0, 0, least)
    trees, outcomes = zip(*known, strict=True)
    sample = ClusterSample(trees, DRAWS, seed)
    share = sample.mean(np.array(outcomes, dtype=np.float64))
    low, high = (0.0, 1.0) if sample.clusters < 2 else (share.low, share.high)
    return Gate("pairwise", share.value, low, high, len(known), sample.clusters, least)
