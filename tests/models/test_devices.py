"""Which GPU is a process' own, and that a training step never waits for it nor mixes devices.

Meta tensors have shapes and a device and no values: what reads one, as a copy to the CPU or a Python number does, or
computes with one and a tensor of the CPU, fails on them.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from esc_lab.config.training import AdapterConfig, ObjectiveConfig, OptimizerConfig, SchedulerConfig
from esc_lab.models import engine, forward, generate, tree_attention
from esc_lab.models.attention_boost import AttentionBoost, BoostedSpan, mark
from esc_lab.models.devices import choose_pass_tokens, find_device
from esc_lab.models.engine import Engine, ReplyTask
from esc_lab.models.generate import Sampling
from esc_lab.models.load import add_adapter
from esc_lab.training.cso import CSOModule
from esc_lab.training.sft import SFTModule
from esc_lab.training.steps import make_ahead
from tests.conftest import FAMILIES, model_config
from tests.models.test_tree_attention import random_sequences
from tests.training.modules import add_values, data_module

META = torch.device("meta")


@pytest.mark.parametrize(
    ("variables", "seen", "expected"),
    [
        ({}, 4, 0),
        ({"LOCAL_RANK": "3"}, 4, 3),
        ({"SLURM_LOCALID": "2"}, 4, 2),
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "2"}, 4, 1),
        ({"SLURM_LOCALID": "2"}, 1, 0),  # --gpus-per-task=1
    ],
)
def test_each_process_has_its_own_gpu(variables, seen, expected, monkeypatch):
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    assert find_device() == torch.device("cuda", expected)


def test_budget_of_a_pass():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_pass_tokens(None, 2048, cpu) == 2048
    assert choose_pass_tokens(None, 2048, cuda) == 8192
    assert choose_pass_tokens(None, 16384, cuda) == 16384
    assert choose_pass_tokens(4096, 2048, cuda) == 4096
    assert choose_pass_tokens(16, 2048, cpu) == 2048


@pytest.fixture
def on_meta(tiny_models, monkeypatch):
    """Trees go the way of a GPU, but for the kernel itself."""
    for name in FAMILIES:
        tiny_models(name)  # loading checks what they compute

    def kernel(query, key, value, score_mod, block_mask, scale, enable_gqa):
        for name in ("kv_num_blocks", "kv_indices", "full_kv_indices", "q_indices", "full_q_indices"):
            assert getattr(block_mask, name).device == query.device
        place = [torch.arange(1, device=query.device)] * 4
        block_mask.mask_mod(*place)
        if score_mod is not None:
            query = query * score_mod(query.new_zeros(1), *place)
        return query + key.sum() + value.sum()

    for module in (forward, tree_attention):
        monkeypatch.setattr(module, "uses_flex", lambda *_: True)
    monkeypatch.setattr(tree_attention, "flex_kernel", lambda _: kernel)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # knows no meta device


@pytest.mark.parametrize("name", ["cso", "kto", "listwise", "simpo"])
@pytest.mark.usefixtures("on_meta")
def test_rows_of_cso_are_not_waited_for(name, tiny_models, sample_dialogues):
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    loaded, objective = tiny_models("gemma2"), ObjectiveConfig(name=name, **weights)
    dialogues = [replace(one, turns=tuple(map(add_values, one.turns))) for one in sample_dialogues[:2]]
    data = data_module({"train": dialogues}, loaded.encoder, objective=objective, step_pairs=1000, row_tokens=1500)
    data.setup("fit")
    split = data.steps.preferences["train"]
    split.reference = np.zeros(split.first_token[-1], dtype=np.float32)
    numbers = data.steps.plan_epoch(0)[0]
    batch = data.steps.step_batch(numbers)
    assert len(batch.rows) > 1
    model = copy.deepcopy(loaded.model).requires_grad_(True)
    module = CSOModule(model, objective, OptimizerConfig(), SchedulerConfig(), 1.0, 1).to(META).train()
    sums = {}
    for loss in module._losses(batch, module._reference_point(batch, distributed=False), sums):
        loss.backward()
    assert all(value.device == META for value in sums.values())
    assert module._clip_gradient(1.0).device == META


@pytest.mark.usefixtures("on_meta")
def test_rows_of_sft_are_not_waited_for(tiny_models, sample_dialogues):
    settings = model_config("tiny_llama")
    loaded = add_adapter(copy.deepcopy(tiny_models("llama")), AdapterConfig(), settings)
    loaded.model.gradient_checkpointing_enable({"use_reentrant": False})
    loaded.model.enable_input_require_grads()
    data = data_module({"train": sample_dialogues[:2]}, loaded.encoder, row_tokens=1500)
    data.setup("fit")
    module = SFTModule(loaded.model, OptimizerConfig(), SchedulerConfig(), 1.0, seed=1).to(META).train()
    for loss in module._losses(data.steps.step_batch(data.steps.plan_epoch(0)[0])):
        loss.backward()
    assert all(parameter.grad is not None for parameter in module._trained())


@pytest.mark.parametrize("mode", ["add", "block"])
@pytest.mark.usefixtures("on_meta")
def test_generation_and_boost_stay_on_their_device(mode, tiny_models, family, monkeypatch):
    model = copy.deepcopy(tiny_models(family).model).to(META)
    prompts = random_sequences(3, trunk=80)
    monkeypatch.setattr(generate, "draw", lambda logits, samplings, _: [5] * len(samplings))
    boost = AttentionBoost(mode, 1.0, torch.ones(4, 4, dtype=torch.bool))
    marked = mark(prompts, [BoostedSpan(np.arange(3), 10)] * len(prompts))
    for asked, steer in ((prompts, None), (marked, boost)):
        replies = generate.generate(model, asked, frozenset(), Sampling(3), range(len(asked)), boost=steer)
        assert replies == [[5, 5, 5]] * len(asked)


def test_the_engine_stays_on_its_device(tiny_models, family, monkeypatch):
    model = copy.deepcopy(tiny_models(family).model).to(META)
    monkeypatch.setattr(engine, "draw", lambda logits, samplings, _: [5] * len(samplings))
    running = Engine(model, frozenset())
    tasks = [ReplyTask(prompt, Sampling(4), 0, no_repeat=2) for prompt in random_sequences(3, trunk=80)]
    for task in tasks:
        running.add(task)
    while not running.idle:
        running.step()
    assert all(task.reply == [5] * 4 for task in tasks)


def test_batches_made_ahead_come_in_their_order():
    made = []

    def make(numbers):
        made.append(numbers[0])
        if numbers[0] == 3:
            raise ValueError("three")
        return numbers[0]

    batches = make_ahead(make, [[0], [1], [2], [3], [4]])
    assert [next(batches), next(batches), next(batches)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(batches)
    assert list(make_ahead(make, [])) == []
    assert list(make_ahead(make, [[1], [2]])) == [1, 2]
