"""One copy of weights for two models: only of what is the same, and never of an adapter."""

from __future__ import annotations

import torch
from torch import nn

from esc_lab.models.shared_weights import share_weights


class Tied(nn.Module):
    """A model of two layers whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.layer(self.embedding(ids)))


def test_what_is_the_same_is_shared():
    one, other = Tied(), Tied()
    other.load_state_dict(one.state_dict())
    ids, expected = torch.arange(7), one(torch.arange(7))
    assert share_weights(other, one) == 4 * (7 * 4 + 4 * 4 + 4)
    assert {id(weight) for weight in other.parameters()} == {id(weight) for weight in one.parameters()}
    assert other.head.weight is other.embedding.weight
    assert torch.equal(other(ids), expected)
    assert share_weights(other, one) == 0  # again


def test_what_differs_stays():
    one, other = Tied(), Tied()
    other.load_state_dict(one.state_dict())
    other.layer.weight.data[0, 0] += 1
    assert share_weights(other, one) == 4 * (7 * 4 + 4)
    assert other.layer.weight is not one.layer.weight
    half = Tied().to(torch.bfloat16)
    assert share_weights(half, one) == 0
    assert share_weights(nn.Linear(3, 3), one) == 0
