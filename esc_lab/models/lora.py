"""LoRA layers that compute in the precision of their model (LoRA, arXiv 2106.09685).

PEFT keeps the adapter of a half-precision model in float32, since small updates of its weights would be lost
otherwise. It also computes with it in float32: the states of every layer are cast there and back, and the products run
at half the speed or less. Here the small weights are cast instead, and the update is added by the product itself. So
gradients of the weights have the model's precision, and add up in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn import functional

from esc_lab.config.training import AdapterConfig
from esc_lab.errors import UserError
from esc_lab.models.forward import base_model
from esc_lab.models.sources import first_line, refuse_unreadable


class LoraLinear(lora.Linear):
    """PEFT's layer, with y = W x + s B A x computed in the type of W x."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., in] -> [..., out]. Anything but one plain adapter is left to PEFT, and float16: gradients underflow."""
        names = self.active_adapters
        plain = len(names) == 1 and names[0] in self.lora_A and names[0] not in self.lora_variant
        plain = plain and self.lora_B[names[0]].bias is None
        if args or kwargs or self.disable_adapters or self.merged or not plain or x.dtype == torch.float16:
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        (name,) = names
        output = self.base_layer(x)
        weights: list[Tensor] = [factor.get_parameter(f"{name}.weight") for factor in (self.lora_A, self.lora_B)]
        down, up = (weight.to(output.dtype) for weight in weights)
        low = functional.linear(self.lora_dropout[name](x).to(output.dtype), down)
        output.view(-1, output.shape[-1]).addmm_(low.flatten(0, -2), up.T, alpha=self.scaling[name])
        return output


def add_lora(model: Any, adapter: AdapterConfig, task: str, heads: Sequence[str] = ()) -> PeftModel:
    """The model with a new adapter.

    Args:
        task: PEFT's name of what the model is for.
        heads: names of modules that are trained whole, beside the adapter.

    Raises:
        UserError: an unknown target module, or `adapter.layers` of a model without decoder layers.
    """
    targets: str | list[str] = adapter.target_modules
    if targets != "all-linear":
        targets = adapter.target_modules.split(",")
    elif adapter.layers is not None:  # PEFT wants names then
        targets = _linear_modules(model, adapter.layers)
    config = LoraConfig(
        task_type=task,
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        layers_to_transform=_last_layers(model, adapter.layers),
        modules_to_save=list(heads) or None,
    )
    try:
        return _compute_in_model_precision(get_peft_model(model, config))
    except ValueError as error:
        raise UserError(first_line(error), where=f"adapter.target_modules={adapter.target_modules}") from None


def load_lora(model: Any, directory: Path, **options: Any) -> PeftModel:
    """The model with the adapter in a directory; options as for PEFT's `from_pretrained`.

    Raises:
        UserError: it cannot be read, or is none of this model.
    """
    with refuse_unreadable(str(directory)):
        return _compute_in_model_precision(PeftModel.from_pretrained(model, str(directory), **options))


def _compute_in_model_precision(model: PeftModel) -> PeftModel:
    for module in model.modules():
        if type(module) is lora.Linear:
            module.__class__ = LoraLinear  # the same weights under the same names
    return model


def _last_layers(model: Any, count: int | None) -> list[int] | None:
    """Numbers of the last layers; None for all."""
    layers = base_model(model).config.get_text_config().num_hidden_layers
    return None if count is None or count >= layers else [*range(layers - count, layers)]


def _linear_modules(model: Any, layers: int) -> list[str]:
    """Names of the linear modules in decoder layers, as an adapter takes them."""
    decoder_layers = getattr(base_model(model).get_decoder(), "layers", None)
    if decoder_layers is None:
        where = f"adapter.layers={layers}"
        raise UserError("the model has no decoder layers to count", where=where, fix="adapter.layers=null")
    found = (name for name, module in decoder_layers.named_modules() if isinstance(module, nn.Linear))
    return sorted({name.rpartition(".")[2] for name in found})
