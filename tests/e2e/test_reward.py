"""Stage `reward` on a tiny random model: it learns what is planted, keeps it, goes on, and says early what is wrong."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from esc_lab.data.dialogue import Reply, Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.scorers.reward_files import load_reward
from esc_lab.scorers.reward_training import RewardModule
from tests.conftest import CACHE
from tests.e2e.conftest import execute
from tests.e2e.test_bad_input import complaint
from tests.e2e.test_stages import check_run_directory

SPLIT = ("data.split=proportion", "data.proportions={train: 0.6, val: 0.2, test: 0.2}", "data.limit={}")
KIND, UNKIND = ("good", "feel", "help"), ("people", "try", "hello")


def write_corpus(path, dialogues: int = 30) -> str:
    """Replies with a kind word, and beside each a rejected one of the same length with an unkind one."""
    lines = []
    for number in range(dialogues):
        turns = []
        for turn in range(3):
            tail = f"so {number} {turn}"
            turns += [{"speaker": "seeker", "text": f"I lost {number} and {turn}."},
                      {"speaker": "supporter", "text": f"{KIND[(number + turn) % 3]} {tail}", "strategies": ["Others"],
                       "rejected": [{"text": f"{UNKIND[turn]} {tail}", "strategies": ["Others"]}]}]  # fmt: skip
        lines.append(json.dumps({"format": "esc-lab/1", "inventory": "esconv", "turns": turns}))
    path.write_text("\n".join(lines))
    return f"data.path={path}"


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    directory = tmp_path_factory.mktemp("learnt")
    corpus = write_corpus(directory / "corpus.jsonl")
    words = ("reward.kinds={rejected: 1.0}", "trainer.max_epochs=4", "optimizer.lr=0.01", "reward.head_lr=0.03")
    return execute(directory, "stage=reward", "data=jsonl", corpus, *SPLIT, *words, "reward.check=18")


def test_kindness_is_learnt(learnt):
    check_run_directory(learnt)
    metrics = learnt.metrics
    assert metrics["reward/rejected/auc"] > 0.95
    assert metrics["reward/rejected/length_auc"] == metrics["reward/rejected/place_auc"] == 0.5
    assert metrics["reward/rejected/similar_length_contexts"] == metrics["reward/rejected/contexts"] == 18
    assert metrics["reward/rejected/ece"] < 0.2
    assert {"train/loss", "train/accuracy", "val/loss", "reward/temperature", "reward/center"} <= metrics.keys()
    assert metrics["reward/temperature"] > 0
    record = learnt.read("reward_check.json")
    assert record["gate"]["kinds"]["rejected"]["value"]["value"] == metrics["reward/rejected/auc"]
    assert record["strategies"]["Others"]["rejected"]["pairs"] == 18
    assert "how late in its dialogue" in learnt.output


def test_what_it_saved_knows_kindness(learnt):
    reward = load_reward(learnt.path, load_inventory("esconv"), CACHE)
    hello = Turn("seeker", Reply("I lost 99 and 7."))
    words = (*KIND, UNKIND[0])  # the one that it has met where a talk begins
    scores = reward.score([(hello, Turn("supporter", Reply(f"{word} so 99 7"))) for word in words])
    assert scores[:3].min() > 0 > scores[3:].max()
    assert learnt.read("training_trees.json")
    assert "a reward model of replies" in (learnt.path / "reward" / "README.md").read_text()


def test_an_interrupted_training_goes_on(tmp_path, monkeypatch):
    words = ("stage=reward", "data.limit={train: 6, val: 2, test: 0}", "trainer.max_epochs=2", "trainer.save_every=1",
             "reward.step_dialogues=2", "adapter.dropout=0.2", "optimizer.lr=0.01")  # fmt: skip
    whole = execute(tmp_path, *words, f"hydra.run.dir={tmp_path}/whole/0")
    step = RewardModule.training_step

    def crash(module, batch, number):
        if module.trainer.global_step == 4:
            raise RuntimeError("crash")
        step(module, batch, number)

    with monkeypatch.context() as patched:
        patched.setattr(RewardModule, "training_step", crash)
        assert execute(tmp_path, *words, f"hydra.run.dir={tmp_path}/parts/0").status == 1
    resumed = execute(
        tmp_path, *words, "resume=auto", f"output_root={tmp_path}/parts", f"hydra.run.dir={tmp_path}/parts/1"
    )
    assert (whole.status, resumed.status) == (0, 0), resumed.errors
    assert OmegaConf.load(tmp_path / "parts/1/config.yaml").resume == f"{tmp_path}/parts/0"
    for name in ("adapter_model.safetensors", "head.safetensors"):
        weights = [load_file(tmp_path / run / "reward" / name) for run in ("whole/0", "parts/1")]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    calibrations = [
        json.loads((tmp_path / run / "reward/reward.json").read_text())["calibration"] for run in ("whole/0", "parts/1")
    ]
    assert calibrations[0] == calibrations[1] != {"temperature": 1.0, "center": 0.0}


def test_own_replies_are_compared_with(command):
    words = ("reward.kinds={own_reply: 1.0}", "data.negatives=random", "data.negatives_per_turn=1",
             "data.negatives_tokens=6", "trainer.max_steps=1", "reward.check=4", "reward.layers=1")  # fmt: skip
    outcome = command("stage=reward", *words, "data.limit={train: 2, val: 0, test: 2}")
    check_run_directory(outcome)
    assert np.isfinite(outcome.metrics["reward/own_reply/auc"])
    weights = load_file(outcome.path / "reward" / "adapter_model.safetensors")
    assert {name.partition("layers.")[2][0] for name in weights} == {"1"}  # of two
    assert "not calibrated" in outcome.errors + (outcome.path / "run.log").read_text()


def test_nothing_to_compare(command, tmp_path):
    turns = [{"speaker": "seeker", "text": "I lost my job."}, {"speaker": "supporter", "text": "Why?"}]
    record = {"format": "esc-lab/1", "inventory": "esconv", "turns": turns}
    (tmp_path / "one.jsonl").write_text(json.dumps(record))
    words = ("data=jsonl", f"data.path={tmp_path}/one.jsonl", "data.limit={}", "data.proportions={train: 1}")
    line = complaint(command("stage=reward", *words))
    assert "nothing to compare in 1 training dialogues: no given reply has a foil. Fix: give more dialogues" in line


def test_wrong_settings_are_told_at_once(command, tmp_path):
    words = (
        "adapter=full", "trainer.devices=2", f"checkpoint={tmp_path}", f"init_from={tmp_path}", "data.row_tokens=150",
        "reward.kinds={other_dialog: 1.0, own_reply: 1.0}", "reward.foils=0",
    )  # fmt: skip
    outcome = command("stage=reward", *words)
    assert (outcome.status, outcome.directory) == (1, None)
    for key in ("adapter.kind=full", "trainer.devices", "checkpoint", "init_from", "reward.kinds: no kind",
                "data.negatives=recorded", "reward.foils", "data.row_tokens"):  # fmt: skip
        assert re.search(rf"^  {re.escape(key)}.*", outcome.errors, re.M), key
    assert "no kind 'other_dialog'; did you mean 'other_dialogue'" in outcome.errors
    untrained = command("stage=reward", "reward.strategy_share=0.7")
    assert "reward.strategy_share=0.7: strategies alone are not compared" in complaint(untrained)
    empty = command("stage=reward", "reward.kinds={same_dialogue: 0.0}")
    assert "one at least above it" in complaint(empty)


@pytest.mark.parametrize("option", ["default", "strategy_text", "strategy_fit", "searched"])
def test_a_dry_run_of_each_option(command, option):
    check_run_directory(command("experiment=reward", f"reward={option}", "trainer=dev", "reward.check=4"))
