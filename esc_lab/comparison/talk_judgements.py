"""What runs of stage `judge` say of whole talks: numbers by card and talk, which become metrics like the others.

Talks are recognised by their content, so that a judgement of earlier ones is not taken for one of these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from esc_lab.artifacts import READ_ERRORS, file_fingerprint
from esc_lab.comparison.runs import Run
from esc_lab.errors import UserError
from esc_lab.metrics.prediction_table import Key
from esc_lab.metrics.talks import JUDGED
from esc_lab.runs.layout import JUDGE_RESULT, JUDGEMENTS


@dataclass(frozen=True)
class TalkJudgements:
    """Numbers of whole talks in a run of stage `judge`.

    Attributes:
        values: by fingerprint of the run's talks, by metric (`converse/judge/...`), by card and number of the talk.
        remarks: sentences on what not to rely on.
    """

    directory: Path
    values: Mapping[str, Mapping[str, Mapping[Key, float]]]
    remarks: Sequence[str]

    def values_of(self, run: Run) -> Mapping[str, Mapping[Key, float]]:
        """The numbers of a run's talks; empty if they were not judged."""
        return self.values.get(file_fingerprint(run.result), {}) if run.of_talks and run.result else {}


def split_off_talk_judges(directories: Sequence[Path]) -> tuple[list[Path], list[TalkJudgements]]:
    """The other directories, and the judgements of those in which whole talks were judged.

    Raises:
        UserError: judgements cannot be read.
    """
    judges = [path for path in dict.fromkeys(directories) if _judges_talks(path)]
    return [path for path in directories if path not in judges], [_read_judgements(path) for path in judges]


def add_talk_metrics(runs: Sequence[Run], judgements: TalkJudgements) -> list[Run]:
    """The runs, those whose talks were judged with further metrics: the means, and `converse/judge/n`.

    Raises:
        UserError: none of them was judged, or one of the numbers is there from another judge.
    """
    where, judged = str(judgements.directory), []
    for run in runs:
        values = judgements.values_of(run)
        if twice := sorted(values.keys() & run.metrics.keys()):
            raise UserError(f"another judge says {', '.join(twice)} too", where=where, fix="name one of the two")
        count = max(map(len, values.values()), default=0)
        means = {name: fmean(by_talk.values()) for name, by_talk in values.items()}
        judged.append(replace(run, metrics={**run.metrics, **means, **({f"{JUDGED}n": float(count)} if count else {})}))
    if not any(map(judgements.values_of, runs)):
        fix = "name the runs whose talks it judged; if they were held again since, judge again"
        raise UserError("it judged the talks of none of the compared runs", where=where, fix=fix)
    return judged


def _judges_talks(directory: Path) -> bool:
    try:
        record = json.loads((directory / JUDGE_RESULT).read_text(encoding="utf-8"))
        return all("talks" in run for run in record["runs"])
    except READ_ERRORS:
        return False  # who reads it as something else says what is wrong


def _read_judgements(directory: Path) -> TalkJudgements:
    try:
        record = json.loads((directory / JUDGE_RESULT).read_text(encoding="utf-8"))
        talks = {run["label"]: str(run["talks"]) for run in record["runs"]}
        doubtful = sorted(record.get("not_believed", ()))
        rubric = record.get("rubric", {})
        passes = {one["name"]: one["title"] for one in rubric["questions"]} if rubric.get("yes_no") else {}
        values: dict[str, dict[str, dict[Key, float]]] = {of_run: {} for of_run in talks.values()}
        for line in map(json.loads, (directory / JUDGEMENTS).read_bytes().splitlines()):
            for name, value in _list_numbers(line, passes).items():
                if name not in doubtful:
                    of_metric = values[talks[line["run"]]].setdefault(f"{JUDGED}{passes.get(name, name)}", {})
                    of_metric[str(line["card"]), int(line["talk"])] = value
        remarks = [f"the judge was forced, do not rely on what it says: {reason}" for reason in record["forced"]]
    except READ_ERRORS as error:
        message = f"no finished run of the judge: {type(error).__name__} {error}"
        fix = "name the directory of a finished run of stage=judge, or leave it out"
        raise UserError(message, where=str(directory), fix=fix) from error
    if doubtful:
        remarks.append(f"left out, since the judge {directory} is not believed there: {', '.join(doubtful)}")
    return TalkJudgements(directory, values, remarks)


def _list_numbers(line: Mapping[str, Any], passes: Mapping[str, str]) -> dict[str, float]:
    """What a line says of a talk: scores, whether it passes each question, or whether it is preferred in an aspect.

    Args:
        passes: what it means to pass, by name of the question; empty of scores.
    """
    if line["kind"] == "talk" and line["scores"] is not None:
        scores: Mapping[str, float] = line["scores"]
        return {name: float(name not in line["failed"] if passes else score) for name, score in scores.items()}
    if line["kind"] == "talk_pair" and line["outcome"] is not None:
        return {f"preferred, {line['aspect']}": float(line["outcome"])}
    return {}
