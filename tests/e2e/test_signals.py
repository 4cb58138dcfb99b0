"""SIGTERM in stages that train nothing: they end with 143, with what a run is to go on from."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from esc_lab.evaluation.module import EvaluationModule
from esc_lab.search.calls import Calls
from esc_lab.stages import compare, export
from esc_lab.training.cso import CSOModule
from esc_lab.training.sft import SFTModule
from tests.e2e.conftest import SEARCH, execute


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    earlier = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is earlier


def test_sigterm_in_an_evaluation(command, monkeypatch):
    def terminated(self, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(EvaluationModule, "test_step", terminated)
    outcome = command("stage=evaluate", "logger=wandb", "logger.mode=offline")
    assert outcome.status == 143, outcome.errors
    assert "error: ended by SIGTERM" in outcome.errors
    assert not (outcome.path / "metrics.json").exists()
    assert list(outcome.path.glob("wandb/offline-run-*/run-*.wandb"))


def test_sigterm_in_a_search(command, monkeypatch, tmp_path):
    words = ("stage=search", "search.seeds=2", f"hydra.run.dir={tmp_path}/run/search/0", *SEARCH)
    send, sent = Calls.send, []

    async def terminated(self, journal, request, **named):
        sent.append(request)
        if len(sent) == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return await send(self, journal, request, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Calls, "send", terminated)
        outcome = command(*words)
    assert outcome.status == 143, outcome.errors
    assert "answers are kept; resume=" in outcome.errors
    assert "error: ended by SIGTERM" in outcome.errors
    assert not (tmp_path / "run/search/0/metrics.json").exists()
    again = command(*words)
    assert again.status == 0, again.errors


PIPELINE = (
    "stage=pipeline", "search.seeds=3", *SEARCH, "trainer.max_epochs=1", "data.step_pairs=8", "data.step_dialogues=2",
    "evaluate.generation.enabled=false", "seed=1",
)  # fmt: skip


def whole_weights(run: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(run.glob("*/adapter/adapter_model.safetensors"))]


def test_sigterm_in_each_stage_of_a_pipeline(monkeypatch, tmp_path):
    """One run goes on after the other, each ended in a later stage; the last one ends as if nothing had happened."""
    whole = execute(tmp_path / "whole", *PIPELINE)
    assert whole.status == 0, whole.errors
    resume: list[str] = []
    for stage, owner, name in (
        ("search", Calls, "send"),
        ("evaluate_base", EvaluationModule, "test_step"),
        ("sft", SFTModule, "training_step"),
        ("cso", CSOModule, "training_step"),
        ("compare", compare, "compute_comparison"),
    ):
        original = getattr(owner, name)

        def terminated(*arguments, original=original, **named):
            os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, terminated)
            outcome = execute(tmp_path / stage, *PIPELINE, *resume)
        assert outcome.status == 143, (stage, outcome.errors)
        assert "error: ended by SIGTERM" in outcome.errors
        assert "Traceback" not in outcome.errors
        assert (outcome.path / stage).exists()
        assert not (outcome.path / stage / "metrics.json").exists()
        assert not (outcome.path / "metrics.json").exists()
        resume = [f"resume={outcome.path}"]
    last = execute(tmp_path / "last", *PIPELINE, *resume)
    assert last.status == 0, last.errors
    assert whole_weights(last.path) == whole_weights(whole.path)


def test_sigterm_in_a_study_and_in_an_export(command, monkeypatch, trained, tmp_path):
    def terminated(*_: object, **named: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(EvaluationModule, "test_step", terminated)
        study = command("stage=sra", "sra.study=templates", "logger=wandb", "logger.mode=offline")
    assert study.status == 143, study.errors
    assert list(study.path.glob("wandb/offline-run-*/run-*.wandb"))
    words = ("stage=export", f"checkpoint={trained.path}", f"export.directory={tmp_path}/exported")
    with monkeypatch.context() as patch:
        patch.setattr(export, "write_card", terminated)
        outcome = command(*words)
    assert outcome.status == 143, outcome.errors
    for ended in (study, outcome):
        assert "error: ended by SIGTERM" in ended.errors
        assert "Traceback" not in ended.errors
        assert not (ended.path / "metrics.json").exists()
    assert not list(tmp_path.glob("*exported*"))  # nothing half-written, either
    again = command(*words)
    assert again.status == 0, again.errors
    assert (tmp_path / "exported" / "model.safetensors").exists()
