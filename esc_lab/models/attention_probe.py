"""How much attention chosen queries give to spans of their sequence, measured while a fast kernel computes the output.

The kernels return no attention weights. The probe computes them again from the queries and keys of a layer, for the
probed rows only, sums them over the spans at once, and keeps the sums. A probed row is a query that predicts a token of
a reply. Whatever the layout of the pass (token tree, key-value cache of growing branches, padded batch), the keys that
a row sees under full attention are, in order, its own sequence: spans are given as positions in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esc_lab.models.span_attention import SpanAttention
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.packing import PackedRow
from esc_lab.tokens.trie import TokenTree

# Attention weights computed at a time (heads x rows x keys): 16 MiB in float32.
CHUNK_WEIGHTS = 2**22


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
        self._measured: list[_Rows] = []
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
        if not cached or not self._layers:
            self.settle()
        own = torch.as_tensor(branch, dtype=torch.int64)
        reach = self._position[own].amax(dim=1).to(visible.device)
        if bool((visible.sum(dim=1) <= reach).any()):
            raise ValueError("a span reaches past a probed row of its branch")
        places = torch.as_tensor(query, dtype=torch.int64, device=visible.device)
        in_order = list(query) == list(range(len(own)))
        self._passes.append(_Pass(own, visible, places, in_order, batch, cached, torch.arange(len(own))))

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
        """Of the last pass keep these rows only (those that predicted a stop token belong to no reply token)."""
        self._passes[-1].kept = torch.as_tensor(rows, dtype=torch.int64)

    @torch.no_grad()
    def observe(
        self, module: Any, query: Tensor, key: Tensor, scaling: float | None, softcap: float | None, window: int | None
    ) -> None:
        """Called by the attention function in each layer. Raises ValueError if the pass is not the one announced."""
        now = self._passes[-1] if self._passes else None
        layer = module.layer_idx
        if now is None or layer in now.seen:
            raise ValueError("each forward pass with a probe needs a call of watch before it")
        if key.shape[2] != now.visible.shape[1]:
            raise ValueError(f"{key.shape[2]} keys in layer {layer}, {now.visible.shape[1]} were announced")
        if len(query) > 1 and now.batch is None:
            raise ValueError(f"a batch of {len(query)} needs the batch entry of each probed row")
        if now.cached:
            whole = now.in_order and len(now.places) == query.shape[2]
            now.seen[layer] = query[0] if whole else query[0].index_select(1, now.places)
            self._layers[layer] = _Layer(key[0], scaling, softcap, window)
            return
        if now.rows is None:
            now.rows = self._rows(now.visible, now.branch)
        now.seen[layer] = None
        entries = torch.tensor(now.batch or [0] * len(now.branch))
        for entry in entries.unique().tolist():
            rows = (entries == entry).nonzero()[:, 0].to(query.device)
            states = query[entry].index_select(1, now.places[rows])
            now.rows.measure(layer, states, _Layer(key[entry], scaling, softcap, window), rows)

    @torch.no_grad()
    def settle(self) -> None:
        """Measure what passes with a cache have put off, and let go of their keys."""
        passes, self._passes = self._passes, []
        layers, self._layers = self._layers, {}
        for now in passes:
            if not now.seen or now.seen.keys() != passes[0].seen.keys():
                raise ValueError("no attention was observed: run the model with probe= and token_tree attention")
            if now.rows is not None:
                self._measured.append(now.rows.only(now.kept))
        if layers:
            keys = passes[-1].visible.shape[1]
            kept = [now.visible[now.kept.to(now.visible.device)] for now in passes]
            visible = torch.cat([torch.nn.functional.pad(one, (0, keys - one.shape[1])) for one in kept])
            rows = self._rows(visible, torch.cat([now.branch[now.kept] for now in passes]))
            for number, layer in layers.items():
                states = [_of(now.seen[number], now.kept) for now in passes]
                rows.measure(number, torch.cat(states, dim=1), layer)
            self._measured.append(rows)

    def result(self) -> SpanAttention:
        """What was measured in all passes so far. Raises ValueError if a pass was announced and not observed."""
        self.settle()
        measured = self._measured
        if not measured:
            raise ValueError("no attention was observed: run the model with probe= and token_tree attention")
        branch, order = torch.cat([rows.branch for rows in measured]).sort(stable=True)
        sums = torch.cat([_stacked(rows.sums) for rows in measured], dim=1)[:, order].transpose(1, 2)
        tokens = [row for rows in measured for row in rows.token_rows()]
        member = self._member[branch][..., :-1]
        first = self._position[branch][..., None] == 0
        return SpanAttention(
            mass=sums[..., :-1],
            null=sums[..., -1],
            visible=torch.cat([_stacked(rows.counts) for rows in measured], dim=1)[:, order],
            length=member.sum(dim=1).long(),
            holds_null=(member * first).sum(dim=1) > 0,
            branch=branch,
            tokens=tuple(tokens[row] for row in order.tolist()) if self.keep_tokens else None,
        )

    def _rows(self, visible: Tensor, branch: Tensor) -> _Rows:
        rank = visible.cumsum(dim=1)
        index = torch.searchsorted(rank, self._position[branch].to(visible.device) + 1)
        tokens = torch.zeros(visible.shape, device=visible.device) if self.keep_tokens else None
        member = self._member[branch].to(visible.device)
        return _Rows(branch, {None: visible}, rank[:, -1:] - rank, index, member, tokens)


@dataclass
class _Pass:
    """A forward pass with probed rows [R], announced by `watch`."""

    branch: Tensor
    visible: Tensor
    places: Tensor
    in_order: bool  # places are 0, 1, ...
    batch: Sequence[int] | None
    cached: bool
    kept: Tensor  # rows that count
    seen: dict[int, Tensor | None] = field(default_factory=dict)  # layer -> [heads, R, dim] queries not yet measured
    rows: _Rows | None = None


@dataclass(frozen=True)
class _Layer:
    """Keys [key-value heads, keys, dim] of a layer and how it attends."""

    key: Tensor
    scaling: float | None
    softcap: float | None
    window: int | None


@dataclass
class _Rows:
    """Rows [R] that are measured together, and what was found of them in each layer."""

    branch: Tensor
    by_window: dict[int | None, Tensor]  # [R, keys] visible keys; None = full attention
    distance: Tensor  # [R, keys] of a key from the row, in tokens of the row's sequence
    index: Tensor  # [R, L] keys of all spans
    member: Tensor  # [R, L, spans + 1] span of each
    tokens: Tensor | None  # [R, keys] attention summed over layers
    sums: dict[int, Tensor] = field(default_factory=dict)  # [R, heads, spans + 1]
    counts: dict[int, Tensor] = field(default_factory=dict)  # [R]

    def measure(self, number: int, query: Tensor, layer: _Layer, rows: Tensor | None = None) -> None:
        """Add a layer: queries [heads, rows, dim] of all rows, or of those given."""
        if layer.window not in self.by_window:
            assert layer.window is not None
            self.by_window[layer.window] = self.by_window[None] & (self.distance < layer.window)
        allowed = self.by_window[layer.window]
        heads, key = len(query), layer.key.float()
        if number not in self.sums:
            self.sums[number] = torch.zeros(len(allowed), heads, self.member.shape[2], device=query.device)
            self.counts[number] = allowed.sum(dim=1)
        chosen = torch.arange(len(allowed), device=query.device) if rows is None else rows
        size = max(CHUNK_WEIGHTS // (heads * key.shape[1]), 1)
        for part, states in zip(chosen.split(size), query.split(size, dim=1), strict=True):
            weights = _weights(states, key, allowed[part], layer.scaling, layer.softcap)
            picked = weights.gather(2, self.index[part].expand(heads, -1, -1))
            self.sums[number][part] = picked.transpose(0, 1) @ self.member[part]
            if self.tokens is not None:
                self.tokens[part] += weights.mean(dim=0)

    def only(self, kept: Tensor) -> _Rows:
        """The measured values of some of the rows, without what measuring needed."""
        visible, none = self.by_window[None].cpu()[kept], torch.empty(0)
        tokens = None if self.tokens is None else self.tokens.cpu()[kept]
        sums = {number: found.cpu()[kept] for number, found in self.sums.items()}
        counts = {number: found.cpu()[kept] for number, found in self.counts.items()}
        return _Rows(self.branch[kept], {None: visible}, none, none, none, tokens, sums, counts)

    def token_rows(self) -> list[Tensor]:
        if self.tokens is None:
            return []
        tokens, visible = self.tokens.cpu() / len(self.sums), self.by_window[None].cpu()
        return [row[seen] for row, seen in zip(tokens, visible, strict=True)]


def _of(states: Tensor | None, kept: Tensor) -> Tensor:
    assert states is not None
    return states if len(kept) == states.shape[1] else states.index_select(1, kept.to(states.device))


def _stacked(by_layer: dict[int, Tensor]) -> Tensor:
    return torch.stack([by_layer[layer] for layer in sorted(by_layer)]).cpu()


def _weights(query: Tensor, key: Tensor, allowed: Tensor, scaling: float | None, softcap: float | None) -> Tensor:
    """Attention weights [heads, R, keys] in float32 of queries [heads, R, dim] on keys [key-value heads, keys, dim].

    `allowed` is [R, keys]; query heads that share a key-value head are laid out as more rows.
    """
    heads, rows, dim = query.shape
    folded = query.reshape(len(key), -1, dim).float()
    scores = (folded @ key.float().transpose(1, 2)).mul_(dim**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    return scores.view(heads, rows, key.shape[1]).masked_fill_(~allowed, -torch.inf).softmax(dim=-1)
