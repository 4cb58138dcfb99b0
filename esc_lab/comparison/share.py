"""Runs as one file for others, without the texts of the corpus: unpacked, they are compared as they were here."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from esc_lab.artifacts import write_atomic
from esc_lab.comparison.runs import Run
from esc_lab.errors import UserError
from esc_lab.metrics.predictions import measure_texts, read_predictions
from esc_lab.runs.layout import (
    CONFIG,
    ENVIRONMENT,
    JUDGE_CHECK,
    METRICS,
    PREDICTIONS,
    REFERENCE,
    REWARD_CHECK,
    STRATEGIES,
    TRAINING_TREES,
)
from esc_lab.runs.lineage import find_origins

_FILES = (ENVIRONMENT, METRICS, STRATEGIES, JUDGE_CHECK, REWARD_CHECK, REFERENCE, TRAINING_TREES)
_WHEN = (1980, 1, 1, 0, 0, 0)  # of every file: equal runs make equal files


def share_runs(runs: Sequence[Run], path: Path) -> None:
    """Write a ZIP file of evaluations, of the runs behind them and of the pipelines that they are of.

    Of predictions it has what models chose and wrote, but no given reply, and none of the dialogues: corpora have
    licences of their own. Paths become relative, so it says nothing of the machine.

    Raises:
        UserError: a run has no predictions to share, a configuration behind it cannot be read, or the file cannot be
            written.
    """
    if absent := next((run for run in runs if run.predictions is None), None):
        fix = "compare evaluations alone: talks and trainings cannot be shared so"
        raise UserError("no predictions to share", where=str(absent.directory), fix=fix)
    directories = sorted(
        {origin.absolute() for run in runs for origin in (run.directory, *find_origins(run.directory))}
    )
    directories += sorted({each.parent for each in directories if (each.parent / METRICS).exists()} - {*directories})
    root = Path(os.path.commonpath([each.parent for each in directories]))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for directory in directories:
            for name, content in _contents(directory):
                archive.writestr(zipfile.ZipInfo(str(directory.relative_to(root) / name), _WHEN), content,
                                 zipfile.ZIP_DEFLATED)  # fmt: skip
    write_atomic(path, packed.getvalue())


def _contents(directory: Path) -> Iterator[tuple[str, str]]:
    """Names and texts of the files of a run that are shared."""
    config = yaml.safe_load((directory / CONFIG).read_text(encoding="utf-8"))
    yield CONFIG, yaml.safe_dump(_without_places(config, directory.parent), sort_keys=False, allow_unicode=True)
    for name in _FILES:
        if (directory / name).exists():
            yield name, (directory / name).read_text(encoding="utf-8")
    if (directory / PREDICTIONS).exists():
        predictions = list(read_predictions(directory / PREDICTIONS))
        measure_texts([each for each in predictions if not each.values])  # of files that leave it to their readers
        rows = (asdict(each) | {"gold_reply": "", "raw": None} for each in predictions)
        yield PREDICTIONS, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _without_places(value: Any, beside: Path) -> Any:
    """Settings whose absolute paths are relative to the folder of the run, or else names."""
    if isinstance(value, dict):
        return {name: _without_places(part, beside) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_places(part, beside) for part in value]
    if isinstance(value, str) and Path(value).is_absolute():
        path = Path(value)
        return str(path.relative_to(beside)) if path.is_relative_to(beside) else path.name
    return value
