"""Rounds of search, CSO and a retrained judge: killed in the middle they go on, and they take what one search takes."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from esc_lab.data.corpora import read_dialogues
from esc_lab.search.calls import Calls
from esc_lab.training.cso import CSOModule
from tests.conftest import HANGS_S, PROCESSES
from tests.e2e.conftest import SEARCH, Outcome, execute

ROUNDS = (
    "stage=pipeline", "pairs=rounds", "pipeline.rounds=2", "reward=searched", "search.seeds=6", "objective.updates=4",
    *(word for word in SEARCH if not word.startswith("mcts")), "search.seeker_check=0",
    "data.limit={train: 7, val: 2, test: 2}", "data.balance_pairs=false", "data.step_pairs=8",
    "search.start=first", "mcts.min_iterations=24", "mcts.max_iterations=24",
    "reward.likelihood=true", "reward.tie_margin=0", "reward.check=4", "trainer.max_steps=2", "trainer.max_epochs=-1",
    "trainer.save_every=1", "evaluate.generation.enabled=false", "seed=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Outcome:
    outcome = execute(tmp_path_factory.mktemp("whole"), *ROUNDS)
    assert outcome.status == 0, outcome.errors
    return outcome


def results(run: Path) -> dict[str, bytes]:
    """Weights and searched dialogues of all steps."""
    files = [*run.glob("*/*/*.safetensors"), *run.glob("*/esc_pro/train.jsonl")]
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(files)}


def run_and_die(root: Path, words: tuple[str, ...], place: str) -> None:
    """Run until the second training step of `cso_2`, or the fifth call of `search_2`; then the process is killed."""
    run = root / "pipeline" / "0"

    def kill(step: str, count: int, seen: list[int]) -> None:
        if (run / step / "config.yaml").exists():
            seen.append(1)
            if len(seen) == count:
                os.kill(os.getpid(), signal.SIGKILL)

    trained: list[int] = []
    sent: list[int] = []
    step, send = CSOModule.training_step, Calls.send

    def train(module, batch, number):
        if place == "cso_2":
            kill("cso_2", 2, trained)
        return step(module, batch, number)

    async def ask(self, journal, request, **named):
        answer = await send(self, journal, request, **named)
        if place == "search_2":
            kill("search_2", 5, sent)
        return answer

    CSOModule.training_step, Calls.send = train, ask
    execute(root, *words)


def test_killed_rounds_go_on(whole, tmp_path):
    """In a search, then in a training; what is left in the end is what a run leaves that nobody has disturbed."""
    words = (*ROUNDS, f"hydra.run.dir={tmp_path}/pipeline/0", "resume=auto")
    run = tmp_path / "pipeline" / "0"
    for place in ("search_2", "cso_2"):
        process = PROCESSES.Process(target=run_and_die, args=(tmp_path, words, place))
        process.start()
        process.join(HANGS_S)
        assert process.exitcode == -signal.SIGKILL
        assert (run / place / "config.yaml").exists()
        assert not (run / place / "metrics.json").exists()
    last = execute(tmp_path, *words)
    assert last.status == 0, last.errors
    assert results(run) == results(whole.path)
    names = ("budget/search_trees", "budget/cso_updates", "cso_2/strategy/Q")
    assert [last.metrics[name] for name in names] == [whole.metrics[name] for name in names]
    # Which leaves are foreseen in vain depends on which answers come first.
    assert last.metrics["budget/search_calls"] == pytest.approx(whole.metrics["budget/search_calls"], rel=0.1)


def test_the_next_judge_learns_from_values_and_is_validated_on_others(whole):
    """On a tree of its search that it is not trained on: the corpus' validation dialogues have no values."""
    log = (whole.path / "reward_1" / "run.log").read_text()
    assert re.search("1 of [23] training trees with values are validation data", log)
    assert "rated" in next(line for line in log.splitlines() if "val: replies with foils" in line)
    metrics = json.loads((whole.path / "reward_1" / "metrics.json").read_text())
    assert 0 <= metrics["reward/rated/auc"] <= 1
    trained = json.loads((whole.path / "reward_1" / "training_trees.json").read_text())
    searched = {each.tree_id for each in read_dialogues(whole.path / "search_1" / "esc_pro" / "train.jsonl")}
    assert len(searched) == len(searched.intersection(trained)) + 1 > 1
    assert "reward/rated/auc" not in json.loads((whole.path / "reward" / "metrics.json").read_text())


def test_one_long_search_is_the_control(whole, tmp_path):
    """As many trees and updates; the calls, which depend on what is said, are counted."""
    words = tuple(word for word in ROUNDS if not word.startswith("pipeline.rounds"))
    control = execute(tmp_path, *words, "pipeline.rounds=1")
    assert control.status == 0, control.errors
    assert [whole.metrics[f"budget/{name}"] for name in ("search_trees", "cso_updates")] == [6, 4]
    for name in ("search_trees", "cso_updates"):
        assert control.metrics[f"budget/{name}"] == whole.metrics[f"budget/{name}"]
    calls = [outcome.metrics["budget/search_calls"] for outcome in (whole, control)]
    assert calls[0] == sum(whole.metrics[f"search_{n}/{part}"] for n in (1, 2) for part in ("calls", "from_cache"))
    assert 0.5 < calls[0] / calls[1] < 2
    assert "search calls" in control.errors + (control.path / "run.log").read_text()
