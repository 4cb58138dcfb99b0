"""SIGTERM in stages that train nothing: they end with 143, with what a run is to go on from."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from esc_lab.evaluation.module import EvaluationModule
from esc_lab.search.calls import Calls
from tests.e2e.conftest import SEARCH


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

    async def terminated(self, journal, request):
        sent.append(request)
        if len(sent) == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        return await send(self, journal, request)

    with monkeypatch.context() as patch:
        patch.setattr(Calls, "send", terminated)
        outcome = command(*words)
    assert outcome.status == 143, outcome.errors
    assert "answers are kept; resume=" in outcome.errors
    assert "error: ended by SIGTERM" in outcome.errors
    assert not (tmp_path / "run/search/0/metrics.json").exists()
    again = command(*words)
    assert again.status == 0, again.errors
