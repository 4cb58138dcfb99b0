"""How much attention chosen queries give to spans of their sequence, measured while a fast kernel computes the output.

The kernels return no attention weights. The probe computes them again from the queries and keys of a layer, for the
probed rows only, sums them over the spans at once, and keeps the sums. A probed row is a query that predicts a token of
a reply. Whatever the layout of the pass (token tree, key-value cache of growing branches, padded batch), the keys that
a row sees under full attention are, in order, its own sequence: spans are given as positions in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esc_lab.errors import UserError
from esc_lab.models.tree_attention import base_model, layer_windows, tree_arguments
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.packing import PackedRow
from esc_lab.tokens.trie import TokenTree, build_tree

# Attention weights computed at a time (heads x rows x keys): 64 MiB in float32.
CHUNK_WEIGHTS = 2**24


@dataclass(frozen=True)
class SpanAttention:
    """Attention of the probed rows on their spans, on the CPU. Rows are ordered by branch, then as they were watched.

    Attributes:
        mass: [layers, heads, rows, spans] attention summed over each span.
        null: [layers, heads, rows] attention on the first token of the row's own sequence.
        visible: [layers, rows] number of keys that the row sees in the layer, the row's own included.
        length: [rows, spans] number of tokens of each span.
        holds_null: [rows, spans] whether the span contains the first token of the sequence.
        branch: [rows] branch (reply) that the row belongs to.
        tokens: for each row, the mean over layers and heads of its attention on each token of its own sequence up to
            itself; None unless the probe keeps tokens.
    """

    mass: Tensor
    null: Tensor
    visible: Tensor
    length: Tensor
    holds_null: Tensor
    branch: Tensor
    tokens: tuple[Tensor, ...] | None


def paper_attention(found: SpanAttention) -> Tensor:
    """SRA of each row as the paper defines it: [rows, spans], float64; nan for an empty span.

    Eq. 5 of arXiv 2402.10453 before its mean over response tokens: attention averaged over layers and heads, then over
    the tokens of the span.
    """
    return found.mass.double().mean(dim=(0, 1)) / found.length


def reference_attention(found: SpanAttention) -> Tensor:
    """SRA of each row as the paper's published code computes it: [rows, spans], float64; nan for an empty span.

    In each layer the heads' mean row loses its first entry (null attention) and is scaled to sum 1; then the mean over
    layers and the tokens of the span. A row that sees nothing but the first token counts as zero.
    """
    null = found.null.double()
    mass = (found.mass.double() - null[..., None] * found.holds_null).mean(dim=1)
    rest = 1 - null.mean(dim=1)[..., None]
    return torch.where(rest > 0, mass / rest, 0.0).mean(dim=0) / found.length


class AttentionProbe:
    """Watches rows of one or more forward passes: `watch` the rows, run the model with `probe=` this, read `result`.

    Args:
        spans: for each branch its spans, each the positions of its tokens in the branch's own sequence. All branches
            have the same number of spans; an empty one has mass 0.
        keep_tokens: also keep the mean attention on each token of the row's sequence.

    Raises:
        ValueError: branches with different numbers of spans.
    """

    def __init__(self, spans: Sequence[Sequence[IntArray]], *, keep_tokens: bool = False) -> None:
        counts = {len(own) for own in spans}
        if len(counts) != 1:
            raise ValueError(f"every branch needs the same number of spans, found {sorted(counts)}")
        # The null token is one more span, the last. Unused places belong to no span.
        width = max(sum(map(len, own)) for own in spans) + 1
        self._position = torch.zeros(len(spans), width, dtype=torch.int64)
        self._member = torch.zeros(len(spans), width, counts.pop() + 1)
        for branch, own in enumerate(spans):
            start = 0
            for name, span in enumerate([*own, np.zeros(1, dtype=np.int64)]):
                self._position[branch, start : start + len(span)] = torch.as_tensor(span)
                self._member[branch, start : start + len(span), name] = 1.0
                start += len(span)
        self.keep_tokens = keep_tokens
        self._passes: list[_Pass] = []

    def watch(
        self, visible: Tensor, branch: Sequence[int], query: Sequence[int], batch: Sequence[int] | None = None
    ) -> None:
        """Announce the rows of the next forward pass.

        Args:
            visible: [rows, keys] booleans, the keys that each row sees under full attention, itself the last; in a
                padded batch `padding[batch] & (arange(keys) <= query[:, None])`. Sliding windows follow from it.
            branch: [rows] index into `spans`.
            query: [rows] index of the row among the queries of the pass.
            batch: [rows] batch entry of the row; all 0 by default.

        Raises:
            ValueError: a span reaches past the row that is to attend to it.
        """
        own = torch.as_tensor(branch, dtype=torch.int64)
        rank = visible.cumsum(dim=1)
        index = torch.searchsorted(rank, self._position[own].to(visible.device) + 1)
        if len(own) and int(index.max()) >= visible.shape[1]:
            raise ValueError("a span reaches past a probed row of its branch")
        if self._passes:
            self._passes[-1].release()
        places = torch.as_tensor(query, dtype=torch.int64, device=visible.device)
        tokens = torch.zeros(visible.shape, device=visible.device) if self.keep_tokens else None
        layout = (rank[:, -1:] - rank, index, self._member[own].to(visible.device))
        self._passes.append(_Pass(own, places, batch, torch.arange(len(own)), {None: visible}, *layout, tokens))

    def keep(self, rows: Sequence[int]) -> None:
        """Of the last pass keep these rows only (those that predicted a stop token belong to no reply token)."""
        self._passes[-1].kept = torch.as_tensor(rows, dtype=torch.int64)

    @torch.no_grad()
    def observe(
        self, module: Any, query: Tensor, key: Tensor, scaling: float | None, softcap: float | None, window: int | None
    ) -> None:
        """Called by the attention function in each layer. Raises ValueError if the pass is not the one announced."""
        now = self._passes[-1] if self._passes else None
        if now is None or module.layer_idx in now.sums:
            raise ValueError("each forward pass with a probe needs a call of watch before it")
        if key.shape[2] != now.distance.shape[1]:
            raise ValueError(f"{key.shape[2]} keys in layer {module.layer_idx}, {now.distance.shape[1]} were announced")
        if len(query) > 1 and now.batch is None:
            raise ValueError(f"a batch of {len(query)} needs the batch entry of each probed row")
        allowed = now.allowed(window)
        heads = query.shape[1]
        sums = torch.zeros(len(allowed), heads, now.member.shape[2], device=query.device)
        for entry, rows in now.parts(max(CHUNK_WEIGHTS // (heads * key.shape[2]), 1)):
            weights = _weights(query[entry][:, now.query[rows]], key[entry], allowed[rows], scaling, softcap)
            picked = weights.gather(2, now.index[rows].expand(heads, -1, -1))
            sums[rows] = picked.transpose(0, 1) @ now.member[rows]
            if now.tokens is not None:
                now.tokens[rows] += weights.mean(dim=0)
        now.sums[module.layer_idx] = sums
        now.counts[module.layer_idx] = allowed.sum(dim=1)

    def result(self) -> SpanAttention:
        """What was measured in all passes so far. Raises ValueError if a pass was announced and not observed."""
        passes = self._passes
        if not passes or not passes[0].sums or any(now.sums.keys() != passes[0].sums.keys() for now in passes):
            raise ValueError("no attention was observed: run the model with probe= and token_tree attention")
        branch, order = torch.cat([now.branch[now.kept] for now in passes]).sort(stable=True)
        sums = torch.cat([now.stacked(now.sums) for now in passes], dim=1)[:, order].transpose(1, 2)
        rows = [row for now in passes for row in now.token_rows()]
        member = self._member[branch][..., :-1]
        first = self._position[branch][..., None] == 0
        return SpanAttention(
            mass=sums[..., :-1],
            null=sums[..., -1],
            visible=torch.cat([now.stacked(now.counts) for now in passes], dim=1)[:, order],
            length=member.sum(dim=1).long(),
            holds_null=(member * first).sum(dim=1) > 0,
            branch=branch,
            tokens=tuple(rows[row] for row in order.tolist()) if self.keep_tokens else None,
        )


@dataclass
class _Pass:
    """The probed rows [R] of one forward pass, and what was found of them in each layer."""

    branch: Tensor
    query: Tensor
    batch: Sequence[int] | None
    kept: Tensor  # rows that count
    by_window: dict[int | None, Tensor]  # [R, keys] visible keys; None = full attention
    distance: Tensor  # [R, keys] of a key from the row, in tokens of the row's sequence
    index: Tensor  # [R, L] keys of all spans
    member: Tensor  # [R, L, spans + 1] span of each
    tokens: Tensor | None  # [R, keys] attention summed over layers
    sums: dict[int, Tensor] = field(default_factory=dict)  # [R, heads, spans + 1]
    counts: dict[int, Tensor] = field(default_factory=dict)  # [R]

    def allowed(self, window: int | None) -> Tensor:
        """[R, keys] which keys a row sees in a layer with this window; made once for all its layers."""
        if window is not None and window not in self.by_window:
            self.by_window[window] = self.by_window[None] & (self.distance < window)
        return self.by_window[window]

    def parts(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """Batch entry and row numbers of at most `size` rows at a time."""
        entries = torch.tensor(self.batch or [0] * len(self.query))
        for entry in entries.unique().tolist():
            for part in (entries == entry).nonzero()[:, 0].to(self.query.device).split(size):
                yield entry, part

    def release(self) -> None:
        """Drop what only `observe` needs."""
        self.by_window = {None: self.by_window[None]}
        self.distance = self.index = self.member = torch.empty(0)

    def stacked(self, by_layer: dict[int, Tensor]) -> Tensor:
        return torch.stack([by_layer[layer] for layer in sorted(by_layer)]).cpu()[:, self.kept]

    def token_rows(self) -> list[Tensor]:
        if self.tokens is None:
            return []
        tokens, visible = self.tokens.cpu() / len(self.sums), self.by_window[None].cpu()
        return [tokens[row][visible[row]] for row in self.kept.tolist()]


def _weights(query: Tensor, key: Tensor, allowed: Tensor, scaling: float | None, softcap: float | None) -> Tensor:
    """Attention weights [heads, R, keys] in float32 of queries [heads, R, dim] on keys [key-value heads, keys, dim].

    `allowed` is [R, keys]; query heads that share a key-value head are laid out as more rows.
    """
    heads, rows, dim = query.shape
    folded = query.reshape(len(key), -1, dim).float()
    scores = (folded @ key.float().transpose(1, 2)).mul_(dim**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    return scores.view(heads, rows, -1).masked_fill_(~allowed, -torch.inf).softmax(dim=-1)


def probed_hidden_states(
    model: Any, tree: TokenTree | PackedRow, probe: AttentionProbe, branch: IntArray, query: IntArray, cache: Any = None
) -> Tensor:
    """`tree_hidden_states` with a probe: final hidden states [T, hidden] of a token tree or packed row.

    Args:
        branch, query: [rows] branch and node of each probed row; of a packed row, `row.reply` and `row.query`.
    """
    inner = base_model(model)
    device = inner.device
    visible = (np.arange(len(tree)) <= query[:, None]) & (query[:, None] < tree.leave)
    probe.watch(torch.from_numpy(visible).to(device), branch.tolist(), query.tolist())
    output = inner.get_decoder()(
        input_ids=torch.from_numpy(tree.input_ids).to(device)[None],
        position_ids=torch.from_numpy(tree.position_ids).to(device)[None],
        past_key_values=cache,
        use_cache=cache is not None,
        probe=probe,
        **tree_arguments(model, tree.leave, tree.position_ids),
    )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


@torch.no_grad()
def check_probe(model: Any) -> None:
    """Compare the probe on a two-branch tree with the eager attention of its two sequences, run separately.

    The trunk reaches past the sliding window where that is short enough to be cheap (up to 512 tokens). In float32
    the largest difference counts; below that, where rounding adds up, the mean of a layer and span.

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
    probed_hidden_states(model, tree, probe, np.repeat(np.arange(2), 4), query)
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
    worst = float((difference if exact else difference.mean(dim=(1, 2))).max())
    limit = 1e-3 if exact else 2e-2
    if not worst <= limit:
        raise UserError(
            f"measured attention differs from the model's own by {worst:.2g} (allowed {limit:.2g})",
            where=f"model type {inner.config.model_type}",
            fix="this architecture is not supported; report it with its config.json",
        )
