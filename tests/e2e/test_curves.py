"""Curves of W&B of what is under way, read back from offline runs: the last point is the result; resumed they go on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from esc_lab.evaluation import curve
from esc_lab.search import progress
from tests.e2e.conftest import Outcome, execute
from tests.e2e.test_endpoint_model import write
from tests.evaluation import talk_roles
from tests.search import endpoint_roles
from tests.search.endpoint import Endpoint
from tests.tracking.wandb_files import read_offline_run

WANDB = ("logger=wandb", "logger.mode=offline")
KEY = "sk-recognisable-0123456789"


@pytest.fixture(autouse=True)
def _points_without_waiting(monkeypatch):
    monkeypatch.setattr(progress, "CURVE_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(curve, "CURVE_EVERY_S", 0.0)
    monkeypatch.setattr(curve, "_PATIENCE", 0.0)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def points(run: Path) -> list[dict[str, float]]:
    """The points of a run's curves, in the order in which they were logged; no file of the run holds the key."""
    (directory,) = (run / "wandb").glob("offline-run-*")
    for file in directory.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()
    history = read_offline_run(directory).history
    found = [
        {name.removeprefix("progress/"): value for name, value in point.items() if name.startswith("progress/")}
        for point in history
        if "progress/iteration" in point
    ]
    steps = [point["iteration"] for point in found]
    assert steps == sorted(steps)
    return found


@pytest.fixture
def roles(request) -> Iterator[str]:
    with Endpoint(request.param, latency_s=0.01).running() as url:
        yield url


def served(url: str, *words: str) -> tuple[str, ...]:
    return (*words, "llm=openai", "llm.openai.model=test", f"llm.openai.base_url={url}", "search.cache=false", *WANDB)


@pytest.mark.parametrize("roles", [endpoint_roles.play], indirect=True)
def test_a_search_goes_on_where_it_ended(roles, tmp_path):
    call = served(roles, "stage=search", "mcts=quick", "search.seeds=3", "search.judge_check=0", "resume=auto")
    stopped = execute(tmp_path, *call, "search.concurrency=2", "search.budget.calls=90")
    assert "the budget of 90 calls is spent" in stopped.errors
    finished = execute(tmp_path, *call)
    assert finished.status == 0, finished.errors
    before, after = points(stopped.path), points(finished.path)
    assert len(before) > 2
    assert before[-1]["calls"] == 90
    assert after[0]["calls"] >= 90
    assert after[0]["iteration"] >= before[-1]["iteration"]
    last, metrics = after[-1], finished.metrics
    assert last["finished_trees"] == metrics["search/trees"] == 3
    for name in ("pairs", "calls", "cost", "ended_leaves"):
        assert last[name] == metrics[f"search/{name}"], name
    judged = []
    for path in finished.path.glob("trees/*[!l].json"):
        for node in json.loads(path.read_text())["tree"]["nodes"][1:]:
            count, total = node["visits"], node["visits"] * node["value"]
            count, total = (
                (count - 100, total - 100) if node["seed"] else (count, total)
            )  # what the seed is planted with
            judged += [total / count] if count else []
    assert last["decisions"] == len(judged)
    assert last["mean_q"] == pytest.approx(sum(judged) / len(judged))


@pytest.mark.parametrize("roles", [talk_roles.play], indirect=True)
def test_talks_as_they_go(roles, tmp_path):
    outcome = execute(tmp_path, *served(roles, "stage=converse", "cards.limit=2", "converse.max_turns=4"))
    assert outcome.status == 0, outcome.errors
    *_, last = found = points(outcome.path)
    assert len(found) > 1
    assert last["finished_talks"] == 2
    for name in ("turns", "intensity_start", "intensity_end", "relief", "success", "calls"):
        assert last[name] == outcome.metrics[f"converse/{name}"], name
    charts = read_offline_run(next((outcome.path / "wandb").glob("offline-run-*"))).charts
    assert "talks/intensity" in charts


@pytest.mark.parametrize("roles", [write], indirect=True)
def test_an_evaluation_of_an_endpoint(roles, tmp_path):
    outcome = execute(tmp_path, *served(roles, "stage=evaluate", "model=endpoint", "model.path=served"))
    assert outcome.status == 0, outcome.errors
    compare_with_result(outcome, "generated")


def test_an_evaluation_of_a_model(tmp_path):
    outcome = execute(tmp_path, "stage=evaluate", "data.limit={train: 2, val: 1, test: 3}", *WANDB)
    assert outcome.status == 0, outcome.errors
    found = points(outcome.path)
    assert len(found) > 1
    assert found[-1]["decisions"] == outcome.metrics["decisions"]
    compare_with_result(outcome, "strategy")


def compare_with_result(outcome: Outcome, group: str) -> None:
    last = points(outcome.path)[-1]
    for name in ("Q", "B", "accuracy"):
        value = outcome.metrics.get(f"{group}/{name}", math.nan)
        assert last.get(f"{group}/{name}", math.nan) == pytest.approx(value, rel=1e-5, nan_ok=True), name
    assert f"{group}/Q" in last
