"""Products of few rows against the usual linear layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from esc_lab.models.few_rows import FewRowsLinear, prepare_few_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (1, 17), (3, 21), (64,), (2, 40)])
def test_it_computes_what_a_linear_layer_does(dtype, bias, shape):
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias, dtype=dtype)
    x = torch.randn(*shape, 24, dtype=dtype)
    with torch.no_grad():
        expected = x.double() @ plain.weight.double().T + (plain.bias.double() if bias else 0)
        prepare_few_rows(plain)
        found = plain(x)
    assert type(plain) is FewRowsLinear
    assert found.dtype == dtype
    assert found.is_contiguous()
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_gradients_are_those_of_a_linear_layer():
    torch.manual_seed(0)
    plain, few = (nn.Linear(24, 40, dtype=torch.float64) for _ in range(2))
    few.load_state_dict(plain.state_dict())
    prepare_few_rows(few)
    x = torch.randn(5, 24, dtype=torch.float64)
    for layer in (plain, few):
        layer(x).square().sum().backward()
    assert few.weight.grad is not None
    assert torch.equal(few.weight.grad, plain.weight.grad)


def test_layers_of_another_kind_are_left_alone():
    class Quantised(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(2, 2), Quantised(2, 2))
    prepare_few_rows(model)
    assert [type(layer) for layer in model] == [FewRowsLinear, Quantised]
