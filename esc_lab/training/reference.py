"""Log-probabilities under the frozen reference model: computed once and stored, or live beside the policy.

Stored ones are an artifact whose key is made of the reference model's weights and configuration and of all token ids,
so every run that shares them reads the same file, and none reads a wrong one.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch.distributed.device_mesh import DeviceMesh

from esc_lab.artifacts import READ_ERRORS, cached, find_cached
from esc_lab.errors import UserError
from esc_lab.models.forward import evaluation_mode
from esc_lab.models.log_probs import score_rows
from esc_lab.models.sharded import is_sharded, shard_model
from esc_lab.statistics.intervals import FloatArray
from esc_lab.terminal import track_progress
from esc_lab.tokens import pack_rows
from esc_lab.training.preference_split import PreferenceSplit
from esc_lab.training.processes import gather_objects

log = logging.getLogger(__name__)
_KIND = "reference_log_probs_v4"


def score_replies(model: Any, split: PreferenceSplit, row_tokens: int) -> FloatArray:
    """Log-probabilities [tokens] of the tokens of all replies of a split, reply by reply in the order of their numbers.

    Of a sharded model all processes ask for them, and each computes a part.

    Args:
        row_tokens: budget of a packed row; does not change the values.
    """
    sequences = split.sequences
    log_probs = np.full(split.first_token[-1], np.nan, dtype=np.float32)
    rows = pack_rows([sequences], max(row_tokens, *(len(sequence.input_ids) for sequence in sequences)))
    rank, world = (dist.get_rank(), dist.get_world_size()) if is_sharded(model) else (0, 1)
    own = (rows[rank::world] + rows[:1])[: -(-len(rows) // world)]  # as many passes on each
    for key, tokens in score_rows(model, track_progress(own, "log-probabilities")):
        first = split.first_token[split.number(*split.place[key])]
        log_probs[first : first + len(tokens)] = tokens
    if world > 1:
        log_probs = np.fmax.reduce(gather_objects(log_probs))  # what another process has computed is NaN
    return log_probs


def fill_reference(
    model: Any, splits: Iterable[PreferenceSplit], identity: dict[str, str], row_tokens: int, root: Path
) -> None:
    """Give the splits their reference log-probabilities, stored or computed; of a sharded model by all processes.

    Raises:
        UserError: as `stored_log_probs`.
    """
    for split in splits:
        compute = partial(score_replies, model, split, row_tokens)
        if is_sharded(model) and None in gather_objects(find_cached(root, _KIND, _inputs(split, identity))):
            with evaluation_mode(model):
                values = compute()
            compute = partial(np.copy, values)
        split.reference = stored_log_probs(split, identity, compute, root)


def _inputs(split: PreferenceSplit, identity: dict[str, str]) -> dict[str, str]:
    return {**identity, "replies": split.content}


def stored_log_probs(
    split: PreferenceSplit, identity: dict[str, str], compute: Callable[[], FloatArray], root: Path
) -> FloatArray:
    """Reference log-probabilities of a split, [tokens], from the artifact store or computed once.

    Args:
        identity: `model_identity` of the reference model and what else its log-probabilities depend on.
        compute: gives `score_replies` of the reference model if they are needed.
        root: the cache directory.

    Raises:
        UserError: they are not finite; nothing is stored then.
    """

    def build(directory: Path) -> None:
        log.info("reference log-probabilities of %d replies", len(split.sequences))
        values = compute()
        if not np.isfinite(values).all():
            count = np.count_nonzero(split.sum_replies(~np.isfinite(values)))
            raise UserError(
                f"the log-probabilities of {count} of {len(split.sequences)} replies under the reference model are not "
                "finite",
                fix="compute in float32 (model.dtype), or check the model",
            )
        save_file({"log_probs": values}, directory / "log_probs.safetensors")

    directory, reused = cached(root, _KIND, _inputs(split, identity), build)
    if reused:
        log.info("reference log-probabilities from %s", directory)
    file = directory / "log_probs.safetensors"
    try:  # entries of older code have no checksums
        values: FloatArray = load_file(file)["log_probs"]
        if values.shape != (split.first_token[-1],):
            raise ValueError(f"shape {values.shape}")
    except (SafetensorError, *READ_ERRORS) as error:
        fix = f"delete {directory}; they are then computed anew"
        raise UserError(f"not log-probabilities of these replies: {error}", where=str(file), fix=fix) from error
    return values


class LiveReference:
    """The policy's initial state, for log-probabilities beside those of the policy.

    With a new adapter it is the model without it; with an adapter that came from a checkpoint a frozen second one; with
    full fine-tuning a frozen copy of the model.

    Args:
        model: the trainable model, before the first step.
        adapter: directory of the adapter that training starts from, if it does.
    """

    def __init__(self, model: Any, adapter: Path | None) -> None:
        self._model, self._adapter, self._copy = model, adapter is not None, None
        if adapter is not None:
            model.load_adapter(str(adapter), "reference", torch_device=str(model.device))
        elif not isinstance(model, PeftModel):
            self._copy = copy.deepcopy(model).requires_grad_(False).eval()

    def shard(self, mesh: DeviceMesh) -> None:
        """Leave each process its part of a copy; what is part of the policy is sharded with it."""
        if self._copy is not None:
            shard_model(self._copy, mesh)

    @contextmanager
    def __call__(self) -> Iterator[Any]:
        """The reference model, without gradients and dropout."""
        with torch.no_grad():
            if self._copy is not None:
                yield self._copy.to(self._model.device)
                return
            with evaluation_mode(self._model):
                if not self._adapter:
                    with self._model.disable_adapter():
                        yield self._model
                    return
                self._model.set_adapter("reference", inference_mode=True)
                try:
                    yield self._model
                finally:
                    self._model.set_adapter("default")
