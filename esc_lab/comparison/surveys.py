"""What people said of the evaluations that are compared: a run of stage `survey` that read ratings, named beside them.

As with a judge, evaluations are recognised by the content of their predictions.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from esc_lab.artifacts import READ_ERRORS, file_fingerprint
from esc_lab.comparison.runs import Run
from esc_lab.errors import UserError
from esc_lab.metrics.prediction_table import Key
from esc_lab.metrics.records import SURVEY
from esc_lab.runs.layout import RATINGS, SURVEY_RESULT


@dataclass(frozen=True)
class SurveyedReplies:
    """Ratings in a run of stage `survey`.

    Attributes:
        values: by fingerprint of the evaluation's predictions, then by metric (`survey/<question>`), the mean rating
            of the run's reply by decision: of pairs how much it was preferred to those that it met.
        tables: as survey.json has them: `title`, `heads` and `rows`.
    """

    directory: Path
    values: Mapping[str, Mapping[str, Mapping[Key, float]]]
    tables: Sequence[Mapping[str, Any]]
    notes: Sequence[str]

    def values_of(self, run: Run) -> Mapping[str, Mapping[Key, float]]:
        """The ratings of a run's replies; empty if nobody was asked."""
        return self.values.get(file_fingerprint(run.predictions), {}) if run.predictions else {}


def read_survey(directory: Path) -> SurveyedReplies:
    """The ratings in a run directory of stage `survey`.

    Raises:
        UserError: it holds no finished run that read ratings.
    """
    try:
        record = json.loads((directory / SURVEY_RESULT).read_text(encoding="utf-8"))
        given: dict[tuple[str, str], dict[Key, list[float]]] = defaultdict(lambda: defaultdict(list))
        for line in map(json.loads, (directory / RATINGS).read_bytes().splitlines()):
            signs = (-1, 1) if len(line["runs"]) == 2 else (1,)
            for label, sign in zip(line["runs"], signs, strict=True):
                of_run = given[record["runs"][label], f"{SURVEY}{line['question']}"]
                of_run[line["dialogue"], line["turn"]].append(sign * float(line["value"]))
        values: dict[str, dict[str, dict[Key, float]]] = {}
        for (run, metric), by_key in given.items():
            values.setdefault(run, {})[metric] = {key: float(np.mean(own)) for key, own in by_key.items()}
        return SurveyedReplies(directory, values, list(record["tables"]), list(record["notes"]))
    except READ_ERRORS as error:
        message = f"no finished run that read ratings: {type(error).__name__} {error}"
        fix = "name the directory of a stage=survey with survey.results and survey.directory, or leave it out"
        raise UserError(message, where=str(directory), fix=fix) from error


def add_survey_metrics(runs: Sequence[Run], survey: SurveyedReplies) -> tuple[list[Run], list[str]]:
    """The runs, those that people were asked about with further metrics: `survey/<question>`, and `survey/n`, the
    decisions with ratings.

    Returns:
        The runs, and sentences on what stands out.

    Raises:
        UserError: people were asked about none of them.
    """
    rated = []
    for run in runs:
        means = {metric: float(np.mean([*values.values()])) for metric, values in survey.values_of(run).items()}
        count = {f"{SURVEY}n": float(max(map(len, survey.values_of(run).values())))} if means else {}
        rated.append(replace(run, metrics={**run.metrics, **means, **count}))
    evaluations = [run for run in runs if run.evaluation and not run.of_talks]
    without = [str(run.directory) for run in evaluations if not survey.values_of(run)]
    if len(without) == len(evaluations):
        fix = "name the evaluations that the survey was made from; if they were evaluated again since, ask again"
        raise UserError("people were asked about none of the compared runs", where=str(survey.directory), fix=fix)
    return rated, [f"people were not asked about {', '.join(without)}"] if without else []
