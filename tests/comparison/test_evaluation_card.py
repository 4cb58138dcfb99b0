"""What a model card says of evaluations: of these weights, the newest, beside the base of the same pipeline."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from esc_lab.cli.compositions import CONF
from esc_lab.comparison.evaluation_card import describe_evaluation
from esc_lab.config import typed


def leave(directory: Path, *words: str, q: float, second: int, dialogues: int = 3) -> None:
    """A finished evaluation."""
    directory.mkdir(parents=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = asdict(typed(compose("config", ["stage=evaluate", "model=tiny_llama", "data.name=mine", *words])))
    (directory / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (directory / "dialogues.jsonl").write_text("{}\n" * dialogues)
    path = directory / "metrics.json"
    path.write_text(json.dumps({"strategy/Q": q, "strategy/n": 1234.0, "decisions": 1234.0, "train/x": 1.0}))
    os.utime(path, (second, second))


@pytest.fixture
def training(tmp_path: Path) -> Path:
    directory = tmp_path / "pipeline" / "1" / "sft"
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text("stage: sft\n")
    return directory


def test_the_newest_of_these_weights_and_the_base_beside_it(training):
    root = training.parent
    leave(root / "evaluate_base", q=0.125, second=1)
    leave(root / "evaluate_sft", f"checkpoint={training}", q=0.25, second=2)
    leave(root / "evaluate_first", f"checkpoint={training / 'adapter'}", q=0.5, second=1)
    leave(root / "evaluate_other", "checkpoint=elsewhere", q=0.75, second=3)
    (root / "compare").mkdir()
    (root / "compare" / "metrics.json").write_text("broken")
    told = describe_evaluation(training)
    assert "On 1,234 supporter turns of 3 dialogues (test) of mine, prompts of the `cso` layout." in told
    assert "| measure | what it is | value | base model |" in told
    assert "| 0.250 | 0.125 |" in told
    assert "| 1,234 | 1,234 |" in told
    assert "train/x" not in told
    assert str(root) not in told


def test_a_base_on_other_dialogues_and_no_evaluation_at_all(training):
    assert "No evaluation of these weights" in describe_evaluation(training)
    leave(training.parent / "evaluate_base", q=0.125, second=1, dialogues=4)
    assert "No evaluation of these weights" in describe_evaluation(training)
    leave(training.parent / "evaluate_sft", f"checkpoint={training}", q=0.25, second=2)
    assert "| measure | what it is | value |\n" in describe_evaluation(training)


def test_runs_of_their_own(tmp_path):
    training = tmp_path / "sft" / "1"
    training.mkdir(parents=True)
    (training / "config.yaml").write_text("stage: sft\n")
    leave(tmp_path / "evaluate" / "1", f"checkpoint={training}", q=0.375, second=1)
    assert "| 0.375 |" in describe_evaluation(training)
