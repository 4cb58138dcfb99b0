"""LoRA in the precision of the model: its values and gradients against PEFT's own and against float64."""

from __future__ import annotations

import pytest
import torch
from peft.tuners import lora
from transformers import BertConfig, BertForSequenceClassification

from esc_lab.config.training import AdapterConfig
from esc_lab.errors import UserError
from esc_lab.models.load import load_model
from esc_lab.models.lora import LoraLinear, add_lora, load_lora
from tests.conftest import CACHE, model_config

IN, OUT, RANK = 48, 80, 4


def adapted(dtype, dropout=0.0, seed=0):
    """A model of one linear layer with an adapter, both with random weights."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(IN, OUT, bias=False, dtype=dtype))
    settings = lora.LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=dropout, target_modules=["0"])
    layer = lora.LoraModel(model, settings, "default").model[0]
    torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.2)
    for factor in (layer.lora_A, layer.lora_B):
        factor.float()
    return layer


def differentiate(layer, states, weights):
    """The output, and the gradients of its weighted sum: of the input and of the adapter's two weights."""
    states = states.clone().requires_grad_(True)
    output = layer(states)
    output.backward(weights.to(output.dtype))
    factors = [factor["default"].weight for factor in (layer.lora_A, layer.lora_B)]
    return [output.detach(), states.grad, *(factor.grad for factor in factors)]


def distances(found, expected):
    return [float((one.double() - other).norm() / other.norm()) for one, other in zip(found, expected, strict=True)]


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
def test_values_and_gradients_are_those_of_float64(dtype, largest):
    drawn = torch.Generator().manual_seed(1)
    states, weights = (torch.randn(3, 11, size, generator=drawn).to(dtype) for size in (IN, OUT))
    ours, theirs, exact = adapted(dtype), adapted(dtype), adapted(dtype).double()
    ours.__class__ = LoraLinear
    expected = differentiate(exact, states.double(), weights.double())
    found, usual = differentiate(ours, states, weights), differentiate(theirs, states, weights)
    assert [one.dtype for one in found] == [one.dtype for one in usual] == [dtype, dtype, torch.float32, torch.float32]
    assert max(distances(found, expected)) < largest
    assert max(distances(usual, expected)) < largest


def test_dropout_is_drawn_as_by_peft():
    states = torch.randn(5, IN)
    ours, theirs = adapted(torch.float32, dropout=0.5), adapted(torch.float32, dropout=0.5)
    ours.__class__ = LoraLinear
    outputs = []
    for layer in (ours, theirs):
        torch.manual_seed(7)
        outputs.append(layer.train()(states))
    torch.testing.assert_close(*outputs)
    assert not torch.allclose(outputs[0], ours.eval()(states))


def test_an_adapter_can_be_off_merged_or_several():
    layer, states = adapted(torch.float32), torch.randn(5, IN)
    layer.__class__ = LoraLinear
    on, base = layer(states), layer.base_layer(states)
    layer.enable_adapters(False)
    torch.testing.assert_close(layer(states), base)
    layer.enable_adapters(True)
    layer.merge()
    torch.testing.assert_close(layer(states), on, atol=1e-5, rtol=0)
    layer.unmerge()
    layer.update_layer("other", RANK, RANK, config=lora.LoraConfig(r=RANK, init_lora_weights=False))
    layer.set_adapter(["default", "other"])
    other = layer.lora_B["other"](layer.lora_A["other"](states))
    torch.testing.assert_close(layer(states), on + other, atol=1e-5, rtol=0)


def test_every_layer_that_is_added_or_loaded_computes_so(tmp_path):
    config = model_config("tiny_llama")
    added = add_lora(load_model(config, CACHE).model, AdapterConfig(layers=1), "CAUSAL_LM")
    added.save_pretrained(str(tmp_path))
    loaded = load_lora(load_model(config, CACHE).model, tmp_path)
    for model in (added, loaded):
        layers = {name for name, module in model.named_modules() if type(module) is LoraLinear}
        assert len(layers) == 7
        assert all(".layers.1." in name for name in layers)
        assert not any(type(module) is lora.Linear for module in model.modules())


def test_layers_of_a_model_that_has_none_to_count_are_refused():
    encoder = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=1, intermediate_size=8)
    model = BertForSequenceClassification(encoder)
    with pytest.raises(UserError, match="no decoder layers to count"):
        add_lora(model, AdapterConfig(layers=1), "SEQ_CLS", ("classifier",))
