"""One copy of a base model with several adapters, each for the rows of a pass that are its own.

A pass that is put together of several roles' prompts reads the base weights once, for all of them. Behind each adapted
layer the rows of a role get the low-rank update of its adapter: y = W x + s B A x (LoRA, arXiv 2106.09685); rows of no
adapter get none. So roles cost one model, and what they ask at the same time is computed together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.utils import load_peft_weights
from torch import Tensor, nn

from esc_lab.artifacts import file_fingerprint, fingerprint
from esc_lab.errors import UserError
from esc_lab.models.sources import refuse_unreadable

BASE = 0  # the number of no adapter
_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


class AdaptedLinear(nn.Module):
    """A linear layer with low-rank updates.

    Attributes:
        updates: adapter number -> A^T [in, rank] and s B^T [rank, out].
    """

    def __init__(self, base_layer: nn.Module, segments: list[tuple[int, slice]]) -> None:
        super().__init__()
        self.base_layer, self.segments = base_layer, segments
        self.updates: dict[int, tuple[Tensor, Tensor]] = {}

    def forward(self, states: Tensor) -> Tensor:
        """[1, rows, in] -> [1, rows, out]."""
        output: Tensor = self.base_layer(states)
        for adapter, rows in self.segments:
            if update := self.updates.get(adapter):
                down, up = update
                output[0, rows].addmm_(states[0, rows] @ down, up)
        return output


class RowAdapters:
    """The adapters of a model, and which of them each row of the next pass goes through.

    Args:
        model: a transformers model in evaluation mode, without adapters; its layers are wrapped in place.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._segments: list[tuple[int, slice]] = []
        self._numbers: dict[Path, int] = {}

    def load(self, directory: Path) -> int:
        """The number of the adapter in a directory, which is read once.

        Raises:
            UserError: it cannot be read, or is no plain LoRA on linear layers of this model.
        """
        place = directory.resolve()
        if place not in self._numbers:
            self._add(directory, len(self._numbers) + 1)
            self._numbers[place] = len(self._numbers) + 1
        return self._numbers[place]

    def use(self, segments: Sequence[tuple[int, int]]) -> None:
        """What the rows of the next pass go through: number of the adapter and how many rows, one after another.

        Neighbours with the same adapter are computed together.
        """
        self._segments.clear()
        row = 0
        for adapter, together in groupby(segments, key=itemgetter(0)):
            rows = sum(rows for _, rows in together)
            if adapter != BASE:
                self._segments.append((adapter, slice(row, row + rows)))
            row += rows

    def _add(self, directory: Path, number: int) -> None:
        with refuse_unreadable(str(directory)):
            config = PeftConfig.from_pretrained(str(directory))
            weights = load_peft_weights(str(directory), device="cpu")
        modules = dict(self._model.named_modules())
        head = self._model.get_output_embeddings()
        for name in [name for name in weights if name.endswith(_DOWN)]:
            layer = name.removeprefix(_PREFIX).removesuffix(_DOWN)
            module, partner = modules.get(layer), weights.pop(name.replace(_DOWN, _UP), None)
            down = weights.pop(name)
            if module is None or partner is None or module is head or not _is_linear(module):
                raise _refuse(directory, f"an adapter on {layer}")
            self._wrap(layer, module).updates[number] = self._update(down, partner, _scale(config, directory))
        if weights:
            raise _refuse(directory, f"{next(iter(weights))} in it")

    def _wrap(self, layer: str, module: Any) -> AdaptedLinear:
        if isinstance(module, AdaptedLinear):
            return module
        wrapped = AdaptedLinear(module, self._segments)
        parent, _, name = layer.rpartition(".")
        setattr(self._model.get_submodule(parent), name, wrapped)
        return wrapped

    def _update(self, down: Tensor, up: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        place = {"device": self._model.device, "dtype": self._model.dtype}
        return down.T.contiguous().to(**place), (scale * up.T).contiguous().to(**place)


def fingerprint_adapter(directory: Path) -> str:
    """What an adapter computes: of its weights, and of how they are applied.

    Raises:
        UserError: it cannot be read.
    """
    with refuse_unreadable(str(directory)):
        weights = file_fingerprint(directory / "adapter_model.safetensors")
        config = LoraConfig.from_pretrained(str(directory))
    return fingerprint([weights, config.lora_alpha, config.use_rslora])


def _is_linear(module: Any) -> bool:
    return isinstance(module, nn.Linear | AdaptedLinear)


def _scale(config: Any, directory: Path) -> float:
    if not isinstance(config, LoraConfig) or config.use_dora or config.alpha_pattern or config.rank_pattern:
        raise _refuse(directory, "another kind of adapter than LoRA")
    return float(config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r))


def _refuse(directory: Path, what: str) -> UserError:
    fix = "merge it with stage=export, and name the model as the role's: llm.<role>.model=DIRECTORY"
    return UserError(f"{what}: it cannot share its base model with other roles", where=str(directory), fix=fix)
