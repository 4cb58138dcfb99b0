"""Log-probabilities of reply tokens in packed token trees, with the LM head on the rows that predict them only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from esc_lab.models.attention_boost import AttentionBoost, BoostedPass, split_row
from esc_lab.models.devices import move
from esc_lab.models.few_rows import FewRowsLinear
from esc_lab.models.forward import base_model, head_logits, tree_hidden_states
from esc_lab.models.sharded import call_gathered
from esc_lab.statistics.intervals import FloatArray
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.examples import ReplyTokens, TokenSequence
from esc_lab.tokens.packing import PackedRow, pack_units

# Logits computed at a time (rows x vocabulary): 64 MiB in float32. A GPU would read the head's weights too often.
CHUNK_LOGITS, CHUNK_LOGITS_GPU = 2**24, 2**27


def reply_log_probs(model: Any, row: PackedRow, boost: BoostedPass | None = None) -> Tensor:
    """Log-probability [N] (float32 or wider) of each reply token of a row, given everything before it on its path.

    The head runs on the distinct predicting nodes only, a chunk at a time; the backward pass computes a chunk's logits
    again, so those of the whole row never exist at once.
    """
    inner = base_model(model)

    def compute() -> Tensor:
        hidden = tree_hidden_states(model, row.input_ids, row.position_ids, row.leave, boost=boost)
        return token_log_probs(inner, hidden, row.query, row.target)

    return call_gathered(inner, compute)


def token_log_probs(inner: Any, hidden: Tensor, query: IntArray, target: IntArray) -> Tensor:
    """Log-probability [N] of token `target[n]` at the output of node `query[n]` of final states [T, hidden]."""
    device = hidden.device
    # Branches share their parent: in order, equal nodes are neighbours and their logits are computed once.
    order = np.argsort(query, kind="stable")
    nodes, index = np.unique(query[order], return_inverse=True)
    tokens = move(target[order], device)
    states = hidden[move(nodes, device)]
    head = inner.get_output_embeddings()
    cap = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)
    if type(head) in (torch.nn.Linear, FewRowsLinear) and head.bias is None:
        weight = head.weight
        if torch.is_autocast_enabled(device.type):
            # Autocast reaches the forward pass alone: the backward pass has to compute the same logits again.
            dtype = torch.get_autocast_dtype(device.type)
            states, weight = states.to(dtype), weight.to(dtype)
        apply: Any = _TokenLogProbs.apply
        values = apply(states, weight, index, tokens, cap)
    else:
        rows = _chunk_rows(head.weight)
        parts = []
        for start, first, last in _chunks(index, len(nodes), rows):
            arguments = (inner, states[start : start + rows], index[first:last] - start, tokens[first:last])
            parts.append(checkpoint(_direct, *arguments, use_reentrant=False))
        values = torch.cat(parts)
    return torch.empty_like(values).scatter(0, move(order, device), values)


def _chunk_rows(weight: Tensor) -> int:
    return max((CHUNK_LOGITS_GPU if weight.is_cuda else CHUNK_LOGITS) // len(weight), 1)


def _chunks(index: IntArray, nodes: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """First node and token range of each chunk of `rows` nodes; `index` [N], ascending, is the node of each token."""
    for start in range(0, nodes, rows):
        first, last = np.searchsorted(index, [start, start + rows])
        yield start, int(first), int(last)


def _direct(inner: Any, hidden: Tensor, index: IntArray, target: Tensor) -> Tensor:
    logits = _widened(head_logits(inner, hidden))
    node = move(index, hidden.device)
    return logits[node, target] - torch.logsumexp(logits, dim=-1)[node]


def _widened(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


class _TokenLogProbs(torch.autograd.Function):
    """`log_softmax(cap(hidden @ weight.T))[index, target]` without keeping logits for the backward pass.

    With p = softmax(l), d log p(t) / d l = onehot(t) - p; several tokens of one node add up.
    """

    @staticmethod
    def _logits(hidden: Tensor, weight: Tensor, cap: float | None) -> Tensor:
        logits = _widened(hidden @ weight.T)
        return logits.div_(cap).tanh_().mul_(cap) if cap else logits

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, index: IntArray, target: Tensor, cap: float | None) -> Tensor:
        rows, node = _chunk_rows(weight), move(index, hidden.device)
        parts, normalizers = [], []
        for start, first, last in _chunks(index, len(hidden), rows):
            logits = _TokenLogProbs._logits(hidden[start : start + rows], weight, cap)
            normalizers.append(torch.logsumexp(logits, dim=-1))
            at = node[first:last] - start
            parts.append(logits[at, target[first:last]] - normalizers[-1][at])
        ctx.save_for_backward(hidden, weight, target, torch.cat(normalizers))
        ctx.index, ctx.cap = index, cap
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        hidden, weight, target, normalizer = ctx.saved_tensors
        index, cap = ctx.index, ctx.cap
        rows, node = _chunk_rows(weight), move(index, hidden.device)
        per_node = torch.zeros_like(normalizer).index_add_(0, node, gradient)
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for start, first, last in _chunks(index, len(hidden), rows):
            part = hidden[start : start + rows]
            logits = _TokenLogProbs._logits(part, weight, cap)
            slope = 1 - (logits / cap) ** 2 if cap else None
            change = logits.sub_(normalizer[start : start + rows, None]).exp_()
            change.mul_(-per_node[start : start + rows, None])
            change.index_put_((node[first:last] - start, target[first:last]), gradient[first:last], accumulate=True)
            if slope is not None:
                change.mul_(slope)
            narrow = change.to(weight.dtype)
            hidden_gradient[start : start + rows] = narrow @ weight
            if weight_gradient is not None:
                weight_gradient += narrow.T @ part
        return hidden_gradient, weight_gradient, None, None, None


@torch.no_grad()
def score_rows(
    model: Any, rows: Iterable[PackedRow], boost: AttentionBoost | None = None
) -> Iterator[tuple[Any, FloatArray]]:
    """The key of every reply in the rows with the log-probabilities [tokens] of its tokens, in float64.

    Args:
        boost: of attention on the tokens that are marked in the rows (see `attention_boost.mark`).
    """
    for row in rows:
        plain, steer = split_row(row, boost)
        values = reply_log_probs(model, plain, steer).double().cpu().numpy()
        for number, keys in enumerate(row.keys):
            tokens = values[row.reply == number]
            yield from ((key, tokens) for key in keys)


def label_log_probs(model: Any, prompts: Sequence[IntArray], labels: Sequence[IntArray], row_tokens: int) -> FloatArray:
    """Log-probability [prompts, labels] of each complete label after each prompt, all given as token ids.

    Args:
        row_tokens: budget of a packed row; a prompt with all labels has to fit.
    """
    units = [
        [join_reply(prompt, label, (n, choice)) for choice, label in enumerate(labels)]
        for n, prompt in enumerate(prompts)
    ]
    scores = np.full((len(prompts), len(labels)), np.nan)
    for key, tokens in score_rows(model, pack_units(units, row_tokens)):
        scores[key] = tokens.sum()
    return scores


def join_reply(prompt: IntArray, reply: IntArray, key: Any) -> TokenSequence:
    """Prompt and reply as a sequence whose end is the reply."""
    ids = np.concatenate([prompt, reply])
    return TokenSequence(ids, (ReplyTokens(key, len(prompt), len(ids)),))
