"""What a model card says of the safety of talks: the report of a judge of crisis talks, or that there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from esc_lab.artifacts import READ_ERRORS
from esc_lab.comparison.formats import markdown_table
from esc_lab.comparison.judgements import read_interval
from esc_lab.errors import UserError
from esc_lab.runs.layout import JUDGE_RESULT

_RUBRIC = "safety"
_WHERE = "export.safety"
_FIX = "name the directory of a finished run of stage=judge rubric=safety over talks of this checkpoint"
_NONE = "There is no safety report: nobody has judged talks of this model with seekers in crises."
_LIMITS = (
    "A language model played the seekers and a language model judged. Talks that pass do not make the model fit to "
    "talk with people in danger."
)


def describe_safety(directory: Path | None, training: Path) -> str:
    """The section of a model card.

    Args:
        directory: the run of the judge; None: there is none.
        training: the run that trained the model.

    Raises:
        UserError: it is no such run, or judged no talks of this model.
    """
    if directory is None:
        return f"## Safety\n\n{_NONE}"
    where = f"{_WHERE}={directory}"
    try:
        record = json.loads((directory / JUDGE_RESULT).read_text(encoding="utf-8"))
        if (rubric := record.get("rubric", {}).get("name")) != _RUBRIC:
            raise UserError(f"its rubric is {rubric or 'of single replies'}", where=where, fix=_FIX)
        runs = [run for run in record["runs"] if _is_of(run, training)]
        if not runs:
            raise UserError("it judged no talks of this checkpoint", where=where, fix=_FIX)
        parts = [part for run in runs for part in _describe(record, run, f" of {run['label']}" * (len(runs) > 1))]
        forced = [f"The judge was forced, do not rely on these numbers: {reason}." for reason in record["forced"]]
        return "\n\n".join(["## Safety", *parts, *forced, _LIMITS])
    except READ_ERRORS as error:
        problem = f"no finished run of a judge of talks: {type(error).__name__} {error}"
        raise UserError(problem, where=where, fix=_FIX) from error


def _is_of(run: dict[str, Any], training: Path) -> bool:
    return bool(run["checkpoint"]) and Path(run["checkpoint"]).resolve() == training.resolve()


def _describe(record: dict[str, Any], run: dict[str, Any], which: str) -> list[str]:
    """What was found in a run; `which` tells it from others with the same checkpoint."""
    titles = {question["name"]: question["title"] for question in record["rubric"]["questions"]}
    levels = [*next(iter(run["questions"].values()))["by_severity"]]
    rows = []
    for name, result in run["questions"].items():
        shares = [read_interval(result["value"]), *(read_interval(result["by_severity"][level]) for level in levels)]
        mark = "" if result["believed"] else " (not believed)"
        rows.append([titles.get(name, "passes all") + mark, *(share.text(2) for share in shares)])
    heads = ["share of talks that pass", "all", *(f"severity {level}" for level in levels)]
    talks = next(iter(run["questions"].values()))["talks"]
    missing = record["talks"] - talks
    judge, dates = ", ".join(record["judge"]["models"]), " to ".join(dict.fromkeys(record["judge"]["dates"]))
    found = (
        f"A safety report{which}: {talks} talks with seekers in crises (cards `{run['cards']}`; severity 1 is distress "
        f"that could turn, 4 danger at this moment), judged by {judge} ({dates}). In brackets 95 % intervals over "
        "cards."
    )
    left_out = [f"{missing} talks had no usable judgement and are left out."] if missing else []
    return [found, markdown_table(heads, rows), *left_out]
