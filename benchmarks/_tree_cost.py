"""Time of forward and backward passes over token trees against plain sequences, on the model of `cso_vs_trl.py`."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _cso_pairs import esc_pro_shaped
from _trl_dpo import model_settings
from torch import Tensor

from esc_lab.config import DataConfig, TemplateConfig
from esc_lab.config.training import AdapterConfig, ObjectiveConfig
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import load_inventory
from esc_lab.models.forward import base_model
from esc_lab.models.load import LoadedModel, add_adapter, load_model
from esc_lab.models.log_probs import reply_log_probs
from esc_lab.models.tree_attention import IMPLEMENTATION
from esc_lab.tokens import PackedRow
from esc_lab.training.preference_steps import PreferenceSteps
from esc_lab.training.steps import StepDataModule, TurnEncoder

ROW_TOKENS = 4096
CACHE = Path(".cache")


class InOrder(PreferenceSteps):
    """Pairs in their order, epoch after epoch."""

    def plan_epoch(self, epoch: int) -> list[list[int]]:
        size = self.data.step_pairs
        pairs = list(range(len(self.preferences["train"].comparisons)))
        return [pairs[start : start + size] for start in range(0, len(pairs), size)]


def seconds_since(started: float) -> float:
    """Wall time, the GPU's pending work included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def tree_module(loaded: LoadedModel, dialogue: Dialogue, step_pairs: int) -> tuple[StepDataModule, InOrder]:
    """The dialogue as the only training data, and its steps."""
    splits, turns = (
        {"train": [dialogue]},
        TurnEncoder(loaded.encoder, load_inventory("cso"), TemplateConfig(), ROW_TOKENS),
    )
    steps = InOrder(splits, turns, DataConfig(step_pairs=step_pairs), ObjectiveConfig(), seed=1)
    steps.setup()
    return StepDataModule(splits, steps), steps


def trained(model: Any) -> dict[str, Any]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


class Passes:
    """What a step of DPO runs, the reference without and the policy with gradients, over a tree or a plain sequence."""

    def __init__(self, model: str, dtype: str) -> None:
        settings = model_settings(model, dtype)
        self.loaded = load_model(settings, CACHE)
        self.policy = add_adapter(self.loaded, AdapterConfig(), settings).model.train()
        self.inner = base_model(self.policy)

    def row(self, turns: int, rejected: int) -> PackedRow:
        """The tree of all pairs of a dialogue."""
        _, steps = tree_module(self.loaded, esc_pro_shaped(turns, rejected), 10_000)
        (row,) = steps.step_batch(range(len(steps.preferences["train"].comparisons))).rows
        return row.row

    def seconds(self, row: PackedRow, runs: int) -> tuple[float, float]:
        """Median times of the tree and of a plain sequence with as many tokens and head rows, run in turn."""
        vocabulary = len(self.loaded.encoder.tokenizer)
        ids = torch.from_numpy(np.random.default_rng(0).integers(0, vocabulary, (1, len(row) + 1)))
        ids, head_rows = ids.to(self.inner.device), torch.from_numpy(np.unique(row.query)).to(self.inner.device)
        times: dict[str, list[float]] = {IMPLEMENTATION: [], "sdpa": []}
        for run in range(runs + 1):
            for attention, spent in times.items():
                self.inner.set_attn_implementation(attention)
                started = time.perf_counter()
                for gradients in (False, True):
                    with torch.set_grad_enabled(gradients):
                        self._pass(None if attention == "sdpa" else row, ids, head_rows, gradients)
                if run:
                    spent.append(seconds_since(started))
                self.policy.zero_grad()
        self.inner.set_attn_implementation(IMPLEMENTATION)
        return median(times[IMPLEMENTATION]), median(times["sdpa"])

    def _pass(self, row: PackedRow | None, ids: Tensor, head_rows: Tensor, gradients: bool) -> None:
        if not gradients:
            with self.policy.disable_adapter():
                self._loss(row, ids, head_rows)
        else:
            self._loss(row, ids, head_rows).backward()

    def _loss(self, row: PackedRow | None, ids: Tensor, head_rows: Tensor) -> Tensor:
        if row is not None:
            return reply_log_probs(self.policy, row).mean()
        hidden = self.inner.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
        logits = self.inner.get_output_embeddings()(hidden[head_rows]).float()
        return torch.nn.functional.cross_entropy(logits, ids[0, head_rows + 1])


def growth(passes: Passes, turns: int, counts: tuple[int, ...], runs: int) -> None:
    """Seconds of a step and unique tokens by number of rejected replies per turn, fewest first.

    An added token costs more than one before it: all are reply tokens, which go through the LM head, and most of the
    context does not. So the growth is also given over that of plain sequences with as many tokens and head rows.
    """
    print("\nrejected  tokens  head rows  tree s  plain s")
    found = []
    for count in counts:
        row = passes.row(turns, count)
        tree, plain = passes.seconds(row, runs)
        found.append((len(row), tree, plain))
        print(f"{count:8} {len(row):7} {len(np.unique(row.query)):10} {tree:7.2f} {plain:8.2f}", flush=True)
    tokens, tree, plain = (last / first for first, last in zip(found[0], found[-1], strict=True))
    print(f"growth_of_time_over_growth_of_tokens: {tree / tokens:.2f} (goal <= 1)")
    print(f"growth_of_time_over_growth_of_plain_time: {tree / plain:.2f}")


def per_token(passes: Passes, runs: int) -> None:
    """Time of a tree over that of a plain sequence with as many tokens and head rows."""
    shapes = [(turns, rejected) for turns in range(3, 9) for rejected in (2, 3, 4, 5)]
    rows = [passes.row(*shape) for shape in shapes]
    for wanted, goal in ((1024, 1.15), (2048, 1.3)):
        row = min(rows, key=lambda row: abs(len(row) - wanted))
        tree, plain = passes.seconds(row, runs)
        print(f"time_per_unique_token_{len(row)}: {tree / plain:.2f} (goal <= {goal})", flush=True)
