"""Intervals of means over judged decisions: the bootstrap draws dialogues, with all their decisions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from esc_lab.comparison.measures import mean
from esc_lab.evaluation.decisions import FloatArray
from esc_lab.sra.replies import Interval, interval
from esc_lab.statistics.significance import Draws, bootstrap


class Resampling:
    """Draws of the dialogues that judged decisions are from; all runs see the same ones.

    Args:
        trees: [decisions], the tree of each decision's dialogue; those of one tree are drawn together.
        draws, seed: of the bootstrap.
    """

    def __init__(self, trees: Sequence[str], draws: int, seed: int) -> None:
        names, self.cluster = np.unique(np.asarray(trees), return_inverse=True)
        self.clusters = len(names)
        self._draws = Draws(self.clusters, draws, seed)

    def mean(self, values: FloatArray) -> Interval:
        """Mean of values [decisions] with its 95 % interval, nan values left out.

        From a single dialogue nothing can be said about others: the interval has no ends.
        """
        known = ~np.isnan(values)
        cluster = self.cluster[known]
        counted = (values[known], np.ones(known.sum()))
        sums = np.stack([np.bincount(cluster, one, self.clusters) for one in counted]).astype(np.float64)
        drawn = bootstrap(sums[None], mean, self._draws)[0]
        return interval(np.concatenate([mean(sums.sum(axis=1, keepdims=True)), drawn]))

    def weights(self, known: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """[1 + draws, known decisions]: how often each draw has a decision; the first row is all ones."""
        drawn = self._draws.weights[np.dtype(np.float64)][self.cluster[known]].T
        return np.concatenate([np.ones((1, drawn.shape[1])), drawn])
