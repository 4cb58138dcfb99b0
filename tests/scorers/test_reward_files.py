"""Reward models on disk: what is saved scores the same when loaded, and what does not fit or is damaged is told."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from esc_lab.config.training import AdapterConfig
from esc_lab.data.dialogue import merge_turns
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.models.load import add_adapter, load_model, model_identity
from esc_lab.scorers.reward_files import HEAD, NOTE, load_reward, save_reward
from esc_lab.scorers.reward_model import Calibration
from tests.conftest import CACHE, model_config
from tests.scorers.test_reward_model import build_reward, talks

ESCONV = load_inventory("esconv")
LLAMA = model_config("tiny_llama")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, sample_dialogues):
    """A saved reward model: its run directory, conversations and their scores."""
    built = build_reward(adapter=2, strategy_text=True, strategy_share=0.3)
    reward = replace(built, calibration=Calibration(1.5, 0.25), strategy_centers={"Question": 0.5, "Others": -0.5})
    path = tmp_path_factory.mktemp("reward")
    save_reward(reward, LLAMA, ESCONV, path)
    conversations = talks(merge_turns(sample_dialogues[0], "set"))[:9]
    return path, conversations, reward.score(conversations)


def copied(saved, tmp_path):
    return shutil.copytree(saved[0] / "reward", tmp_path / "reward")


def test_what_is_loaded_scores_the_same(saved):
    path, conversations, expected = saved
    for place in (path, path / "reward"):
        loaded = load_reward(place, ESCONV, CACHE, LLAMA)
        np.testing.assert_allclose(loaded.score(conversations), expected, atol=1e-5)
    assert (loaded.name, loaded.calibration, loaded.strategy_share) == ("tiny-llama", Calibration(1.5, 0.25), 0.3)
    assert not loaded.model.training
    files = {file.name for file in (path / "reward").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", HEAD, NOTE} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt"))]


def test_it_shares_its_base_with_a_policy(saved):
    """With an adapter of its own, and without one: one copy of the base weights, and both compute what they did."""
    path, conversations, expected = saved
    ids = torch.arange(5, 25)[None]
    for adapted in (False, True):
        policy = load_model(LLAMA, CACHE)
        if adapted:
            policy = add_adapter(policy, AdapterConfig(), LLAMA)
            for name, weight in policy.model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(weight, std=0.1)
        before = [policy.model(ids).logits, model_identity(policy.model)]
        reward = load_reward(path, ESCONV, CACHE, beside=policy.model)
        np.testing.assert_allclose(reward.score(conversations), expected, atol=1e-5)
        assert torch.equal(policy.model(ids).logits, before[0])
        assert model_identity(policy.model) == before[1]
        own = {id(weight) for weight in policy.model.parameters()}
        apart = [name for name, weight in reward.model.named_parameters() if id(weight) not in own]
        assert apart
        assert all("lora_" in name for name in apart)


def test_another_inventory_or_base_model_is_refused(saved):
    with pytest.raises(
        UserError, match=r"it is for the strategies Question, .*\(esconv\), not those of cso\. Fix: inv"
    ):
        load_reward(saved[0], load_inventory("cso"), CACHE)
    fewer = replace(ESCONV, strategies=ESCONV.strategies[:-1])
    with pytest.raises(UserError, match="not those of esconv"):
        load_reward(saved[0], fewer, CACHE)
    with pytest.raises(UserError, match=r"it was trained on tiny-llama \(.*\), not on tiny-qwen2 \(.*\)\. Fix: choose"):
        load_reward(saved[0], ESCONV, CACHE, model_config("tiny_qwen2"))
    load_reward(saved[0], ESCONV, CACHE, replace(LLAMA, dtype="bfloat16"))  # how it is computed is no other model


def test_directories_without_a_reward_model(saved, tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=r"no reward model in it\. Fix: name a run directory of stage=reward"):
            load_reward(path, ESCONV, CACHE)
    for weights in ("adapter_model.safetensors", HEAD):
        folder = copied(saved, tmp_path / weights)
        (folder / weights).unlink()
        torch.save({}, folder / "adapter_model.bin")
        with pytest.raises(UserError, match=f"no {weights} in it"):
            load_reward(folder, ESCONV, CACHE)


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", HEAD])
def test_damaged_weights(saved, tmp_path, weights):
    (copied(saved, tmp_path) / weights).write_bytes(b"short")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_reward(tmp_path, ESCONV, CACHE)


@pytest.mark.parametrize(
    "change",
    [
        lambda note: "{",
        lambda note: [],
        lambda note: note.pop("words") and note,
        lambda note: note | {"calibration": {"temperature": 0, "center": 0}},
        lambda note: note | {"calibration": {"temperature": float("nan"), "center": 0}},
        lambda note: note | {"row_tokens": 0},
        lambda note: note | {"model": {"nmae": 1}},
        lambda note: note | {"model": note["model"] | {"dtype": "int8"}},
    ],
)
def test_broken_notes(saved, tmp_path, change):
    file = copied(saved, tmp_path) / NOTE
    note = change(json.loads(file.read_text()))
    file.write_text(note if isinstance(note, str) else json.dumps(note))
    with pytest.raises(UserError, match="broken note"):
        load_reward(tmp_path, ESCONV, CACHE)


def test_a_note_cannot_ask_for_foreign_code(saved, tmp_path):
    file = copied(saved, tmp_path) / NOTE
    note = json.loads(file.read_text())
    note["model"] |= {"source": "gguf_wheel", "path": "theirs"}
    file.write_text(json.dumps(note))
    with pytest.raises(UserError, match="in an unknown package, 'theirs'"):
        load_reward(tmp_path, ESCONV, CACHE)
    note["model"] |= {"source": "random", "path": LLAMA.path, "trust_remote_code": True}
    file.write_text(json.dumps(note))
    assert load_reward(tmp_path, ESCONV, CACHE).name == "tiny-llama"
