"""A researcher's own directory: inventory, layout, words, model and experiment, none of them in the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import CACHE, ROOT
from tests.data.test_own_inventory import INVENTORY
from tests.e2e.conftest import execute

FILES = {
    "inventory/mi.yaml": INVENTORY,
    "prompt/mi.yaml": """
        train: {template: mi, history_labels: true}
        eval: {template: mi, history_labels: true}
        layouts:
          mi: {system: [role, choice, inference], wording: {role: You are a motivational interviewer.}}
        """,
    "experiment/mi_study.yaml": """
        # @package _global_
        # Search, SFT and CSO with the strategies of motivational interviewing.
        defaults:
          - override /stage: pipeline
          - override /inventory: mi
          - override /prompt: mi
          - override /model: own_llama
          - override /model@llm.local.model: own_llama
          - override /mcts: quick
        experiment: mi_study
        mcts: {min_iterations: 4, max_iterations: 5}
        search: {seeds: 2, judge_check: 2, cache: false}
        llm: {supporter: {max_tokens: 6}, seeker: {max_tokens: 6}}
        trainer: {max_epochs: 1}
        evaluate: {generation: {decisions: 2}}
        """,
}


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    return write_own_configs(tmp_path_factory.mktemp("own"))


def write_own_configs(root: Path) -> Path:
    model = OmegaConf.load(ROOT / "conf/model/tiny_llama.yaml")
    model.name = "own_llama"
    for name, text in {**FILES, "model/own_llama.yaml": OmegaConf.to_yaml(model)}.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        lines = text.splitlines()
        indent = 8 if text.startswith("\n        ") else 0
        path.write_text("\n".join(line[indent:] for line in lines) + "\n")
    return root


def test_search_sft_cso_evaluate_and_compare_run_on_them(own, tmp_path):
    outcome = execute(
        tmp_path, "--config-dir", str(own), "experiment=mi_study", "model=own_llama", f"cache_dir={CACHE}",
        "data.limit={train: 2, val: 1, test: 2}",
    )  # fmt: skip
    assert outcome.status == 0, outcome.errors
    root = outcome.path
    inventory = OmegaConf.load(own / "inventory/mi.yaml")
    names = {strategy.name for strategy in inventory.strategies}
    evaluation = [json.loads(line) for line in (root / "evaluate_cso/predictions.jsonl").read_text().splitlines()]
    assert {name for row in evaluation for name in row["distribution"]} == names
    pairs = [json.loads(line) for line in (root / "search/esc_pro/train.jsonl").read_text().splitlines()]
    labels = {name for row in pairs for turn in row["turns"] for name in turn.get("strategies", [])}
    assert labels <= names
    assert labels
    assert "motivational interviewer" in (root / "sft/config.yaml").read_text()
    assert "CSO" in (root / "compare/comparison.md").read_text()
    assert "Developing Discrepancy" in (root / "compare/report.html").read_text()

    # What the run left says all of it: it is evaluated again, and compared, with the directory named once more.
    again = execute(
        tmp_path / "again", "--config-dir", str(own), "stage=evaluate", "inventory=mi", "prompt=mi", "model=own_llama",
        f"checkpoint={root / 'cso'}", "data.limit={train: 2, val: 1, test: 2}",
        "evaluate.generation.decisions=2",
    )  # fmt: skip
    assert again.status == 0, again.errors
    compared = execute(tmp_path / "compared", "stage=compare", f"compare.runs=[{root / 'evaluate_base'},{again.path}]")
    assert compared.status == 0, compared.errors
