"""A run directory belongs to one process, shares no file that is written into, and keeps what was finished in it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from esc_lab import config
from esc_lab.errors import UserError
from esc_lab.runs import reuse
from esc_lab.runs.directory import explain_full_disk, own_directory
from esc_lab.runs.reuse import run_or_reuse
from esc_lab.stages import run_stage as stages
from tests.runs.test_reuse import content_of, settings


def finished(directory: Path, **changes: object) -> config.Config:
    """Settings of a training whose run directory holds a finished one."""
    cfg = replace(
        settings("sft", "logger=none"), run_dir=str(directory), cache_dir=str(directory.parent / "cache"), **changes
    )
    stages.run_stage(cfg)
    return cfg


@pytest.fixture(autouse=True)
def training(monkeypatch):
    """Stands where a stage's `run` does, and writes in place as libraries do."""

    def run(cfg: config.Config) -> dict[str, float]:
        Path(cfg.run_dir, "adapter").mkdir(exist_ok=True)
        Path(cfg.run_dir, "adapter", "weights").write_text(f"of lr {cfg.optimizer.lr}")
        return {"val/loss": cfg.optimizer.lr}

    monkeypatch.setattr(stages, "_import_and_run", run)


def test_a_second_process_is_refused(tmp_path):
    message = re.escape(f"{tmp_path}/run: another process is running in it. Fix: wait")
    with own_directory(tmp_path / "run"), pytest.raises(UserError, match=message), own_directory(tmp_path / "run"):
        pytest.fail("two")
    with own_directory(tmp_path / "run"):
        pass


def test_a_process_that_comes_as_another_one_ends(tmp_path, monkeypatch):
    """It has opened the lock when the other one lets go of it; a third that comes then is refused."""
    first, lock, late = ExitStack(), fcntl.flock, []
    first.enter_context(own_directory(tmp_path))

    def end_first(file: int, how: int) -> None:
        if how & fcntl.LOCK_EX and not late:
            late.append(file)
            first.close()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", end_first)
    with own_directory(tmp_path):
        assert late
        with pytest.raises(UserError, match="another process is running in it"), own_directory(tmp_path):
            pytest.fail("two")


@pytest.mark.parametrize("error", [UserError("wrong data"), KeyboardInterrupt(), SystemExit(143)])
def test_a_refused_rerun_changes_nothing(tmp_path, monkeypatch, error):
    cfg = finished(tmp_path / "run")
    before = content_of(tmp_path / "run")

    def refuse(cfg: config.Config) -> dict[str, float]:
        raise error

    monkeypatch.setattr(stages, "_import_and_run", refuse)
    with pytest.raises(type(error)):
        stages.run_stage(replace(cfg, seed=3))
    assert content_of(tmp_path / "run") == before


def test_a_rerun_that_fails_half_way_is_no_finished_run(tmp_path, monkeypatch):
    cfg = finished(tmp_path / "run")

    def fail(cfg: config.Config) -> dict[str, float]:
        Path(cfg.run_dir, "adapter", "weights").write_text("half")
        raise UserError("out of data")

    monkeypatch.setattr(stages, "_import_and_run", fail)
    with pytest.raises(UserError, match="out of data"):
        stages.run_stage(replace(cfg, seed=3))
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_rerun_writes_into_no_file_of_others(tmp_path):
    first = finished(tmp_path / "first")
    (stored,) = (tmp_path / "cache" / "runs" / "sft").glob("[!.]*/adapter/weights")
    kept = stored.read_text()
    assert os.path.samefile(stored, tmp_path / "first" / "adapter" / "weights")
    second = finished(tmp_path / "second")
    other = replace(second, optimizer=replace(second.optimizer, lr=0.5))
    stages.run_stage(other)
    assert (tmp_path / "second" / "adapter" / "weights").read_text() == "of lr 0.5"
    assert stored.read_text() == (tmp_path / "first" / "adapter" / "weights").read_text() == kept
    third = finished(tmp_path / "third")
    assert json.loads((tmp_path / "third" / "metrics.json").read_text()) == {"val/loss": first.optimizer.lr}
    assert Path(third.run_dir, "adapter", "weights").read_text() == kept


def full(*_: object, **rest: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["link_files", "cached"])
def test_a_store_without_room_costs_no_result(tmp_path, monkeypatch, caplog, where):
    def no_cache(*_: object) -> None:
        try:
            full()
        except OSError as error:
            raise UserError("cannot write") from error

    monkeypatch.setattr(reuse, where, {"link_files": full, "cached": no_cache}[where])
    cfg = finished(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == {"val/loss": cfg.optimizer.lr}
    assert "the result is not kept for other runs" in caplog.text


def test_a_failure_of_the_run_is_not_one_of_the_store(tmp_path):
    def fail(cfg: config.Config) -> dict[str, float]:
        try:
            full()
        except OSError as error:
            raise UserError("cannot write the checkpoint") from error
        return {}

    cfg = replace(settings("sft", "logger=none"), run_dir=str(tmp_path / "run"), cache_dir=str(tmp_path / "cache"))
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="cannot write the checkpoint"):
        run_or_reuse(cfg, fail)


@pytest.mark.parametrize(
    "error", [RuntimeError("I/O error: No space left on device (os error 28)"), OSError(errno.ENOSPC, "x")]
)
def test_a_full_disk_is_told_whichever_library_meets_it(tmp_path, error):
    with pytest.raises(UserError, match=r"no space left on the disk\. Fix: make room"), explain_full_disk(tmp_path):
        raise error
    with pytest.raises(RuntimeError, match="another"), explain_full_disk(tmp_path):
        raise RuntimeError("another")
