"""Strengths of what is compared in pairs, by the model of Bradley and Terry, from wins in which a tie is half a win.

Bradley and Terry (1952): P(i beats j) = logistic(s_i - s_j). The estimate is that of maximum likelihood, by the package
`choix` (Maystre and Grossglauser 2015, I-LSR). A tie counts as half a win of each side. Where all met equally often
that gives the order of Davidson's model, which has a parameter of its own for ties, but draws the strengths together.

Who wins all of its comparisons would be infinitely strong. So each pair that met has `IMAGINED` further wins of each
side: strengths are finite, and little smaller where there are many comparisons.
"""

from __future__ import annotations

import math

import numpy as np

from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.intervals import FloatArray, IntArray, Interval, percentile_interval

IMAGINED = 0.1


def bradley_terry(first: IntArray, second: IntArray, outcome: FloatArray, sample: ClusterSample) -> list[Interval]:
    """Strength of each of k competitors in natural logarithms of odds, their mean 0, with bootstrap intervals.

    Args:
        first, second: [n], numbers of the two that were compared, from 0 to k - 1.
        outcome: [n], 1 if the first one won, 0 if the second did, 0.5 for a tie.
        sample: clusters of the comparisons.

    Returns:
        nan for all if they are not linked by comparisons, so that there is no common scale.

    Raises:
        ImportError: the package is not installed.
    """
    import choix

    size = int(max(first.max(), second.max())) + 1
    wins = np.zeros((sample.clusters, size, size))
    np.add.at(wins, (sample.cluster, first, second), outcome)
    np.add.at(wins, (sample.cluster, second, first), 1 - outcome)
    drawn = np.tensordot(sample.weights, wins, axes=1)
    met = drawn[0] + drawn[0].T > 0
    if not np.linalg.matrix_power(met + np.eye(size), size).all():
        return [Interval(math.nan, math.nan, math.nan)] * size
    strengths = np.array([choix.ilsr_pairwise_dense(matrix + IMAGINED * met) for matrix in drawn])
    strengths -= strengths.mean(axis=1, keepdims=True)
    ends = strengths[1:] if sample.clusters > 1 else strengths[:0]
    return [percentile_interval(strengths[0, number], ends[:, number]) for number in range(size)]
