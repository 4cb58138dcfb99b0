"""How far a multirun has come."""

from __future__ import annotations

import json

import pytest

from esc_lab.cli.jobs import main, show_jobs
from esc_lab.runs import manifest
from esc_lab.runs.directory import own_directory

WORDS = ["stage=sft", "model=tiny_llama", "seed=1,2,3,4"]


@pytest.fixture
def multirun(tmp_path):
    """The second job is done, the first is under way, the third was killed, the fourth never began."""
    manifest.write_overrides(tmp_path, WORDS)
    for number, status in enumerate(["running", "done", "running"]):
        directory = tmp_path / f"{number}"
        (directory / "sft").mkdir(parents=True)
        (directory / "sft" / "metrics.json").write_text("{}")
        job = {"job": number, "overrides": [*WORDS[:2], f"seed={number + 1}"], "directory": str(directory)}
        manifest.append_record(tmp_path, {**job, "status": status})
    return tmp_path


def test_what_is_done_and_what_is_missing(multirun, capsys):
    with own_directory(multirun / "0"):
        assert show_jobs(multirun) == 3
    rows = [line for line in capsys.readouterr().out.splitlines() if "seed=" in line]
    found = {status: row for status, row in zip(("under way", "done", "stopped", "not started"), rows, strict=True)}
    assert all(status in row for status, row in found.items())
    assert "done: sft" in found["under way"]
    assert "done: sft" in found["stopped"]
    assert not (multirun / ".stop").exists()


def test_what_is_no_multirun(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "no multirun. Fix: name a directory of outputs/multirun" in capsys.readouterr().err
    (tmp_path / "multirun.json").write_text(json.dumps({"words": 1}))
    assert main([str(tmp_path)]) == 1
