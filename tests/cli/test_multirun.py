"""The table of a multirun's jobs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from esc_lab.cli.multirun import describe_next, print_jobs
from esc_lab.cli.overrides import parse_overrides
from esc_lab.runs import manifest
from tests.runs.test_manifest import record


def test_the_table_has_every_job(tmp_path, capsys):
    record(tmp_path, 0, "done", metrics={"Q": 0.25}, stages={"search": True, "sft": False}, seconds=61.0)
    record(tmp_path, 1, "failed", error="loss is [nan]", seconds=1.0)
    record(tmp_path, 2, "running")
    planned = [["stage=sft", f"seed={number}"] for number in range(4)]
    print_jobs(manifest.read_jobs(tmp_path), planned, "Q")
    output = capsys.readouterr().out
    for name in ("job:", "what differs:", "status:", "Q:", "stages reused:", "time:", "with why"):
        assert name in output
    lines = [line for line in output.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert cells == [
        ["0", "seed=0", "done", "0.25", "1 of 2", "61 s", ""],
        ["1", "seed=1", "failed", "-", "", "1 s", "loss is [nan]"],
        ["2", "seed=2", "did not finish", "-", "", "", "its process ended without a word: killed, or out of memory"],
        ["3", "seed=3", "not started", "-", "", "", ""],
    ]


@pytest.mark.parametrize("name", ["outputs/multirun/2026-01", "here, = 'there'"])
def test_the_last_line_names_the_command_that_compares(name):
    said, command = describe_next(Path(name), "evaluate", 2, 0).split(": ", 1)
    assert said == "compare them"
    words = shlex.split(command)
    assert words[:3] == ["python", "run.py", "stage=compare"]
    (runs,) = parse_overrides(words[3:])
    assert runs.key_or_group == "compare.runs"
    assert [str(run.text) if hasattr(run, "text") else run for run in runs.value()] == [name]


def test_jobs_that_cannot_be_compared():
    assert describe_next(Path("there"), "evaluate", 1, 0) == describe_next(Path("there"), "search", 3, 0) == ""
    assert "resume=auto" in describe_next(Path("there"), "evaluate", 3, 1)
