"""Linear layers that are fast for a few tokens at once on the CPU, as many replies that are written together need.

Of 2 to 63 rows MKL computes `x W^T` in float32 and float64 at a fraction of the speed that it has with many; the same
product as `(W x^T)^T` takes about half of that time at 16 to 32 (docs/performance.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_MANY = 64  # rows from which the usual product is as fast


class FewRowsLinear(nn.Linear):
    """`nn.Linear`, with few rows computed as `(W x^T)^T` where no gradient is asked for."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        few = 1 < x.numel() // self.in_features < _MANY
        if not few or torch.is_grad_enabled() or x.dtype not in (torch.float32, torch.float64) or not x.is_cpu:
            return super().forward(x)
        output = (self.weight @ x.reshape(-1, self.in_features).T).T.contiguous()
        if self.bias is not None:
            output += self.bias
        return output.view(*x.shape[:-1], -1)


def prepare_few_rows(model: Any) -> None:
    """Give the plain linear layers of a model this product; their weights and names stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FewRowsLinear
