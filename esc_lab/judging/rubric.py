"""Scores of replies on the axes of the judge, and what they say of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from esc_lab.search.role_prompts import Axis
from esc_lab.search.roles import turn_score
from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.intervals import Interval

OVERALL = "overall"
Scores = Mapping[str, float]


@dataclass(frozen=True)
class RubricResult:
    """Rubric scores of a run.

    Attributes:
        means: of each axis and of the weighted mean over the axes (`overall`), from 0 to 4.
        replies: that were scored.
        missing: replies that the judge gave no usable score.
    """

    means: Mapping[str, Interval]
    replies: int
    missing: int


def rubric_result(scores: Sequence[Scores | None], axes: Sequence[Axis], sample: ClusterSample) -> RubricResult:
    """The result from the scores [decisions] of a run's replies; None where the judge gave none."""
    columns = {axis.name: [math.nan if one is None else one[axis.name] for one in scores] for axis in axes}
    columns[OVERALL] = [math.nan if one is None else turn_score(dict(one), axes) for one in scores]
    missing = sum(one is None for one in scores)
    means = {name: sample.mean(np.array(values)) for name, values in columns.items()}
    return RubricResult(means, len(scores) - missing, missing)
