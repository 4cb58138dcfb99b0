"""Judges whose AUCs are planted, and how often they are believed."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from esc_lab.judge_check.cases import FOREIGN, HARD
from esc_lab.judge_check.check import JudgeCheck
from esc_lab.judge_check.measures import check_kind, measure_share
from esc_lab.statistics.auc import measure_auc

CONTEXTS = 60  # of each kind
# Variances of scores: what messages of a dialogue share, how much it tells given replies from foils, the rest.
SHARED, UNEQUAL, REST = 0.25, 0.25, 0.5


def draw_scores(draw: np.random.Generator, cluster: np.ndarray, auc: float) -> np.ndarray:
    """Scores [cases, 2] of given replies and foils, normal, with this AUC in the population of dialogues."""
    clusters = int(cluster.max()) + 1
    shared, unequal = draw.normal(size=(clusters, 1)), draw.normal(size=(clusters, 2))
    scores = SHARED**0.5 * shared + UNEQUAL**0.5 * unequal
    distance = 2**0.5 * float(ndtri(auc))  # nearly all pairs are of two dialogues, whose scores differ with variance 2
    return np.asarray(scores[cluster] + REST**0.5 * draw.normal(size=(len(cluster), 2)) + [distance, 0.0])


def simulate_check(
    draw: np.random.Generator, dialogues: int, judge: float, floor: float, *, pairwise: bool = False
) -> JudgeCheck:
    """The check of a judge on hard kinds; against replies of other dialogues it and words have an AUC of .8."""
    cluster = np.arange(CONTEXTS) % dialogues
    hard = [kind for kind in HARD if not (pairwise and kind == "wrong_strategy")]
    measure = measure_share if pairwise else measure_auc
    trees = [f"{number:03}" for number in cluster]
    kinds = {
        kind: check_kind(
            draw_scores(draw, cluster, 0.8 if kind == FOREIGN else judge),
            draw_scores(draw, cluster, 0.8 if kind == FOREIGN else floor),
            trees,
            measure,
            len(hard),
        )
        for kind in (FOREIGN, *hard)
    }
    return JudgeCheck("pairwise" if pairwise else "rubric", kinds)


def count_believed(
    dialogues: int, judge: float, floor: float, repeats: int, seed: int = 1, *, pairwise: bool = False
) -> int:
    """How many of so many judges are believed."""
    draw = np.random.default_rng(seed)
    checks = (simulate_check(draw, dialogues, judge, floor, pairwise=pairwise) for _ in range(repeats))
    return sum(check.believed for check in checks)
