"""The tiny models on this device against the CPU: trees, gradients, probe, boost, generation and engine."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from _tree_cost import CACHE
from _trl_dpo import model_settings
from torch import Tensor

from esc_lab.models import forward, tree_attention
from esc_lab.models.attention_boost import MODES, AttentionBoost, BoostedSpan, mark, split_tree
from esc_lab.models.attention_probe import AttentionProbe
from esc_lab.models.engine import Engine, ReplyTask, ScoreTask
from esc_lab.models.forward import tree_hidden_states
from esc_lab.models.generate import Sampling, generate
from esc_lab.models.load import load_model
from esc_lab.models.log_probs import reply_log_probs
from esc_lab.tokens import ReplyTokens, TokenSequence, build_tree, pack_rows


@contextmanager
def flex_everywhere() -> Iterator[None]:
    """On the CPU, too, passes without gradients go the way of a GPU; there this changes nothing."""
    usual = tree_attention.uses_flex

    def uses_flex(dtype: torch.dtype, device: torch.device) -> bool:
        return usual(dtype, device) or (device.type == "cpu" and not torch.is_grad_enabled())

    forward.uses_flex = tree_attention.uses_flex = uses_flex  # type: ignore[attr-defined]
    try:
        yield
    finally:
        forward.uses_flex = tree_attention.uses_flex = usual  # type: ignore[attr-defined]


def compare_families(families: Sequence[str]) -> dict[str, float]:
    """Largest differences between this device and the CPU in float32, and the share of generated tokens that differ."""
    worst: dict[str, float] = {}
    for family in families:
        model: Any = load_model(model_settings(f"tiny_{family}", "float32"), CACHE).model
        expected = observe(copy.deepcopy(model).cpu())
        with flex_everywhere():
            found = observe(model)
        for name, values in found.items():
            if name.startswith("tokens"):
                distance = float((values != expected[name]).float().mean())
                name = "tokens_other"
            else:
                scaling = expected[name].abs().max() if name in ("gradient", "states") else 1.0
                distance = float(((values - expected[name]).abs() / scaling).max())
            worst[name] = max(worst.get(name, 0.0), distance)
    return worst


def observe(model: Any) -> dict[str, Tensor]:
    """What a model computes, all kinds of it, on the CPU in the end."""
    draw = np.random.default_rng(0)
    trunk = draw.integers(0, 1000, 200)
    sequences = [np.concatenate([trunk[:cut], draw.integers(0, 1000, 60)]) for cut in (200, 200, 150, 90)]
    heads = torch.ones(model.config.num_hidden_layers, model.config.num_attention_heads, dtype=torch.bool)
    heads[1, 2:] = False
    tree, seen = build_tree(sequences), {}
    spans = [np.arange(5, 30), np.arange(40, 80)]
    probe = AttentionProbe([spans] * len(sequences))
    last = np.array([path[-2] for path in tree.paths])
    with torch.no_grad():
        seen["states"] = tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave)
        probe.watch_tree(tree, np.arange(len(last)), last, model.device)
        tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave, probe=probe)
        seen["probe"] = probe.result().mass
        for mode in MODES:
            boost = AttentionBoost(mode, 0.5, heads)
            marked = build_tree(mark(sequences, [BoostedSpan(spans[0], 85)] * len(sequences)))
            plain, steer = split_tree(marked, boost)
            states = tree_hidden_states(model, plain.input_ids, plain.position_ids, plain.leave, boost=steer)
            seen[f"boost_{mode}"] = states / states.abs().max()
        for name, sampling in (("greedy", Sampling(12)), ("drawn", Sampling(12, 0.8, 0.9))):
            replies = generate(model, sequences, frozenset(), sampling, range(len(sequences)))
            seen[f"tokens_{name}"] = torch.tensor(replies)
    engine = Engine(model, frozenset())
    written = [ReplyTask(ids, Sampling(8, 0.8, 0.9), number, no_repeat=3) for number, ids in enumerate(sequences)]
    scored = [ScoreTask(ids[:-8], [ids[-8:], ids[:5]], [0, 0]) for ids in sequences]
    for task in (*written, *scored):
        engine.add(task)
    while not engine.idle:
        engine.step()
    seen["tokens_engine"] = torch.tensor([task.reply for task in written])
    seen["engine_log_probs"] = torch.from_numpy(np.concatenate([part for task in scored for part in task.log_probs]))
    replies_of = [TokenSequence(ids, (ReplyTokens(n, 100, len(ids)),)) for n, ids in enumerate(sequences)]
    (row,) = pack_rows([replies_of], 4096)
    model.requires_grad_(True)
    values = reply_log_probs(model, row)
    (-values.mean()).backward()
    seen["log_probs"] = values.detach()
    gradients = [value.grad.flatten().cpu() for value in model.parameters() if value.grad is not None]
    seen["gradient"] = torch.cat(gradients)
    model.zero_grad()
    return {name: value.detach().cpu() for name, value in seen.items()}
