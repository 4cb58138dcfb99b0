"""Disks that become full while a stage writes, for real: a small file system of its own is filled to the last byte."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from esc_lab.runs import reuse
from esc_lab.search.cache import RequestCache
from esc_lab.search.calls import Calls
from esc_lab.stages import evaluate
from tests.conftest import CACHE
from tests.e2e.conftest import SEARCH, Outcome, execute

SFT = ("stage=sft", "trainer.max_steps=2", "trainer.max_epochs=-1", "trainer.save_every=1")
EVALUATE = ("stage=evaluate", "evaluate.generation.enabled=false")
SEARCHED = ("stage=search", "search.seeds=2", *SEARCH)
LEFT = 8192  # bytes of room: the beginning of a file fits, not the whole


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of 64 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no command `mount`")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=755", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, left: int = LEFT) -> None:
    """Leave so much room; once."""
    filler = disk / "filler"
    if not filler.exists():
        with filler.open("wb") as file:
            room = os.statvfs(disk)
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - left)


def fill_before(monkeypatch, disk: Path, owner: object, name: str, number: int = 1, left: int = LEFT) -> None:
    """The disk is full from the so-manieth call of a function on."""
    original, calls = getattr(owner, name), []

    def filled(*arguments, **named):
        calls.append(arguments)
        if len(calls) == number:
            fill(disk, left)
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, filled)


def run(disk: Path, *words: str) -> Outcome:
    return execute(disk, *words, f"hydra.run.dir={disk}/runs/run", "logger=csv")


def assert_told(outcome: Outcome, disk: Path) -> None:
    """It failed, with one line, and left nothing half-written."""
    assert outcome.status == 1, outcome.errors
    assert "Traceback" not in outcome.errors
    told = [line for line in outcome.errors.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, outcome.errors
    assert str(disk) in told[0]
    assert "No space left" in told[0] or "no space left" in told[0] or "disk full" in told[0]
    assert not (disk / "runs/run/metrics.json").exists()
    assert not [path for path in disk.rglob("*") if path.name.endswith(".part") or path.name.startswith(".metrics")]


FAULTS: dict[str, tuple[tuple[str, ...], object, str, int]] = {
    "answers of a search": (SEARCHED, Calls, "send", 30),
    "a checkpoint": (SFT, torch, "save", 2),
    "weights at the end": (SFT, PeftModel, "save_pretrained", 1),
    "predictions": (EVALUATE, evaluate, "write_predictions", 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_full_disk_of_runs_ends_a_run_in_one_line(disk, monkeypatch, fault):
    """With room again the run goes on, to its end."""
    words, owner, name, number = FAULTS[fault]
    with monkeypatch.context() as patch:
        fill_before(patch, disk, owner, name, number, 0 if fault in ("predictions", "answers of a search") else LEFT)
        assert_told(run(disk, *words), disk)
    (disk / "filler").unlink()
    again = run(disk, *words, *([] if "stage=evaluate" in words else ["resume=auto"]))
    assert again.status == 0, again.errors
    assert (disk / "runs/run/metrics.json").exists()


def own_cache(place: Path) -> str:
    place.mkdir()
    (place / "random_models").symlink_to(CACHE / "random_models")
    return f"cache_dir={place}"


@pytest.mark.parametrize("words", [SFT, EVALUATE], ids=["sft", "evaluate"])
def test_a_full_disk_of_the_store_costs_no_result(disk, tmp_path, monkeypatch, words):
    cache = own_cache(disk / "cache")
    fill_before(monkeypatch, disk, reuse, "link_files", left=0)
    outcome = execute(tmp_path, *words, cache, "reuse=true", f"hydra.run.dir={tmp_path}/run/0")
    assert outcome.status == 0, outcome.errors
    assert "the result is not kept for other runs" in outcome.errors
    assert (tmp_path / "run/0/metrics.json").exists()
    kept = [path for path in disk.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert [path.name for path in kept if path.is_relative_to(disk / "cache" / "runs")] == []


@pytest.mark.parametrize("where", ["put", "__init__"])
def test_a_full_disk_of_the_request_cache_stops_no_search(disk, tmp_path, monkeypatch, where):
    words = [word for word in SEARCHED if word != "search.cache=false"]
    fill_before(monkeypatch, disk, RequestCache, where, {"put": 5, "__init__": 1}[where], left=0)
    place = own_cache(disk / "cache")
    outcome = execute(tmp_path, *words, place, f"hydra.run.dir={tmp_path}/run/0")
    assert outcome.status == 0, outcome.errors
    assert outcome.errors.count("the request cache takes no more answers") == 1
