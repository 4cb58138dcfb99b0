"""One forward pass of a model along token trees: final hidden states, and logits of those that predict a token.

Models whose layers differ in their window take masks as a dict by layer type: a bare mask would be used in all layers
alike. Those with the same window in all layers (Mistral, Phi 3) take a bare one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from esc_lab.errors import UserError
from esc_lab.models.attention_boost import BoostedPass
from esc_lab.models.block_masks import pad_row, uses_flex
from esc_lab.models.devices import move
from esc_lab.models.tree_attention import TreeMasks, tree_masks
from esc_lab.tokens.encode import IntArray


def base_model(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper (its layers carry the adapters), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """The model without dropout, afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def layer_types(model: Any) -> list[str]:
    """The kind of attention of each layer, `full_attention` or `sliding_attention`.

    A model that names no types (Mistral, Phi 3) has one for all layers: sliding if its configuration has a window.

    Raises:
        UserError: the model has layers of another type.
    """
    config = base_model(model).config.get_text_config()
    window = getattr(config, "sliding_window", None)
    usual = "full_attention" if window is None else "sliding_attention"
    types = list(getattr(config, "layer_types", None) or [usual] * config.num_hidden_layers)
    if unknown := set(types) - {"full_attention", "sliding_attention"}:
        raise UserError(f"no tree attention for layers of type {', '.join(sorted(unknown))}", where=config.model_type)
    return types


def layer_windows(model: Any) -> dict[str, int | None]:
    """Attention layer types of a model with their sliding window; raises what `layer_types` does."""
    config = base_model(model).config.get_text_config()
    return {
        kind: config.sliding_window if kind == "sliding_attention" else None for kind in sorted(set(layer_types(model)))
    }


def tree_hidden_states(
    model: Any,
    input_ids: IntArray,
    position_ids: IntArray,
    leave: IntArray,
    cache: Any = None,
    probe: Any = None,
    boost: BoostedPass | None = None,
) -> Tensor:
    """Final hidden states [T, hidden] of a token tree in one forward pass (not through the LM head).

    Args:
        probe: an `AttentionProbe` that watches this pass.
        boost: of attention in this pass.
    """
    inner, windows, length = base_model(model), set(layer_windows(model).values()), len(input_ids)
    padded = uses_flex(inner.dtype, inner.device) and cache is None and probe is None and boost is None
    if padded:  # caches, probes and boosts count the tokens of the tree
        input_ids, position_ids, leave = pad_row(input_ids, position_ids, leave)
    masks = tree_masks(leave, position_ids, windows, inner.dtype, inner.device)
    states = hidden_states(inner, input_ids, position_ids, masks, cache, probe, boost)
    return states[:length] if padded else states


def hidden_states(
    inner: Any,
    input_ids: IntArray,
    position_ids: IntArray,
    masks: TreeMasks,
    cache: Any = None,
    probe: Any = None,
    boost: BoostedPass | None = None,
) -> Tensor:
    """Final hidden states [T, hidden] of tokens that attend as the masks say."""
    device = inner.device
    # A 4-D tensor is passed on as it is, so that transformers does not make a mask that nobody reads.
    placeholder = torch.zeros(1, 1, 1, 1, device=device)
    named = getattr(inner.config.get_text_config(), "layer_types", None) or ()
    masks_by_type = dict.fromkeys(named, placeholder)
    output = inner.get_decoder()(
        input_ids=move(input_ids, device)[None],
        position_ids=move(position_ids, device)[None],
        past_key_values=cache,
        use_cache=cache is not None,
        attention_mask=masks_by_type if "sliding_attention" in named else placeholder,
        tree=masks,
        **({} if probe is None else {"probe": probe}),
        **({} if boost is None else {"boost": boost}),
    )
    states: Tensor = output.last_hidden_state[0]
    return states


def head_logits(inner: Any, states: Tensor) -> Tensor:
    """Logits [N, vocabulary] of hidden states [N, hidden], with the final soft-cap of Gemma 2."""
    logits: Tensor = inner.get_output_embeddings()(states)
    cap = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits
