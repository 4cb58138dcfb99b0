"""How much attention chosen queries give to spans of their sequence.

The fast kernels that compute the output return no attention weights. The probe computes them again from the queries and
keys of a layer, for the probed rows only, and keeps their sums over the spans. A probed row is a query that predicts a
token of a reply. Whatever the layout of the pass (token tree, key-value cache of branches that get longer, padded
batch), the keys that a row sees under full attention are, in order, its own sequence: spans are positions in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esc_lab.models.attention_boost import BoostedPass, LayerBoost
from esc_lab.models.span_attention import SpanAttention, join_attention
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.packing import PackedRow
from esc_lab.tokens.trie import TokenTree

# Attention weights computed at a time (heads x rows x keys): 16 MiB in float32.
CHUNK_WEIGHTS = 2**22

_NOT_OBSERVED = "no attention was observed: run the model with probe= and token_tree attention"


class AttentionProbe:
    """Watches rows of one or more forward passes: `watch` the rows, run the model with `probe=` this, read `result`.

    Args:
        spans: for each branch its spans, equally many, each the positions of its tokens; an empty one has mass 0.
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
            for number, span in enumerate([*own, np.zeros(1, dtype=np.int64)]):
                self._position[branch, start : start + len(span)] = torch.as_tensor(span)
                self._member[branch, start : start + len(span), number] = 1.0
                start += len(span)
        self._keep_tokens = keep_tokens
        self._parts: list[SpanAttention] = []
        self._passes: list[_Pass] = []  # the last one, or all since the cache began
        self._layers: dict[int, _Layer] = {}  # of the cached passes

    def watch(
        self,
        visible: Tensor,
        branch: Sequence[int],
        query: Sequence[int],
        *,
        batch: Sequence[int] | None = None,
        cached: bool = False,
    ) -> None:
        """Announce the rows of the next forward pass.

        Args:
            visible: [rows, keys] booleans, the keys that each row sees under full attention, itself the last; in a
                padded batch `padding[batch] & (arange(keys) <= query[:, None])`. Sliding windows follow from it.
            branch: [rows] index into `spans`.
            query: [rows] index of the row among the queries of the pass.
            batch: [rows] batch entry of the row; all 0 by default.
            cached: the keys of this pass stay in front of those of the next one (a key-value cache). Its rows are
                measured together with those of the passes that follow, in `settle`: a pass costs next to nothing then.

        Raises:
            ValueError: a span reaches past the row that is to attend to it.
        """
        if not (cached and self._layers):
            self.settle()
        own = torch.as_tensor(branch, dtype=torch.int64)
        if bool((visible.sum(dim=1).cpu() <= self._position[own].amax(dim=1)).any()):
            raise ValueError("a span reaches past a probed row of its branch")
        places = torch.as_tensor(query, dtype=torch.int64, device=visible.device)
        rows = None if cached else self._rows(own, visible)
        self._passes.append(_Pass(own, visible, places, batch, rows, torch.arange(len(own))))

    def watch_tree(
        self, tree: TokenTree | PackedRow, branch: IntArray, query: IntArray, device: Any, *, cached: bool = False
    ) -> None:
        """Announce a pass over a token tree or packed row.

        Args:
            branch, query: [rows] branch and node of each probed row; of a packed row, `row.reply` and `row.query`.
        """
        visible = (np.arange(len(tree)) <= query[:, None]) & (query[:, None] < tree.leave)
        self.watch(torch.from_numpy(visible).to(device), branch.tolist(), query.tolist(), cached=cached)

    def keep(self, rows: Sequence[int]) -> None:
        """Of the last pass, a cached one, keep these rows only (those that predicted a stop token are of no reply)."""
        self._passes[-1].kept = torch.as_tensor(rows, dtype=torch.int64)

    @torch.no_grad()
    def observe(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        scaling: float | None,
        softcap: float | None,
        window: int | None,
        boost: BoostedPass | None = None,
    ) -> None:
        """Called by the attention function in each layer. Raises ValueError if the pass is not the one announced."""
        now = self._passes[-1] if self._passes else None
        number = module.layer_idx
        if now is None or number in now.queries:
            raise ValueError("each forward pass with a probe needs a call of watch before it")
        if key.shape[2] != now.visible.shape[1]:
            raise ValueError(f"{key.shape[2]} keys in layer {number}, {now.visible.shape[1]} were announced")
        if len(query) > 1 and now.batch is None:
            raise ValueError(f"a batch of {len(query)} needs the batch entry of each probed row")
        steer = None if boost is None else boost.in_layer(number, query)
        if now.rows is None:
            now.queries[number] = query[0].index_select(1, now.query)
            now.boosted = _boosted_rows(boost, 0, now.query)
            self._layers[number] = _Layer(key[0], scaling, softcap, window, _boosted_keys(steer, 0, key))
            return
        now.queries[number] = query.new_empty(0)
        entries = torch.tensor(now.batch or [0] * len(now.branch))
        for entry in entries.unique().tolist():
            rows = (entries == entry).nonzero()[:, 0].to(query.device)
            states = query[entry].index_select(1, now.query[rows])
            layer = _Layer(key[entry], scaling, softcap, window, _boosted_keys(steer, entry, key))
            now.rows.measure(number, states, layer, _boosted_rows(boost, entry, now.query[rows]), rows)

    @torch.no_grad()
    def settle(self) -> None:
        """Measure what passes with a cache have put off, and let go of their keys."""
        passes, self._passes = self._passes, []
        layers, self._layers = self._layers, {}
        if any(not now.queries or now.queries.keys() != passes[0].queries.keys() for now in passes):
            raise ValueError(_NOT_OBSERVED)
        self._parts += [now.rows.result() for now in passes if now.rows is not None]
        if layers:
            keys = passes[-1].visible.shape[1]
            kept = [now.kept.to(now.visible.device) for now in passes]
            visible = [now.visible[own] for now, own in zip(passes, kept, strict=True)]
            padded = [torch.nn.functional.pad(part, (0, keys - part.shape[1])) for part in visible]
            rows = self._rows(torch.cat([now.branch[now.kept] for now in passes]), torch.cat(padded))
            boosted = torch.cat([now.boosted[own] for now, own in zip(passes, kept, strict=True)])
            for number, layer in layers.items():
                queries = [now.queries[number].index_select(1, own) for now, own in zip(passes, kept, strict=True)]
                rows.measure(number, torch.cat(queries, dim=1), layer, boosted)
            self._parts.append(rows.result())

    def result(self) -> SpanAttention:
        """What was measured in all passes so far. Raises ValueError if a pass was announced and not observed."""
        self.settle()
        if not self._parts:
            raise ValueError(_NOT_OBSERVED)
        return join_attention(self._parts)

    def _rows(self, branch: Tensor, visible: Tensor) -> _Rows:
        rank = visible.cumsum(dim=1)
        position, device = self._position[branch], visible.device
        index = torch.searchsorted(rank, position.to(device) + 1)
        tokens = torch.zeros(visible.shape, device=device) if self._keep_tokens else None
        return _Rows(branch, position, self._member[branch], index, {None: visible}, rank[:, -1:] - rank, tokens)


def _boosted_rows(boost: BoostedPass | None, entry: int, query: Tensor) -> Tensor:
    """Which of the queries [R] of a batch entry are boosted."""
    if boost is None:
        return torch.zeros(len(query), dtype=torch.bool, device=query.device)
    return torch.from_numpy(boost.queries[entry]).to(query.device)[query]


def _boosted_keys(steer: LayerBoost | None, entry: int, key: Tensor) -> tuple[LayerBoost, Tensor] | None:
    """A layer's boost with its keys [K]."""
    return None if steer is None else (steer, torch.from_numpy(steer.of.keys[entry, : key.shape[2]]).to(key.device))


@dataclass
class _Pass:
    """A forward pass with probed rows [R], announced by `watch`."""

    branch: Tensor
    visible: Tensor
    query: Tensor
    batch: Sequence[int] | None
    rows: _Rows | None  # None of a cached pass
    kept: Tensor  # rows that count
    queries: dict[int, Tensor] = field(default_factory=dict)  # layer -> [heads, R, dim] still to be measured, or empty
    boosted: Tensor = field(default_factory=lambda: torch.empty(0))  # [R] of a cached pass: whose attention is boosted


@dataclass(frozen=True)
class _Layer:
    """Keys [key-value heads, keys, dim] of a layer and how it attends."""

    key: Tensor
    scaling: float | None
    softcap: float | None
    window: int | None
    boost: tuple[LayerBoost, Tensor] | None  # with its keys, [keys]

    def weights(self, query: Tensor, allowed: Tensor, boosted: Tensor) -> Tensor:
        """Attention weights [heads, R, keys] in float32 of queries [heads, R, dim]; `allowed` is [R, keys].

        Query heads that share a key-value head are laid out as more rows. `boosted` [R] are the rows of the boost.
        """
        heads, _, dim = query.shape
        folded = query.reshape(len(self.key), -1, dim).float()
        scores = (folded @ self.key.transpose(1, 2)).mul_(dim**-0.5 if self.scaling is None else self.scaling)
        if self.softcap is not None:
            scores.div_(self.softcap).tanh_().mul_(self.softcap)
        scores = scores.view(heads, *allowed.shape).masked_fill_(~allowed, -torch.inf)
        if self.boost is None:
            return scores.softmax(dim=-1)
        steer, keys = self.boost
        chosen = steer.in_heads((allowed & keys & boosted[:, None])[None])
        boost = steer.of.boost
        return boost.raise_share(boost.shift(scores, chosen).softmax(dim=-1), chosen)


