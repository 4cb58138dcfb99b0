"""Made-up models with a planted truth: other seeds and other dialogues give other counts, and what all of them would
give together is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from esc_lab.metrics.records import METRICS
from esc_lab.statistics.crossed_effects import SeedTable, influence

SHARES = np.array([0.185, 0.056, 0.08, 0.096, 0.162, 0.16, 0.065, 0.196])  # of the strategies of ESConv
CLASSES = len(SHARES)
_WRONG_TURNS = 0.7  # sd of what one training makes of one decision, beside what all make of it


@dataclass(frozen=True)
class Population:
    """Counts of many trainings of a method on many dialogues.

    Attributes:
        counts: [dialogues, seeds, classes * classes]; predicted (outer) and gold.
        metric: `Q` or `B`.
        truth: [seeds], the metric of each on all dialogues.
    """

    counts: npt.NDArray[np.int8]
    metric: str
    truth: npt.NDArray[np.float64]

    def draw(self, chance: np.random.Generator, seeds: int, dialogues: npt.NDArray[np.intp]) -> SeedTable:
        """Runs of some seeds, drawn at random, on dialogues."""
        return self.run(chance.integers(self.counts.shape[1], size=seeds), dialogues)

    def run(self, seeds: npt.NDArray[np.intp], dialogues: npt.NDArray[np.intp]) -> SeedTable:
        sums = [_sums(self.metric, self.counts[dialogues, seed]) for seed in seeds]
        value = METRICS[f"strategy/{self.metric}"].definition.value
        values = np.array([value(own.sum(axis=1, keepdims=True))[0] for own in sums])
        changes = np.stack([influence(own, value) for own in sums])
        return SeedTable(values, changes, np.ones(len(dialogues), bool))


def simulate_population(
    metric: str = "Q",
    *,
    spread: float = 0.1,
    preference: float = 0.8,
    skill: float = 1.2,
    turns: float = 14,
    dialogues: int = 2000,
    seeds: int = 200,
    seed: int = 0,
) -> Population:
    """Trainings that differ in skill and in what they prefer, on dialogues that differ in strategies and in difficulty.

    A model takes the strategy with the highest score: how common it is, what the method prefers, what the decision
    suggests (to all models alike, and to this one), and more for the gold one.

    Args:
        spread: sd of skill and preferences between seeds.
        preference: sd of what all seeds of the method prefer.
        turns: decisions of a dialogue, on average.
        seed: methods of one seed have the same dialogues and, with one `spread`, the same population of trainings.
    """
    draw = np.random.default_rng(seed)
    number = np.clip(draw.poisson(turns, dialogues), 2, 40)
    shares = np.exp(draw.normal(0, 0.6, (dialogues, CLASSES))) * SHARES
    ease = draw.normal(1, 0.4, dialogues)
    likes = draw.normal(0, preference, CLASSES) + spread * draw.normal(size=(seeds, CLASSES))
    skills = skill * ease[:, None] + spread * draw.normal(size=seeds)
    counts = np.zeros((dialogues, seeds, CLASSES**2), np.int8)
    for place in range(dialogues):
        gold = draw.choice(CLASSES, size=number[place], p=shares[place] / shares[place].sum())
        shared = 0.8 * draw.gumbel(size=(len(gold), 1, CLASSES))
        own = _WRONG_TURNS * draw.normal(size=(len(gold), seeds, CLASSES))
        scores = np.log(SHARES) + likes + shared + own
        scores[np.arange(len(gold)), :, gold] += np.maximum(skills[place], 0)
        cell = scores.argmax(axis=-1) * CLASSES + gold[:, None]  # [decisions, seeds]
        np.add.at(counts[place], (np.arange(seeds), cell), 1)
    totals = counts.sum(axis=0, dtype=np.float64)
    value = METRICS[f"strategy/{metric}"].definition.value
    truth = np.array([value(_sums(metric, own[None])) for own in totals])[:, 0]
    return Population(counts, metric, truth)


def _sums(metric: str, counts: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """What a metric is summed from [k, dialogues], from counts [dialogues, classes * classes]."""
    table = counts.T.astype(np.float64)
    if metric == "B":
        return table
    square = table.reshape(CLASSES, CLASSES, -1)
    return np.concatenate([np.einsum("iin->in", square), square.sum(axis=1), square.sum(axis=0)])
