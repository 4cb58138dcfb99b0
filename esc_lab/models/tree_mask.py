"""The attention mask of a token tree, in the form that each model family needs.

Token i attends to token j iff `enter[j] <= enter[i] < leave[j]` and, in a sliding-window layer,
`position[i] - position[j] < window`. On the CPU the mask is a dense additive float tensor (a boolean one is silently
wrong under eager attention); with FlexAttention it is a block mask. Models with sliding-window layers take a dict by
layer type: a bare mask would be used in all layers alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from esc_lab.errors import UserError
from esc_lab.tokens.trie import build_tree

Mask = Any  # Tensor | BlockMask | dict[str, Tensor | BlockMask] | None


def base_model(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper (its layers carry the adapters), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def layer_windows(model: Any) -> dict[str, int | None]:
    """Attention layer types of a model with their sliding window; only `full_attention` where it names no types."""
    config = base_model(model).config.get_text_config()
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    unknown = types - {"full_attention", "sliding_attention"}
    if unknown:
        raise UserError(f"no tree attention for layers of type {', '.join(sorted(unknown))}", where=config.model_type)
    return {kind: config.sliding_window if kind == "sliding_attention" else None for kind in sorted(types)}


def tree_attention_mask(model: Any, leave: Tensor, position: Tensor) -> Mask:
    """Mask for a packed row of T tokens, as the model's forward takes it.

    Args:
        leave: [T] one past the last node of each node's subtree.
        position: [T] position of each token in its own sequence.

    Returns:
        A float tensor [1, 1, T, T] with 0 where attention is allowed and the dtype's minimum elsewhere, or a BlockMask;
        a dict of these by layer type for models with sliding-window layers.
    """
    windows = layer_windows(model)
    inner = base_model(model)
    if inner.config._attn_implementation == "flex_attention":
        masks = {kind: _block_mask(leave, position, window) for kind, window in windows.items()}
    else:
        allowed = _allowed(leave)
        masks = {
            kind: additive(allowed if window is None else allowed & _near(position, position, window), inner.dtype)
            for kind, window in windows.items()
        }
    return masks if "sliding_attention" in windows else masks["full_attention"]


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """[Q, K] booleans as an additive float mask [1, 1, Q, K]."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[None, None]


def _allowed(leave: Tensor) -> Tensor:
    node = torch.arange(len(leave), device=leave.device)
    return (node[None, :] <= node[:, None]) & (node[:, None] < leave[None, :])


def _near(query: Tensor, key: Tensor, window: int) -> Tensor:
    return query[:, None] - key[None, :] < window


def _block_mask(leave: Tensor, position: Tensor, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (query < leave[key])
        return seen if window is None else seen & (position[query] - position[key] < window)

    length = len(leave)
    return create_block_mask(allowed, None, None, length, length, device=str(leave.device))


def check_tree_attention(model: Any) -> None:
    """Compare one two-branch tree with its two sequences, run separately; the model's own logits are the reference.

    The trunk reaches past the sliding window where that is short enough to be cheap (up to 1,024 tokens).

    Raises:
        UserError: the logits differ, so this model's attention cannot be used with token trees.
    """
    from esc_lab.models.log_probs import head_logits, tree_hidden_states

    inner = base_model(model)
    windows = [window for window in layer_windows(model).values() if window]
    trunk = max([window for window in windows if window <= 1024], default=8) + 4
    vocabulary = inner.get_input_embeddings().weight.shape[0]
    generator = np.random.default_rng(0)
    draw = generator.integers(0, vocabulary, trunk + 8)
    sequences = [draw[: trunk + 4], np.concatenate([draw[:trunk], draw[trunk + 4 :]])]
    tree = build_tree(sequences)
    device = inner.device
    with torch.no_grad():
        hidden = tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave)
        worst, scale = 0.0, 0.0
        for sequence, path in zip(sequences, tree.paths, strict=True):
            ids = torch.from_numpy(sequence)[None].to(device)
            expected = model(input_ids=ids, use_cache=False, logits_to_keep=4).logits[0].float()
            found = head_logits(inner, hidden[torch.from_numpy(path[-4:]).to(device)]).float()
            worst = max(worst, float((expected - found).abs().max()))
            scale = max(scale, float(expected.abs().max()))
    limit = (1e-3 if inner.dtype == torch.float32 else 0.1) * max(scale, 1.0)
    if not worst <= limit:
        raise UserError(
            f"logits of a token tree differ from separate sequences by {worst:.2g} (allowed {limit:.2g})",
            where=f"model type {inner.config.model_type}",
            fix="this architecture is not supported; report it with its config.json",
        )
