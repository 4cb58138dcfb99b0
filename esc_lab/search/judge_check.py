"""Before a judge is trusted: does it score the gold reply above one from another dialogue?

Every reply stands once in its own place and once in a foreign one, so a judge that looks at the reply alone has an AUC
of one half.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from esc_lab.data.dialogue import Dialogue, Turn
from esc_lab.errors import UserError
from esc_lab.seeds import derive_seed
from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.intervals import Interval, percentile_interval

TRUSTED_AUC = 0.6


class CheckPair(NamedTuple):
    """A context with its gold reply and one of another dialogue, both without rejected replies.

    The history leaves out an opening by the supporter, which the judge of the search does not see either.
    """

    history: tuple[Turn, ...]
    gold: Turn
    shuffled: Turn
    tree_id: str


@dataclass(frozen=True)
class JudgeCheck:
    """AUC of a judge between gold and shuffled replies, the ends of its interval, and what it was measured on."""

    auc: float
    low: float
    high: float
    pairs: int
    dialogues: int

    @property
    def trusted(self) -> bool:
        return self.auc >= TRUSTED_AUC


def draw_check_pairs(dialogues: Sequence[Dialogue], count: int, seed: int) -> list[CheckPair]:
    """Contexts of dialogues, drawn from the seed, as evenly over trees as they allow.

    The shuffled replies are the gold ones of the others, each once; never one of the same `tree_id`. An opening is no
    context and no reply. Turns that several dialogues of a tree share count once.

    There are fewer than `count` where the dialogues do not have as many.

    Raises:
        UserError: `count` is below 2, or fewer than two trees have a supporter turn after the opening.
    """
    if count < 2:
        raise UserError(f"{count} gold replies cannot be shuffled", fix="check the judge on 2 or more")
    by_tree: dict[str, dict[tuple[tuple[Turn, ...], Turn], None]] = {}
    for dialogue in dialogues:
        turns = [Turn(turn.speaker, turn.reply) for turn in dialogue.turns]
        opening = next((index for index, turn in enumerate(turns) if turn.speaker == "seeker"), len(turns))
        contexts = {(tuple(turns[opening:index]), turns[index]): None for index in dialogue.decisions()}
        by_tree.setdefault(dialogue.tree_id, {}).update(contexts)
    draw = np.random.default_rng(derive_seed(seed, "judge check"))
    names = [name for name, contexts in by_tree.items() if contexts]
    order = [names[index] for index in draw.permutation(len(names))]
    shuffled = {name: [list(by_tree[name])[index] for index in draw.permutation(len(by_tree[name]))] for name in order}
    sizes, largest = _sizes([len(shuffled[name]) for name in order], count)
    if not largest:
        fix = "give more seed dialogues, or leave the check of the judge out"
        raise UserError("replies cannot be exchanged: fewer than two dialogues have supporter turns", fix=fix)
    picked = [(name, *place) for name, size in zip(order, sizes, strict=True) for place in shuffled[name][:size]]
    # The contexts of a tree stand together, at most half of all are one tree's, so this shift leads out of every tree.
    replies = [picked[(index + largest) % len(picked)][2] for index in range(len(picked))]
    return [CheckPair(history, gold, reply, name) for (name, history, gold), reply in zip(picked, replies, strict=True)]


def _sizes(available: Sequence[int], count: int) -> tuple[list[int], int]:
    """How many contexts to take of each tree, and the largest of these numbers; no tree gets more than half of all."""
    sizes, largest = [0] * len(available), 0
    while True:
        row = [index for index, there in enumerate(available) if there > largest][: count - sum(sizes)]
        if not row or sum(sizes) + len(row) < 2 * (largest + 1):
            return sizes, largest
        largest += 1
        for index in row:
            sizes[index] += 1


def measure_judge(
    gold: Sequence[float], shuffled: Sequence[float], dialogues: Sequence[str], *, seed: int, draws: int = 2000
) -> JudgeCheck:
    """AUC of contexts [n] of dialogues whose two replies were both scored, with a 95 % percentile interval.

    It is the probability that the score of a gold reply is above that of a shuffled one, ties counted half. Any gold
    score is compared with any shuffled one (Mann-Whitney), not only within a context. The bootstrap draws dialogues,
    with all their contexts: contexts of one dialogue are alike. From a single dialogue nothing can be said about
    others, and the interval is [0, 1]. Where all gold scores are above all shuffled ones it has no width, which says
    little if there are few dialogues.

    Raises:
        ValueError: lengths differ, there is no context, or a score is not finite.
    """
    scores = np.array([gold, shuffled], dtype=np.float64)
    if not scores.shape[1] == len(dialogues) > 0 or not np.isfinite(scores).all():
        raise ValueError(f"there is not a finite gold and shuffled score for each of {len(dialogues)} contexts")
    above = np.heaviside(scores[0][:, None] - scores[1], 0.5)  # [gold, shuffled]
    sample = ClusterSample(dialogues, draws, seed)
    interval = Interval(float(above.mean()), 0.0, 1.0)
    if sample.clusters > 1:
        member = np.eye(sample.clusters)[sample.cluster]  # [n, dialogues]
        wins, sizes, weights = member.T @ above @ member, member.sum(axis=0), sample.weights[1:]
        drawn = ((weights @ wins) * weights).sum(axis=1) / (weights @ sizes) ** 2
        interval = percentile_interval(interval.value, drawn)
    return JudgeCheck(interval.value, interval.low, interval.high, len(gold), sample.clusters)


async def check_judge(
    score: Callable[[Sequence[Turn]], Awaitable[float | None]], dialogues: Sequence[Dialogue], count: int, seed: int
) -> JudgeCheck | None:
    """Have a judge score the last turns of the conversations of `draw_check_pairs`, all at once.

    None if there is no context with both scores.
    """
    pairs = draw_check_pairs(dialogues, count, seed)
    conversations = [(*pair.history, reply) for pair in pairs for reply in (pair.gold, pair.shuffled)]
    scores = await asyncio.gather(*map(score, conversations))
    scored = [
        (gold, shuffled, pair.tree_id)
        for pair, gold, shuffled in zip(pairs, scores[::2], scores[1::2], strict=True)
        if gold is not None and shuffled is not None
    ]
    if not scored:
        return None
    gold, shuffled, ids = zip(*scored, strict=True)
    return measure_judge(gold, shuffled, ids, seed=seed)
