"""What a run of stage `judge` said of the evaluations that are compared: its directory may be named beside theirs.

Evaluations are recognised by the content of their predictions, so that directories may have been moved, and a judgement
of earlier replies is not taken for one of these.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from esc_lab.artifacts import file_fingerprint
from esc_lab.comparison.runs import Run
from esc_lab.errors import UserError
from esc_lab.metrics.prediction_table import Key, PredictionTable
from esc_lab.runs.layout import read_config
from esc_lab.statistics.intervals import Interval

OVERALL = "judge/overall"
_FIX = "name the directory of a finished run of stage=judge, or leave it out"
_RATES = ("win_rate", "length_controlled", "consistency")


@dataclass(frozen=True)
class JudgedReplies:
    """What was said of the replies of an evaluation.

    Attributes:
        label: its name in the run of the judge.
        overall: weighted mean of the rubric scores, 0 to 4, by decision; without those that got no score.
        rates: `win_rate`, `length_controlled` and `consistency` against the baseline; empty of the baseline itself and
            without pairs.
        pairs: how many there are.
    """

    label: str
    overall: Mapping[Key, float]
    rates: Mapping[str, Interval]
    pairs: int


@dataclass(frozen=True)
class Judgements:
    """A run of stage `judge`.

    Attributes:
        directory: where it lies.
        models: names of the model that judged.
        baseline: label of the run that the others are compared with in pairs.
        forced: reasons not to believe the judge that were overruled.
        replies: by fingerprint of the evaluation's predictions.
    """

    directory: Path
    models: Sequence[str]
    baseline: str
    forced: Sequence[str]
    replies: Mapping[str, JudgedReplies]

    def of(self, run: Run) -> JudgedReplies | None:
        """What was said of a run's replies, if they were judged."""
        return self.replies.get(file_fingerprint(run.predictions)) if run.predictions else None


def judge_among(directories: Sequence[Path]) -> tuple[list[Path], Path | None]:
    """The other directories, and that of the judge if there is one.

    Raises:
        UserError: there are several.
    """
    judges = list(dict.fromkeys(path.resolve() for path in directories if _is_judge(path)))
    if len(judges) > 1:
        message = f"{len(judges)} runs of stage=judge: {', '.join(map(str, judges))}"
        raise UserError(message, where="compare.runs", fix="name one; it can judge all the evaluations")
    return [path for path in directories if path.resolve() not in judges], judges[0] if judges else None


def read_judgements(directory: Path) -> Judgements:
    """The judgements in a run directory of stage `judge`.

    Raises:
        UserError: it holds no finished run of the judge.
    """
    try:
        record = json.loads((directory / "judge.json").read_text(encoding="utf-8"))
        overall: dict[str, dict[Key, float]] = {}
        for line in (directory / "judgements.jsonl").read_bytes().splitlines():
            one = json.loads(line)
            if one["kind"] == "rubric" and one["overall"] is not None:
                overall.setdefault(one["run"], {})[one["dialogue"], one["turn"]] = float(one["overall"])
        replies = {
            one["predictions"]: _judged(one["label"], overall.get(one["label"], {}), one["pairwise"])
            for one in record["runs"]
        }
        models, forced = [str(name) for name in record["judge"]["models"]], [str(one) for one in record["forced"]]
        return Judgements(directory, models, str(record["baseline"]), forced, replies)
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"no finished run of the judge: {type(error).__name__} {error}"
        raise UserError(message, where=str(directory), fix=_FIX) from error


def with_judgements(runs: Sequence[Run], judgements: Judgements) -> tuple[list[Run], list[str]]:
    """The runs, those that were judged with further metrics: `judge/overall`, `judge/n` and the rates of their pairs.

    Returns:
        The runs, and sentences on what stands out.

    Raises:
        UserError: none of them was judged.
    """
    found = []
    for run in runs:
        judged = judgements.of(run)
        more = {f"judge/{name}": one.value for name, one in judged.rates.items()} if judged else {}
        if judged and judged.rates:
            more["judge/pairs"] = float(judged.pairs)
        if judged and judged.overall:
            values = list(judged.overall.values())
            more |= {OVERALL: sum(values) / len(values), "judge/n": float(len(values))}
        known = {name: value for name, value in more.items() if not math.isnan(value)}
        found.append(replace(run, metrics={**run.metrics, **known}))
    without = [str(run.directory) for run in runs if run.evaluation and judgements.of(run) is None]
    if len(without) == sum(run.evaluation for run in runs):
        fix = "name the evaluations that it judged; if they were evaluated again since, judge again"
        raise UserError("it judged none of the compared runs", where=str(judgements.directory), fix=fix)
    remarks = [f"not judged: {', '.join(without)}"] if without else []
    remarks += [f"the judge was forced, do not rely on what it says: {reason}" for reason in judgements.forced]
    return found, remarks


def judged_predictions(
    runs: Sequence[Run], predictions: Mapping[Path, PredictionTable], judgements: Judgements
) -> dict[Path, PredictionTable]:
    """Predictions with a further value, `judge`: the overall score of a decision's reply, in its first row."""
    found = {}
    for run in runs:
        if (one := predictions.get(run.directory)) is None:
            continue
        judged = judgements.of(run)
        first: dict[int, int] = {}
        for row, decision in enumerate(one.decision.tolist()):
            first.setdefault(decision, row)
        values = np.full(len(one.decision), math.nan)
        for decision, row in first.items():
            values[row] = (judged.overall if judged else {}).get(one.test.keys[decision], math.nan)
        found[run.directory] = replace(one, values={**one.values, "judge": values})
    return found


def _judged(label: str, overall: Mapping[Key, float], pairwise: Mapping[str, Any] | None) -> JudgedReplies:
    if pairwise is None:
        return JudgedReplies(label, overall, {}, 0)
    rates = {name: Interval(*(_number(pairwise[name][end]) for end in ("value", "low", "high"))) for name in _RATES}
    return JudgedReplies(label, overall, rates, int(pairwise["wins"] + pairwise["ties"] + pairwise["losses"]))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _is_judge(directory: Path) -> bool:
    try:
        return read_config(directory).get("stage") == "judge"
    except (OSError, ValueError, yaml.YAMLError):
        return False  # reading it as an evaluation says what is wrong
