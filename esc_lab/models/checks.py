"""Checks of a model before it is used: token trees and the attention probe against its own forward, one sequence each.

Both run one small tree with two branches. Its trunk reaches past the sliding window where that is short enough to be
cheap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from esc_lab.errors import UserError
from esc_lab.models.attention_probe import AttentionProbe
from esc_lab.models.forward import base_model, head_logits, layer_types, layer_windows, tree_hidden_states
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.trie import TokenTree, build_tree

TAIL = 4  # tokens of each branch


@torch.no_grad()
def check_tree_attention(model: Any) -> None:
    """Compare the logits of the tree with those of its two sequences.

    Raises:
        UserError: they differ, so this model's attention cannot be used with token trees.
    """
    inner = base_model(model)
    tree, sequences = _fork(inner, shortest=8, longest=1024)
    states = tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave)
    difference, scale = 0.0, 1.0
    for sequence, path in zip(sequences, tree.paths, strict=True):
        ids = torch.from_numpy(sequence)[None].to(inner.device)
        expected = model(input_ids=ids, use_cache=False, logits_to_keep=TAIL).logits[0].float()
        logits = head_logits(inner, states[torch.from_numpy(path[-TAIL:]).to(inner.device)]).float()
        difference = max(difference, float((expected - logits).abs().max()))
        scale = max(scale, float(expected.abs().max()))
    limit = (1e-3 if inner.dtype == torch.float32 else 0.1) * scale
    _refuse_above(limit, difference, inner, "logits of a token tree differ from separate sequences")


@torch.no_grad()
def check_probe(model: Any) -> None:
    """Compare the probe on the tree with the eager attention of its two sequences.

    In float32 the largest difference counts. Below that, rounding adds up from layer to layer, to differences of 0.1 in
    the last ones of a fine-tuned model: there the mean of a span in the first layer of each kind counts.

    Raises:
        UserError: the masses differ, so attention cannot be measured on this model.
    """
    inner = base_model(model)
    tree, sequences = _fork(inner, shortest=12, longest=512)
    spans = np.array_split(np.arange(len(sequences[0]) - TAIL), 4)
    probe = AttentionProbe([spans, spans])
    probe.watch_tree(tree, np.repeat([0, 1], TAIL), np.concatenate([path[-TAIL:] for path in tree.paths]), inner.device)
    tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave, probe=probe)
    measured = probe.result()
    expected = _eager_masses(model, sequences, spans)
    difference = (torch.cat([measured.mass, measured.null[..., None]], dim=-1) - expected).abs()
    exact = inner.dtype == torch.float32
    if not exact:
        kinds = layer_types(inner)
        difference = difference[[kinds.index(kind) for kind in sorted(set(kinds))]].mean(dim=(1, 2))
    limit = 1e-3 if exact else 1e-2
    _refuse_above(limit, float(difference.max()), inner, "measured attention differs from the model's own")


def _fork(inner: Any, shortest: int, longest: int) -> tuple[TokenTree, list[IntArray]]:
    """The tree and its sequences of random tokens; `longest` window that the trunk reaches past, else it is short."""
    windows = [window for window in layer_windows(inner).values() if window and window <= longest]
    trunk = max(windows, default=shortest) + 4
    ids = np.random.default_rng(0).integers(0, inner.get_input_embeddings().weight.shape[0], trunk + 2 * TAIL)
    sequences = [ids[: trunk + TAIL], np.concatenate([ids[:trunk], ids[trunk + TAIL :]])]
    return build_tree(sequences), sequences


def _eager_masses(model: Any, sequences: list[IntArray], spans: list[IntArray]) -> Tensor:
    """Attention [layers, heads, rows, spans + 1] of the branches' tokens on each span and on the first token."""
    inner = base_model(model)
    usual = inner.config._attn_implementation
    inner.set_attn_implementation("eager")
    try:
        ids = torch.from_numpy(np.stack(sequences)).to(inner.device)
        layers = model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    finally:
        inner.set_attn_implementation(usual)
    weights = torch.stack([torch.cat([*layer[:, :, -TAIL:].float().cpu()], dim=1) for layer in layers])
    return torch.stack([*(weights[..., span].sum(dim=-1) for span in spans), weights[..., 0]], dim=-1)


def _refuse_above(limit: float, difference: float, inner: Any, message: str) -> None:
    if not difference <= limit:  # nan is refused too
        raise UserError(
            f"{message} by {difference:.2g} (allowed {limit:.2g})",
            where=f"model type {inner.config.model_type}",
            fix="this architecture is not supported; report it with its config.json",
        )
