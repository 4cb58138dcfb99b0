"""Hidden states below the adapters, kept on disk: checkpoints of one base model share them.

Adapters in the last layers of a model leave the layers below as they are, so for the same tokens every checkpoint has
the same states there. An evaluation of one starts from those that an evaluation of another, or of the base model, has
left. They are stored as they were computed, in the model's own precision, so no result changes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from esc_lab.artifacts import cached, fingerprint
from esc_lab.models.forward import base_model
from esc_lab.models.load import describe_config, hash_tensors

log = logging.getLogger(__name__)
_KIND = "frozen_states_v1"
_FILE = "states.safetensors"


class _Reached(Exception):
    """The last frozen layer has its states."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


class FrozenStates:
    """The states [1, T, hidden] behind a model's first layers, of rows of token trees.

    Args:
        frozen: how many of the first layers; none of them has an adapter.
        root: the cache directory.

    Attributes:
        rows, kept: passes over whole rows, and how many of these started from states that were there.
    """

    def __init__(self, model: Any, frozen: int, root: Path) -> None:
        self._decoder, self._frozen, self._root = base_model(model).get_decoder(), frozen, root
        first = {
            name: tensor
            for name, tensor in self._decoder.state_dict().items()
            if not name.startswith("layers.") or int(name.split(".")[1]) < frozen
        }
        self._model = {"weights": hash_tensors(first), "config": fingerprint(describe_config(model))}
        self._states: Tensor | None = None
        self._collects = False
        self.rows = self.kept = 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Passes over rows go through the first layers once for all models that share them.

        Passes with a cache of keys and values, a probe or a boost are left alone.
        """
        layers = list(self._decoder.layers[: self._frozen])
        for layer in layers:
            layer.forward = partial(self._in_layer, layer.forward, layer is layers[-1])
        self._decoder.forward = partial(self._in_decoder, self._decoder.forward)
        try:
            yield
        finally:
            for module in (self._decoder, *layers):
                del module.forward  # the class has its own

    def _in_decoder(self, forward: Callable[..., Any], **inputs: Any) -> Any:
        if any(inputs.get(name) is not None for name in ("past_key_values", "probe", "boost")):
            return forward(**inputs)

        def compute(directory: Path) -> None:
            self._collects = True
            try:
                forward(**inputs)
            except _Reached as reached:
                save_file({"states": reached.states.contiguous()}, directory / _FILE)
            finally:
                self._collects = False

        # Positions in depth-first order tell which tree it is.
        row = [hashlib.sha256(inputs[name].cpu().numpy().data).hexdigest() for name in ("input_ids", "position_ids")]
        key = {**self._model, "layers": self._frozen, "row": row}
        directory, kept = cached(self._root, _KIND, key, compute)
        self.rows, self.kept = self.rows + 1, self.kept + kept
        self._states = load_file(directory / _FILE)["states"].to(inputs["input_ids"].device)
        try:
            return forward(**inputs)
        finally:
            self._states = None

    def _in_layer(self, forward: Callable[..., Tensor], last: bool, hidden: Tensor, **inputs: Any) -> Tensor:
        if self._states is not None:
            return self._states
        output = forward(hidden, **inputs)
        if self._collects and last:
            raise _Reached(output)
        return output


@contextmanager
def share_frozen_states(model: Any, adapted: int | None, root: Path) -> Iterator[None]:
    """Share the states below the last `adapted` layers with other checkpoints; None = nothing is shared."""
    layers = base_model(model).get_decoder().layers if adapted else []
    bare = [not any("lora_" in name for name, _ in layer.named_parameters()) for layer in layers]
    frozen = min(bare.index(False) if False in bare else len(bare), max(len(bare) - (adapted or 0), 0))
    if not frozen:
        yield
        return
    with torch.no_grad():
        states = FrozenStates(model, frozen, root)
    with states.watch():
        yield
    log.info("states of the first %d layers: %d of %d passes were kept by others", frozen, states.kept, states.rows)
