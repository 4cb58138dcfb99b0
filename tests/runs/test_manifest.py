"""The manifest of a multirun and the table that is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from esc_lab.errors import UserError
from esc_lab.runs import manifest as multirun
from esc_lab.runs.layout import MANIFEST


def record(directory: Path, number: int, status: str, **more: object) -> None:
    place = directory / str(number)
    place.mkdir(exist_ok=True)
    words = ["stage=sft", f"seed={number}"]
    multirun.append_record(
        directory, {"job": number, "overrides": words, "directory": str(place), "status": status, **more}
    )


def test_a_job_counts_as_it_ended_last(tmp_path):
    record(tmp_path, 1, "running")
    record(tmp_path, 0, "failed", error="loss is nan", seconds=3.0)
    record(tmp_path, 1, "done", metrics={"val/loss": 0.5}, stages={"sft": False}, seconds=2.0)
    record(tmp_path, 0, "running")
    first, second = multirun.read_jobs(tmp_path)
    assert (first.status, first.error) == ("running", "")
    assert (second.status, second.metrics, second.stages) == ("done", {"val/loss": 0.5}, {"sft": False})
    assert multirun.read_jobs(tmp_path / "0") == []


def test_a_multirun_may_be_moved(tmp_path):
    (tmp_path / "before").mkdir()
    record(tmp_path / "before", 0, "done")
    (tmp_path / "before").rename(tmp_path / "after")
    (job,) = multirun.read_jobs(tmp_path / "after")
    assert job.directory == tmp_path / "after" / "0"


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"job": 1, "directory": "a", "status": "done"}'])
def test_a_damaged_manifest(tmp_path, line):
    record(tmp_path, 0, "done")
    with (tmp_path / MANIFEST).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match=r"manifest.jsonl:2: not the record of a job"):
        multirun.read_jobs(tmp_path)


def test_only_what_is_done_and_still_there_is_finished(tmp_path):
    for number, status in enumerate(("done", "reused", "failed", "running", "done")):
        record(tmp_path, number, status)
        if number < 4:
            (tmp_path / str(number) / "metrics.json").write_text("{}")
    found = [
        multirun.find_finished_job(tmp_path, [f"seed={number}", "resume=auto", "stage=sft"]) for number in range(5)
    ]
    assert [job.number if job else None for job in found] == [0, 1, None, None, None]
    assert multirun.find_finished_job(tmp_path, ["seed=0"]) is None


def test_the_newest_multirun_of_the_same_words(tmp_path):
    multirun.write_overrides(tmp_path / "a", ["seed=1,2", "stage=sft"])
    multirun.write_overrides(tmp_path / "b", ["stage=sft", "seed=1,2,3"])
    assert multirun.find_multirun(tmp_path, ["stage=sft", "resume=auto", "seed=1,2", "hydra.launcher.n_jobs=2"]) == (
        tmp_path / "a"
    )
    assert multirun.find_multirun(tmp_path, ["stage=sft"]) is None
    assert multirun.find_multirun(tmp_path / "absent", ["stage=sft"]) is None
