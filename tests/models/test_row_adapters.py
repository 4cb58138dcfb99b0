"""Tasks of several adapters in one engine equal those that PEFT answers with each adapter alone."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from esc_lab.errors import UserError
from esc_lab.models.engine import Engine, EngineLimits, ReplyTask, ScoreTask
from esc_lab.models.forward import tree_hidden_states
from esc_lab.models.generate import Sampling, generate
from esc_lab.models.log_probs import join_reply, score_rows
from esc_lab.models.row_adapters import AdaptedLinear, RowAdapters, fingerprint_adapter
from esc_lab.tokens import build_tree, pack_rows
from tests.models.test_engine import NEVER, growing_prompts, run
from tests.models.test_tree_attention import random_sequences

SMALL = EngineLimits(batch=4, row_tokens=80, working_tokens=600, cache_tokens=120)


def write_adapter(model, directory, seed: int, **options):
    """A LoRA adapter with random weights, far from no update."""
    config = LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "target_modules": "all-linear"} | options)
    adapted = get_peft_model(copy.deepcopy(model), config)
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype) * 0.2
    adapted.save_pretrained(str(directory))
    return directory


@pytest.fixture
def adapters(exact_models, family, tmp_path):
    model = exact_models(family)
    return [write_adapter(model, tmp_path / name, seed) for seed, name in enumerate("ab")]


def alone(model, directory):
    """The model of one adapter alone; without a directory the base model."""
    fresh = copy.deepcopy(model)
    return PeftModel.from_pretrained(fresh, str(directory)).double().eval() if directory else fresh


@pytest.mark.parametrize("limits", [EngineLimits(), SMALL])
def test_adapters_side_by_side_as_each_alone(exact_models, family, adapters, limits):
    """Equal prompts go through all three at the same time, and again: their keys and values are not mixed up."""
    model = exact_models(family)
    shared = copy.deepcopy(model)
    rows = RowAdapters(shared)
    numbers = [0, *map(rows.load, adapters)]
    assert numbers == [0, 1, 2]
    assert rows.load(adapters[0]) == 1
    prompts = growing_prompts(3)[:5]
    tails = [sequence[:4] for sequence in random_sequences(8, trunk=3, branches=2)]
    engine = Engine(shared, NEVER, limits, rows)
    tasks = [
        [task for prompt in prompts for task in (
            ReplyTask(prompt, Sampling(5), 0, number), ScoreTask(prompt, tails, [0] * len(tails), number)
        )]
        for number in numbers
    ]  # fmt: skip
    mixed = [task for together in zip(*tasks, strict=True) for task in together]
    run(engine, mixed, together=4)
    replies = []
    for directory, own in zip([None, *adapters], tasks, strict=True):
        expected = alone(model, directory)
        replies.append(generate(expected, prompts, NEVER, Sampling(5), [0] * len(prompts)))
        assert [task.reply for task in own[::2]] == replies[-1]
        units = [[join_reply(prompt, tail, (n, k)) for k, tail in enumerate(tails)] for n, prompt in enumerate(prompts)]
        scores = dict(score_rows(expected, pack_rows(units, 4096)))
        for n, (task, prompt) in enumerate(zip(own[1::2], prompts, strict=True)):
            for k, found in enumerate(task.log_probs):
                np.testing.assert_allclose(found, scores[n, k], atol=1e-9)
            tree = build_tree([prompt])
            with torch.no_grad():
                states = tree_hidden_states(expected, tree.input_ids, tree.position_ids, tree.leave)
            np.testing.assert_allclose(task.state, states[tree.paths[0][-1]].numpy(), atol=1e-9)
    assert len({str(own) for own in replies}) == 3  # the adapters do something


def test_a_head_needs_no_continuations(exact_models, adapters, family):
    shared = copy.deepcopy(exact_models(family))
    rows = RowAdapters(shared)
    task = ScoreTask(growing_prompts(3)[0], [], [], rows.load(adapters[1]))
    run(Engine(shared, NEVER, None, rows), [task])
    assert task.log_probs == []
    assert task.state.shape == (shared.config.get_text_config().hidden_size,)


def test_the_base_is_there_once(tiny_models, tmp_path):
    shared = copy.deepcopy(tiny_models("llama").model)
    before = {id(parameter) for parameter in shared.parameters()}
    rows = RowAdapters(shared)
    for seed in range(4):
        rows.load(write_adapter(tiny_models("llama").model, tmp_path / str(seed), seed))
    assert {id(parameter) for parameter in shared.parameters()} == before
    layers = [module for module in shared.modules() if isinstance(module, AdaptedLinear)]
    assert {len(layer.updates) for layer in layers} == {4}


@pytest.mark.parametrize("options", [{"use_dora": True}, {"target_modules": ["lm_head"]}, {"alpha_pattern": {"q": 3}}])
def test_other_adapters_are_refused(tiny_models, tmp_path, options):
    model = tiny_models("llama").model
    directory = write_adapter(model, tmp_path / "other", 1, **options)
    with pytest.raises(UserError, match="it cannot share its base model with other roles"):
        RowAdapters(copy.deepcopy(model)).load(directory)


def test_a_fingerprint_is_of_what_is_computed(tiny_models, tmp_path):
    model = tiny_models("llama").model
    first, again = (fingerprint_adapter(write_adapter(model, tmp_path / name, 1)) for name in "ab")
    other = fingerprint_adapter(write_adapter(model, tmp_path / "c", 2))
    file = tmp_path / "b" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "lora_alpha": 9}))
    assert first == again != other
    assert fingerprint_adapter(tmp_path / "b") not in (first, other)


def test_neighbours_with_one_adapter_are_computed_together(exact_models):
    rows = RowAdapters(exact_models("llama"))
    rows.use([(0, 2), (1, 3), (1, 4), (0, 1), (2, 5)])
    assert rows._segments == [(1, slice(2, 9)), (2, slice(10, 15))]
