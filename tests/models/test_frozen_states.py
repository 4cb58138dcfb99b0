"""States below the adapters are computed once for all checkpoints, and change nothing."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model

from esc_lab.models.frozen_states import share_frozen_states
from esc_lab.models.log_probs import score_rows
from esc_lab.tokens import pack_rows
from tests.models.test_log_probs import with_replies
from tests.models.test_tree_attention import random_sequences


def adapt(model, layers: list[int], seed: int):
    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], layers_to_transform=layers, init_lora_weights=False)
    return get_peft_model(copy.deepcopy(model), config).eval()


def score(model, rows):
    return {key: values.tolist() for key, values in score_rows(model, rows)}


def count_passes(model) -> Counter[int]:
    counts: Counter[int] = Counter()
    for number, layer in enumerate(model.get_decoder().layers):
        layer.self_attn.register_forward_hook(lambda *_, number=number: counts.update([number]))
    return counts


@torch.no_grad()
def test_checkpoints_start_from_the_states_of_others_and_say_the_same(tiny_models, family, tmp_path):
    base = tiny_models(family).model
    last = len(base.get_decoder().layers) - 1
    rows = list(pack_rows([with_replies(random_sequences(11, trunk=100))], 500))
    models = [copy.deepcopy(base), adapt(base, [last], 1), adapt(base, [last], 2)]
    plain = [score(model, rows) for model in models]
    assert plain[1] != plain[2]
    passes = []
    for model, expected in zip(models, plain, strict=True):
        passes.append(count_passes(model))
        with share_frozen_states(model, 1, tmp_path):
            assert score(model, rows) == expected
        assert score(model, rows) == expected  # and is as it was
    assert passes[0] == {**dict.fromkeys(range(last), 2 * len(rows)), last: 2 * len(rows)}
    assert passes[1] == passes[2] == {**dict.fromkeys(range(last), len(rows)), last: 2 * len(rows)}


@torch.no_grad()
def test_layers_with_adapters_or_other_weights_share_nothing(tiny_models, tmp_path):
    base = tiny_models("llama").model
    rows = list(pack_rows([with_replies(random_sequences(3))], 4096))
    other = copy.deepcopy(base)
    other.get_decoder().layers[0].self_attn.q_proj.weight.mul_(1.5)
    everywhere = adapt(base, list(range(len(base.get_decoder().layers))), 1)
    for model in (base, other, everywhere):
        expected = score(model, rows)
        with share_frozen_states(model, 1, tmp_path):
            assert score(model, rows) == expected
    assert len(list((tmp_path / "frozen_states_v1").glob("*/states.safetensors"))) == 2


@torch.no_grad()
def test_passes_with_keys_and_values_kept_are_left_alone(tiny_models, tmp_path):
    base = copy.deepcopy(tiny_models("gemma2").model)
    ids = torch.arange(5, 25)[None]
    with share_frozen_states(base, 1, tmp_path):
        shared = base.generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(shared, base.generate(ids, max_new_tokens=5, do_sample=False))
    assert not (tmp_path / "frozen_states_v1").exists()


def test_nothing_is_left_of_a_pass_that_failed(tiny_models, tmp_path):
    base = copy.deepcopy(tiny_models("llama").model)
    rows = list(pack_rows([with_replies(random_sequences(3))], 4096))

    def fail(*_) -> None:
        raise MemoryError("no more")

    with share_frozen_states(base, 1, tmp_path):
        hook = base.get_decoder().layers[0].register_forward_pre_hook(fail)
        with pytest.raises(MemoryError):
            score(base, rows)
        hook.remove()
        found = score(base, rows)
    assert found == score(base, rows)
