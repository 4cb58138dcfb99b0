"""Whether a probe measures a model's attention right: one small tree against the model's own eager attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from esc_lab.errors import UserError
from esc_lab.models.attention_probe import AttentionProbe
from esc_lab.models.log_probs import tree_hidden_states
from esc_lab.models.tree_attention import base_model, layer_windows
from esc_lab.tokens.trie import build_tree


@torch.no_grad()
def check_probe(model: Any) -> None:
    """Compare the probe on a two-branch tree with the eager attention of its two sequences, run separately.

    The trunk reaches past the sliding window where that is short enough to be cheap (up to 512 tokens). In float32
    the largest difference counts. Below that, rounding adds up from layer to layer, to differences of 0.1 in the last
    ones of a fine-tuned model: there the mean of a span in the first layer of each kind counts.

    Raises:
        UserError: the masses differ, so attention cannot be measured on this model.
    """
    inner = base_model(model)
    trunk = max([window for window in layer_windows(model).values() if window and window <= 512], default=12) + 4
    draw = np.random.default_rng(0).integers(0, inner.get_input_embeddings().weight.shape[0], trunk + 8)
    sequences = [draw[: trunk + 4], np.concatenate([draw[:trunk], draw[trunk + 4 :]])]
    tree = build_tree(sequences)
    spans = np.array_split(np.arange(trunk), 4)
    probe = AttentionProbe([spans, spans])
    query = np.concatenate([path[-4:] for path in tree.paths])
    probe.watch_tree(tree, np.repeat(np.arange(2), 4), query, inner.device)
    tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave, probe=probe)
    usual = inner.config._attn_implementation
    inner.set_attn_implementation("eager")
    try:
        ids = torch.from_numpy(np.stack(sequences)).to(inner.device)
        eager = model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    finally:
        inner.set_attn_implementation(usual)
    weights = torch.stack([torch.cat([*layer[:, :, -4:].float().cpu()], dim=1) for layer in eager])
    expected = torch.stack([*(weights[..., span].sum(dim=-1) for span in spans), weights[..., 0]], dim=-1)
    found = probe.result()
    difference = (torch.cat([found.mass, found.null[..., None]], dim=-1) - expected).abs()
    exact = inner.dtype == torch.float32
    worst = float((difference if exact else difference[_first_layers(inner)].mean(dim=(1, 2))).max())
    limit = 1e-3 if exact else 1e-2
    if not worst <= limit:
        raise UserError(
            f"measured attention differs from the model's own by {worst:.2g} (allowed {limit:.2g})",
            where=f"model type {inner.config.model_type}",
            fix="this architecture is not supported; report it with its config.json",
        )


def _first_layers(inner: Any) -> list[int]:
    """The first layer of each kind: full attention, sliding window."""
    kinds = getattr(inner.config.get_text_config(), "layer_types", None) or ["full_attention"]
    return [kinds.index(kind) for kind in sorted(set(kinds))]
