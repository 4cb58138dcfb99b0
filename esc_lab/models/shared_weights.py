"""One copy of the base weights for models that a process holds side by side: a policy, and what scores its replies.

Each model keeps modules, adapter and head of its own, so none of them has to be switched; the tensors of the base are
the same. Roles of a search go further, and share passes too (`row_adapters`).
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)


def share_weights(model: Any, other: Any) -> int:
    """Have a model use the parameters of another wherever both have the same values under the same name.

    Only plain parameters are shared, none of an adapter. From then on whatever changes one model's changes the other's.

    Returns:
        Bytes that the model no longer holds.
    """
    theirs = {_base_name(name): weight for name, weight in other.named_parameters(remove_duplicate=False)}
    freed: dict[int, int] = {}
    for path, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            shared = theirs.get(_base_name(f"{path}.{name}"))
            if shared is not None and shared is not weight and _are_equal(weight, shared):
                module.register_parameter(name, shared)
                freed[id(weight)] = weight.nbytes
    if freed:
        log.info("%.0f MB of base weights are shared", sum(freed.values()) / 1e6)
    return sum(freed.values())


def _base_name(name: str) -> str:
    """The name of a base model's parameter without what PEFT puts around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _are_equal(one: nn.Parameter, other: nn.Parameter) -> bool:
    if type(one) is not nn.Parameter or type(other) is not nn.Parameter:  # quantised
        return False
    same = (one.shape, one.dtype) == (other.shape, other.dtype)
    return same and torch.equal(one.detach().to(other.device), other.detach())
