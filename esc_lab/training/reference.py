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
from peft import PeftModel
from safetensors.numpy import load_file, save_file

from esc_lab.artifacts import cached
from esc_lab.errors import UserError
from esc_lab.models.log_probs import reply_log_probs
from esc_lab.terminal import track_progress
from esc_lab.training.preference_split import FloatArray, PreferenceSplit
from esc_lab.training.reply_log_probs import weighted_log_prob

log = logging.getLogger(__name__)
_KIND = "reference_log_probs_v2"


@torch.no_grad()
def label_and_text_log_probs(model: Any, split: PreferenceSplit, row_tokens: int) -> FloatArray:
    """Log-probabilities [replies, 2] of the label and of the rest of each reply, in the order of their numbers.

    Args:
        row_tokens: budget of a packed row; does not change the values.
    """
    log_probs = np.full((len(split.sequences), 2), np.nan, dtype=np.float32)
    for row in track_progress(split.reference_rows(row_tokens), "log-probabilities"):
        values = reply_log_probs(model, row.row)
        reply, is_label = torch.from_numpy(row.row.reply), torch.from_numpy(row.is_label)
        values = values.cpu()
        text, _ = weighted_log_prob(values, reply, is_label, len(row.row.keys), 0.0)
        whole, _ = weighted_log_prob(values, reply, is_label, len(row.row.keys), 1.0)
        log_probs[row.numbers] = torch.stack([whole - text, text], dim=1).numpy()[row.reply_of]
    return log_probs


def precompute_reference(
    model: Any, splits: Iterable[PreferenceSplit], identity: dict[str, str], row_tokens: int, root: Path
) -> None:
    """Give each split the reference log-probabilities of its replies, those of the model before training."""
    for split in splits:
        compute = partial(label_and_text_log_probs, model, split, row_tokens)
        split.reference = stored_log_probs(split, identity, compute, root)


def stored_log_probs(
    split: PreferenceSplit, identity: dict[str, str], compute: Callable[[], FloatArray], root: Path
) -> FloatArray:
    """Reference log-probabilities of a split, [replies, 2], from the artifact store or computed once.

    Args:
        identity: `model_identity` of the reference model and what else its log-probabilities depend on.
        compute: gives `label_and_text_log_probs` of the reference model if they are needed.
        root: the cache directory.

    Raises:
        UserError: they are not finite; nothing is stored then.
    """

    def build(directory: Path) -> None:
        log.info("reference log-probabilities of %d replies", len(split.sequences))
        values = compute()
        if not np.isfinite(values).all():
            count = int((~np.isfinite(values)).any(axis=1).sum())
            raise UserError(
                f"the log-probabilities of {count} of {len(values)} replies under the reference model are not finite",
                fix="compute in float32 (model.dtype), or check the model",
            )
        save_file({"log_probs": values}, directory / "log_probs.safetensors")

    directory, reused = cached(root, _KIND, {**identity, "replies": split.content}, build)
    if reused:
        log.info("reference log-probabilities from %s", directory)
    values: FloatArray = load_file(directory / "log_probs.safetensors")["log_probs"]
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
        self._model = model
        self._copy: Any = None
        self._adapter = adapter is not None
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
            training = self._model.training
            self._model.eval()
            try:
                if self._adapter:
                    self._model.set_adapter("reference", inference_mode=True)
                    yield self._model
                else:
                    with self._model.disable_adapter():
                        yield self._model
            finally:
                if self._adapter:
                    self._model.set_adapter("default")
                self._model.train(training)
