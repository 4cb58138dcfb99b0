"""The command line in this process: faster than a process for each run, and just as complete."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CACHE

# A search of seconds by a tiny model, which `model` does not choose.
SEARCH = (
    "model@llm.local.model=tiny_llama", "mcts=quick", "mcts.min_iterations=4", "mcts.max_iterations=5",
    "search.judge_check=2", "search.cache=false", "llm.supporter.max_tokens=6", "llm.seeker.max_tokens=6",
)  # fmt: skip
LIMITS = "data.limit={train: 4, val: 2, test: 2}"
FEW = "data.limit={train: 2, val: 1, test: 2}"  # where nothing is searched


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit status, its output, and its run directory if it came to have one."""

    status: int
    output: str
    errors: str
    directory: Path | None

    @property
    def metrics(self) -> dict[str, float]:
        return self.read("metrics.json")

    @property
    def path(self) -> Path:
        assert self.directory is not None, self.errors
        return self.directory

    def read(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())

    def lines(self, name: str) -> list[Any]:
        return [json.loads(line) for line in (self.path / name).read_text().splitlines()]


def execute(output_root: Path, *words: str) -> Outcome:
    """`python run.py WORDS`: small data, a tiny model, no logger and no reuse where the words do not say otherwise."""
    import run

    own = {word.split("=")[0].removeprefix("+") for word in words}
    defaults = {
        "model": "model=tiny_llama",
        "logger": "logger=none",
        "reuse": "reuse=false",  # or a test would prove what the code of an earlier run did
        "data.limit": FEW if {"stage=sft", "stage=cso", "stage=evaluate"} & {*words} else LIMITS,
        "evaluate.generation.max_new_tokens": "evaluate.generation.max_new_tokens=8",
        "cache_dir": f"cache_dir={CACHE}",
    }
    added = [word for key, word in defaults.items() if key not in own]
    if "output_root" not in own:
        added.append(f"output_root={output_root}")
    root = logging.getLogger()
    arguments, handlers, level = sys.argv, root.handlers[:], root.level
    sys.argv = ["run.py", *words, *added]
    output, errors = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(output), redirect_stderr(errors):
            status = run.main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        sys.argv = arguments
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
    # By time: names of runs of the same second are in no order.
    found = max((path for path in output_root.glob("*/*") if path.is_dir()), key=lambda path: path.stat().st_mtime_ns,
                default=None)  # fmt: skip
    return Outcome(status, output.getvalue(), errors.getvalue(), found)


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Outcome]:
    """`command(*overrides)` runs one command with its results below the test's own directory."""

    def call(*words: str) -> Outcome:
        root = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        root.mkdir()
        return execute(root, *words)

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One fine-tuning of the tiny llama that tests of later stages go on from."""
    outcome = execute(tmp_path_factory.mktemp("trained"), "stage=sft", "trainer.max_steps=4", "optimizer.lr=0.02")
    assert outcome.status == 0, outcome.errors
    return outcome
