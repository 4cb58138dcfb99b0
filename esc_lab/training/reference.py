"""Log-probabilities under the frozen reference model: computed once and stored, or live beside the policy.

Stored ones are an artifact whose key is made of the reference model's weights and configuration and of all token ids,
so every run that shares them reads the same file, and none reads a wrong one.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from esc_lab.artifacts import READ_ERRORS, cached
from esc_lab.errors import UserError
from esc_lab.models.forward import evaluation_mode
from esc_lab.models.log_probs import score_rows
from esc_lab.statistics.intervals import FloatArray
from esc_lab.terminal import track_progress
from esc_lab.tokens import pack_rows
from esc_lab.training.preference_split import PreferenceSplit

log = logging.getLogger(__name__)
_KIND = "reference_log_probs_v3"


def score_replies(model: Any, split: PreferenceSplit, row_tokens: int) -> FloatArray:
    """Log-probabilities [tokens] of the tokens of all replies of a split, reply by reply in the order of their numbers.

    Args:
        row_tokens: budget of a packed row; does not change the values.
    """
    sequences = split.sequences
    log_probs = np.full(split.first_token[-1], np.nan, dtype=np.float32)
    rows = pack_rows([sequences], max(row_tokens, *(len(sequence.input_ids) for sequence in sequences)))
    for key, tokens in score_rows(model, track_progress(rows, "log-probabilities")):
        first = split.first_token[split.number(*split.place[key])]
        log_probs[first : first + len(tokens)] = tokens
    return log_probs


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

    directory, reused = cached(root, _KIND, {**identity, "replies": split.content}, build)
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
            model.load_adapter(str(adapter), "reference")
        elif not isinstance(model, PeftModel):
            self._copy = copy.deepcopy(model).requires_grad_(False).eval()

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
