"""Models whose weights lie in parts on several processes (FSDP2), the passes that gather them, and whole weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from esc_lab.models.forward import base_model

T = TypeVar("T")
_GATHER = "call_gathered"  # name of the method that `shard_model` gives a model


def shard_model(model: Any, mesh: DeviceMesh) -> None:
    """Leave each process its part of the weights, on its device; the layers are moved there one after the other.

    Embeddings, final norm and LM head, which may share their weights, stay together: a pass gathers them at its
    beginning, and those of a layer when it comes to it.
    """
    inner = base_model(model)
    for layer in inner.get_decoder().layers:
        cast_weights(layer, inner.config.dtype)
        fully_shard(layer, mesh=mesh)
    cast_weights(inner, inner.config.dtype)
    fully_shard(inner, mesh=mesh)
    setattr(inner, _GATHER, lambda function: function())
    register_fsdp_forward_method(inner, _GATHER)


def cast_weights(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Make weights float32 that are left in the half precision of their files, if that is the type of the model."""
    for parameter in module.parameters() if dtype == torch.float32 else ():
        if parameter.is_floating_point() and not isinstance(parameter, DTensor):
            parameter.data = parameter.data.to(dtype)


def call_gathered(inner: Any, function: Callable[[], T]) -> T:
    """What `function` returns, which uses weights of the model outside of its own forward, such as those of the head.

    Of a sharded model these are whole inside the call alone, and all processes have to make as many calls.
    """
    return getattr(inner, _GATHER)(function) if hasattr(inner, _GATHER) else function()


def is_sharded(model: Any) -> bool:
    return hasattr(base_model(model), _GATHER)


def local_part(tensor: Tensor) -> Tensor:
    """This process' part of a tensor that lies on several."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the parts of all processes, which have to ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_weights(model: Any, *, trained_only: bool) -> dict[str, Tensor]:
    """The whole weights of a sharded model on the CPU, one after the other; every process asks, the first has them."""
    state, first, weights = model.state_dict(), torch.distributed.get_rank() == 0, {}
    parameters = dict(model.named_parameters())
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - parameters.keys()
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    for name in sorted(trained if trained_only else state.keys() - tied):  # in the same order everywhere
        value = whole(state[name])
        if first:
            weights[name] = value.cpu()
    return weights
