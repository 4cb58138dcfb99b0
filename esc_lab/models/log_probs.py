"""Log-probabilities of reply tokens in packed token trees, with the LM head on the rows that predict them only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from esc_lab.models.tree_mask import base_model, tree_attention_mask
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.packing import PackedRow

# Logits computed at a time (rows x vocabulary): 256 MiB in float32.
CHUNK_LOGITS = 2**26


def tree_hidden_states(
    model: Any, input_ids: IntArray, position_ids: IntArray, leave: IntArray, cache: Any = None
) -> Tensor:
    """Final hidden states [T, hidden] of a token tree in one forward pass (not through the LM head)."""
    inner = base_model(model)
    device = inner.device
    ids, positions, ends = (torch.from_numpy(array).to(device) for array in (input_ids, position_ids, leave))
    plain = cache is None and bool((leave == len(leave)).all())
    mask = None if plain else tree_attention_mask(model, ends, positions)
    output = inner.get_decoder()(
        input_ids=ids[None],
        position_ids=positions[None],
        attention_mask=mask,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


def head_logits(inner: Any, hidden: Tensor) -> Tensor:
    """Logits [N, vocabulary] of hidden states [N, hidden], with the final soft-cap of Gemma 2."""
    logits: Tensor = inner.get_output_embeddings()(hidden)
    cap = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def reply_log_probs(model: Any, row: PackedRow) -> Tensor:
    """Log-probability [N] (float32) of each reply token of a row, given everything before it on its path.

    The head runs on the distinct predicting nodes only, a chunk at a time; with gradients, logits of all but one chunk
    are recomputed in the backward pass, so those of the whole row never exist at once.
    """
    inner = base_model(model)
    hidden = tree_hidden_states(model, row.input_ids, row.position_ids, row.leave)
    device = hidden.device
    query, target = torch.from_numpy(row.query).to(device), torch.from_numpy(row.target).to(device)
    rows = max(CHUNK_LOGITS // inner.get_output_embeddings().weight.shape[0], 1)
    # Branches share their parent: nodes in order, so that equal ones are neighbours and share a chunk's logits.
    order = torch.argsort(query, stable=True)
    parts = []
    for chunk in order.split(rows):
        nodes, index = torch.unique_consecutive(query[chunk], return_inverse=True)
        arguments = (inner, hidden[nodes], index, target[chunk])
        if torch.is_grad_enabled() and len(order) > rows:
            parts.append(checkpoint(_token_log_probs, *arguments, use_reentrant=False))
        else:
            parts.append(_token_log_probs(*arguments))
    result = torch.empty(len(order), dtype=torch.float32, device=device)
    return result.scatter(0, order, torch.cat(parts)) if parts else result


def _token_log_probs(inner: Any, hidden: Tensor, index: Tensor, target: Tensor) -> Tensor:
    logits = head_logits(inner, hidden).float()
    return logits[index, target] - torch.logsumexp(logits, dim=-1)[index]


def reply_sums(values: Tensor, row: PackedRow) -> Tensor:
    """Sum of token values [N] for each reply of the row: [replies]."""
    reply = torch.from_numpy(row.reply).to(values.device)
    return torch.zeros(len(row.keys), dtype=values.dtype, device=values.device).index_add(0, reply, values)
