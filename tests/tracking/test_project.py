"""Runs of a W&B project for a comparison: a round trip through `wandb sync` and a server of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from esc_lab.comparison.runs import read_runs
from esc_lab.errors import UserError
from esc_lab.tracking.project import download_evaluations
from tests.tracking.test_run import METRICS, evaluated, logged, sync, trained
from tests.tracking.wandb_server import serving


@pytest.fixture
def account(monkeypatch):
    """A key for a server that is about to be there."""
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    return lambda server: monkeypatch.setenv("WANDB_BASE_URL", server.address)


def test_evaluations_come_back_as_run_directories(tmp_path, account, monkeypatch):
    trained(tmp_path / "pipe" / "sft", "stage=sft", "logger.group=a", "seed=7")
    monkeypatch.chdir(tmp_path)
    words = ("checkpoint=pipe/sft", "logger.group=a")
    whole = logged(evaluated(tmp_path / "whole", *words))
    bare = logged(evaluated(tmp_path / "bare", "logger.group=b", "logger.artifacts=[]"))
    training = logged(trained(tmp_path / "other", "stage=sft", "logger.group=a"))
    with serving() as server:
        account(server)
        for run in (whole, bare, training):
            sync(run, server.address)
        found = download_evaluations("team/esc-lab", tmp_path / "cache")
        of_a_group = download_evaluations("team/esc-lab", tmp_path / "cache", ["b"])
        with pytest.raises(UserError, match=r"no finished evaluation in c\. Fix: check the group"):
            download_evaluations("team/esc-lab", tmp_path / "cache", ["c"])
        with pytest.raises(UserError, match=r"compare.wandb=team/nothing: W&B has no such project") as refused:
            download_evaluations("team/nothing", tmp_path / "cache")
        assert server.refused == []
    assert "Could not find project" in str(refused.value)
    assert of_a_group == found[1:]
    assert (found[0] / "predictions.jsonl").read_bytes() == (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    assert not (found[1] / "predictions.jsonl").exists()
    for run in read_runs(found)[0]:
        assert {name: value for name, value in run.metrics.items() if value == value} == METRICS
        assert run.config["data"]["proportions"] == {"train": 0.7, "val": 0.1, "test": 0.2}


def test_an_evaluation_finds_the_training_behind_it(tmp_path, account):
    directory = tmp_path / "gone" / "sft"
    runs = [
        logged(trained(directory, "stage=sft", "seed=7")),
        logged(evaluated(tmp_path / "gone" / "evaluate_sft", f"checkpoint={directory / 'adapter'}")),
    ]
    with serving() as server:
        account(server)
        for run in runs:
            sync(run, server.address)
        (tmp_path / "gone").rename(tmp_path / "elsewhere")  # not on the machine that compares
        (found,) = download_evaluations("team/esc-lab", tmp_path / "cache")
    ((run,), _) = read_runs([found])
    assert (run.name, run.method.seed) == ("SFT", 7)
    assert run.method.training
    assert run.method.training.is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize(
    ("key", "said"), [("", "nobody is logged in to W&B. Fix: `wandb login`, or set WANDB_API_KEY"), ("short", "W&B: ")]
)
def test_without_an_account(tmp_path, key, said):
    """In a process of its own, which nobody is at to be asked for a key."""
    script = f"""
from pathlib import Path
from esc_lab.tracking.project import download_evaluations
from esc_lab.errors import UserError
try:
    download_evaluations("team/esc-lab", Path({str(tmp_path)!r}))
except UserError as error:
    print(error)
"""
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    environment |= {"WANDB_API_KEY": key} if key else {}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.glob("wandb/*")) == []
