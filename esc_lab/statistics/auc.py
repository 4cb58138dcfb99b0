"""Area under the ROC curve (AUC) of scores in clusters, in every draw of a bootstrap or with each cluster left out."""

from __future__ import annotations

import numpy as np

from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.intervals import FloatArray


def measure_auc(positive: FloatArray, negative: FloatArray, sample: ClusterSample) -> FloatArray:
    """AUCs [1 + draws]: the probability that a positive score is above a negative one, ties counted half.

    Any positive score is compared with any negative one (Mann-Whitney), not only with its own. The bootstrap draws
    clusters with all their observations. Where all positive scores are above all negative ones the draws do not differ,
    which says little if there are few clusters.

    Args:
        positive, negative: [n], two scores of each observation of the sample.

    Raises:
        ValueError: there are not as many as observations, or a score is not finite.
    """
    scores = np.array([positive, negative], dtype=np.float64)
    if not scores.shape[1] == len(sample.cluster) > 0 or not np.isfinite(scores).all():
        raise ValueError(f"there are not two finite scores for each of {len(sample.cluster)} observations")
    above = np.heaviside(scores[0][:, None] - scores[1], 0.5)  # [positive, negative]
    member = np.eye(sample.clusters)[sample.cluster]  # [n, clusters]
    wins, sizes = member.T @ above @ member, member.sum(axis=0)
    weights = sample.weights
    with np.errstate(invalid="ignore"):  # nothing is left of a single cluster without it
        return np.asarray(((weights @ wins) * weights).sum(axis=1) / (weights @ sizes) ** 2)
