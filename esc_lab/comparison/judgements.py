"""What a run of stage `judge` said of the evaluations that are compared: its directory may be named beside theirs.

Evaluations are recognised by the content of their predictions, so that directories may have been moved, and a judgement
of earlier replies is not taken for one of these.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from esc_lab.artifacts import READ_ERRORS, file_fingerprint
from esc_lab.comparison.runs import Cell, Run
from esc_lab.errors import UserError
from esc_lab.metrics.prediction_table import Key, PredictionTable
from esc_lab.runs.layout import JUDGE_RESULT, JUDGEMENTS, read_config
from esc_lab.statistics.intervals import Interval

OVERALL = "judge/overall"
_FIX = "name the directory of a finished run of stage=judge, or leave it out"
QUESTIONS = {"help": "which helps the seeker more", "adherence": "which follows the strategy of its prompt more"}
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
        question: of `QUESTIONS`, what it was asked of pairs.
        replies: by fingerprint of the evaluation's predictions.
    """

    directory: Path
    models: Sequence[str]
    baseline: str
    forced: Sequence[str]
    replies: Mapping[str, JudgedReplies]
    question: str = "help"

    def of(self, run: Run) -> JudgedReplies | None:
        """What was said of a run's replies, if they were judged."""
        return self.replies.get(file_fingerprint(run.predictions)) if run.predictions else None

    def values_of(self, run: Run) -> dict[str, Mapping[Key, float]]:
        """`judge`: the overall scores of a run's replies, by decision; empty if they were not judged."""
        replies = self.of(run)
        return {"judge": replies.overall} if replies else {}


def split_off(stage: str, directories: Sequence[Path]) -> tuple[list[Path], Path | None]:
    """The other directories, and that of the run of a stage, `judge` or `survey`, if there is one.

    Raises:
        UserError: there are several.
    """
    found = list(dict.fromkeys(path.resolve() for path in directories if _is_of(stage, path)))
    if len(found) > 1:
        message = f"{len(found)} runs of stage={stage}: {', '.join(map(str, found))}"
        raise UserError(message, where="compare.runs", fix="name one; it can be of all the evaluations")
    return [path for path in directories if path.resolve() not in found], found[0] if found else None


def read_judgements(directory: Path) -> Judgements:
    """The judgements in a run directory of stage `judge`.

    Raises:
        UserError: it holds no finished run of the judge.
    """
    try:
        record = json.loads((directory / JUDGE_RESULT).read_text(encoding="utf-8"))
        if "talks" in record:
            raise UserError("it judged whole talks, and no replies", where=str(directory), fix="leave it out")
        overall: dict[str, dict[Key, float]] = {}
        for line in map(json.loads, (directory / JUDGEMENTS).read_bytes().splitlines()):
            if line["kind"] == "rubric" and line["overall"] is not None:
                overall.setdefault(line["run"], {})[line["dialogue"], line["turn"]] = float(line["overall"])
        replies = {
            run["predictions"]: _read_replies(run["label"], overall.get(run["label"], {}), run["pairwise"])
            for run in record["runs"]
        }
        models, forced = [str(name) for name in record["judge"]["models"]], [str(text) for text in record["forced"]]
        question = str(record.get("question", "help"))
        return Judgements(directory, models, str(record["baseline"]), forced, replies, question)
    except READ_ERRORS as error:
        message = f"no finished run of the judge: {type(error).__name__} {error}"
        raise UserError(message, where=str(directory), fix=_FIX) from error


def add_judge_metrics(runs: Sequence[Run], judgements: Judgements) -> tuple[list[Run], list[str]]:
    """The runs, those that were judged with further metrics: `judge/overall`, `judge/n` and the rates of their pairs.

    Returns:
        The runs, and sentences on what stands out.

    Raises:
        UserError: none of them was judged.
    """
    judged = []
    for run in runs:
        more: dict[str, float] = {}
        if replies := judgements.of(run):
            more = {f"judge/{name}": rate.value for name, rate in replies.rates.items()}
            more |= {"judge/pairs": float(replies.pairs)} if replies.rates else {}
            if replies.overall:
                number = len(replies.overall)
                more |= {OVERALL: sum(replies.overall.values()) / number, "judge/n": float(number)}
        known = {name: value for name, value in more.items() if not math.isnan(value)}
        judged.append(replace(run, metrics={**run.metrics, **known}))
    evaluations = [run for run in runs if run.evaluation and not run.of_talks]
    without = [str(run.directory) for run in evaluations if judgements.of(run) is None]
    if len(without) == len(evaluations):
        fix = "name the evaluations that it judged; if they were evaluated again since, judge again"
        raise UserError("it judged none of the compared runs", where=str(judgements.directory), fix=fix)
    remarks = [f"not judged: {', '.join(without)}"] if without else []
    remarks += [f"the judge was forced, do not rely on what it says: {reason}" for reason in judgements.forced]
    return judged, remarks


def add_values(
    runs: Sequence[Run],
    predictions: Mapping[Path, PredictionTable],
    values_of: Callable[[Run], Mapping[str, Mapping[Key, float]]],
) -> dict[Path, PredictionTable]:
    """Predictions with what others say of a decision's replies as further values, in its first row."""
    tables = dict(predictions)
    for run in runs:
        if (table := predictions.get(run.directory)) is not None:
            more = {name: table.place(values) for name, values in values_of(run).items()}
            tables[run.directory] = replace(table, values={**table.values, **more})
    return tables


def build_pairs_record(cells: Sequence[Cell], judgements: Judgements | None) -> dict[str, Any] | None:
    """The judge, and a row for each run that it compared with its baseline; None without a judge."""
    if judgements is None:
        return None
    names: dict[str, str] = {}
    rows = []
    for cell in cells:
        for run in cell.runs:
            if (replies := judgements.of(run)) is None:
                continue
            name = names[replies.label] = cell.run_name(run)
            if replies.rates:
                row = {"run": name, "cell": cell.name, "seed": run.method.seed, "pairs": replies.pairs}
                rows.append(row | {rate: vars(interval) for rate, interval in replies.rates.items()})
    return {
        "directory": str(judgements.directory),
        "models": list(judgements.models),
        "baseline": names.get(judgements.baseline, judgements.baseline),
        "forced": list(judgements.forced),
        "question": QUESTIONS[judgements.question],
        "pairs": rows,
    }


def _read_replies(label: str, overall: Mapping[Key, float], pairwise: Mapping[str, Any] | None) -> JudgedReplies:
    if pairwise is None:
        return JudgedReplies(label, overall, {}, 0)
    rates = {name: read_interval(pairwise[name]) for name in _RATES}
    return JudgedReplies(label, overall, rates, int(pairwise["wins"] + pairwise["ties"] + pairwise["losses"]))


def read_interval(record: Mapping[str, float | None]) -> Interval:
    """An interval as records have it: null where there is no number."""
    ends = (record[name] for name in ("value", "low", "high"))
    return Interval(*(math.nan if end is None else float(end) for end in ends))


def _is_of(stage: str, directory: Path) -> bool:
    try:
        return read_config(directory).get("stage") == stage
    except READ_ERRORS:
        return False  # reading it as an evaluation says what is wrong