@dataclass
class _Rows:
    """Rows [R] that are measured together, and their sums in each layer so far."""

    branch: Tensor
    position: Tensor  # [R, L] position of the tokens of all spans
    member: Tensor  # [R, L, spans + 1] span of each
    index: Tensor  # [R, L] its key
    visible: dict[int | None, Tensor]  # [R, keys] visible keys by sliding window; None = full attention
    distance: Tensor  # [R, keys] of a key from the row, in tokens of the row's sequence
    tokens: Tensor | None  # [R, keys] attention summed over layers
    sums: dict[int, Tensor] = field(default_factory=dict)  # [R, heads, spans + 1]
    counts: dict[int, Tensor] = field(default_factory=dict)  # [R]

    def measure(self, number: int, query: Tensor, layer: _Layer, boosted: Tensor, rows: Tensor | None = None) -> None:
        """Add a layer: queries [heads, rows, dim] of all rows, or of those given; `boosted` [rows] are in a boost."""
        window, heads, device = layer.window, len(query), query.device
        layer = replace(layer, key=layer.key.float())
        if window not in self.visible:
            assert window is not None
            self.visible[window] = self.visible[None] & (self.distance < window)
        visible, member = self.visible[window], self.member.to(device)
        if number not in self.sums:
            self.sums[number] = torch.zeros(len(visible), heads, member.shape[2], device=device)
            self.counts[number] = visible.sum(dim=1)
        rows = torch.arange(len(visible), device=device) if rows is None else rows
        size = max(CHUNK_WEIGHTS // (heads * layer.key.shape[1]), 1)
        parts = zip(rows.split(size), query.split(size, dim=1), boosted.split(size), strict=True)
        for part, states, steered in parts:
            weights = layer.weights(states, visible[part], steered)
            picked = weights.gather(2, self.index[part].expand(heads, -1, -1))
            self.sums[number][part] = picked.transpose(0, 1) @ member[part]
            if self.tokens is not None:
                self.tokens[part] += weights.mean(dim=0)

    def result(self) -> SpanAttention:
        layers = sorted(self.sums)
        sums = torch.stack([self.sums[layer] for layer in layers]).cpu().transpose(1, 2)
        member, tokens = self.member[..., :-1], None
        if self.tokens is not None:
            means, visible = self.tokens.cpu() / len(layers), self.visible[None].cpu()
            tokens = tuple(row[own] for row, own in zip(means, visible, strict=True))
        return SpanAttention(
            mass=sums[..., :-1],
            null=sums[..., -1],
            visible=torch.stack([self.counts[layer] for layer in layers]).cpu(),
            length=member.sum(dim=1).long(),
            holds_null=(member * (self.position == 0)[..., None]).sum(dim=1) > 0,
            branch=self.branch,
            tokens=tokens,
        )
