"""A search with the embedded model behind `transformers serve`, a real OpenAI-compatible server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from esc_lab.data.corpora import read_dialogues
from esc_lab.models.sources import locate_model
from tests.conftest import CACHE, HANGS_S, model_config
from tests.search.endpoint_roles import journalled

SEED = {
    "format": "esc-lab/1",
    "inventory": "esconv",
    "situation": "I lost my job last week.",
    "turns": [
        {"speaker": "seeker", "text": "I lost my job last week."},
        {"speaker": "supporter", "text": "I am sorry. How long were you there?", "strategies": ["Question"]},
        {"speaker": "seeker", "text": "Six years. Thank you for asking."},
    ],
}


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[str, str]]:
    """URL of a server, and the name of its model."""
    model = locate_model(model_config("smollm2_135m"), CACHE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--port", str(port)]
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("wb") as said:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--device", "cpu"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=said,
            stderr=said,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1", model
        finally:
            server.kill()
            server.wait()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + HANGS_S
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=HANGS_S):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no server after {HANGS_S} s: {log.read_text()}")


def test_search(command, served, tmp_path):
    """So small a model writes no numbers in JSON: nobody rates or judges, which is counted, and nothing is made up.

    What it says becomes ESC-Pro under the published rule, which also rejects what nobody judged.
    """
    url, model = served
    (tmp_path / "seed.jsonl").write_text(json.dumps(SEED))
    outcome = command(
        "stage=search", "data=jsonl", f"data.path={tmp_path}/seed.jsonl",
        "data.proportions={train: 1, val: 0, test: 0}", "llm=openai",
        f"llm.openai.base_url={url}", f"llm.openai.model={model}", "llm.openai.structured=false",
        f"llm.openai.timeout={HANGS_S}", "search.concurrency=1", "search.cache=false",
        *(f"llm.{role}.max_tokens=16" for role in ("strategist", "supporter", "seeker", "judge")),
        "llm.strategist.attempts=1", "llm.judge.attempts=1", "mcts.preferences.rejected_visits=0",
        "mcts.min_iterations=1", "mcts.max_iterations=2", "mcts.rollout_rounds=0", "search.judge_check=2",
    )  # fmt: skip
    assert outcome.status == 0, outcome.errors
    assert outcome.metrics["search/pairs"] >= 1
    (dialogue, *_) = read_dialogues(outcome.path / "esc_pro/train.jsonl")
    assert dialogue.turns[1].reply.text == SEED["turns"][1]["text"]
    calls = journalled(outcome.path)
    said = {call["answer"]["text"] for call in calls if call["role"] == "supporter"}
    for rejected in dialogue.turns[1].rejected:
        assert any(rejected.text in text for text in said)
    assert {call["role"] for call in calls} == {"strategist", "supporter", "seeker", "judge"}
    assert all(call["answer"]["completion_tokens"] for call in calls)
    unrated = sum(call["role"] == "strategist" for call in calls)
    assert outcome.metrics["search/strategist/missing"] == unrated
    assert f"{model}@main" in (outcome.path / "esc_pro/README.md").read_text()
