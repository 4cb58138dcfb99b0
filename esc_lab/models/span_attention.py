"""Attention on spans as a probe has measured it, and Strategy-Relevant Attention from that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
        tokens: for each row its attention on each token of its own sequence up to itself, mean over layers and heads;
            None unless the probe keeps tokens.
    """

    mass: Tensor
    null: Tensor
    visible: Tensor
    length: Tensor
    holds_null: Tensor
    branch: Tensor
    tokens: tuple[Tensor, ...] | None

    def of(self, rows: Tensor) -> SpanAttention:
        """These rows alone."""
        tokens = None if self.tokens is None else tuple(self.tokens[row] for row in rows.tolist())
        return SpanAttention(
            self.mass[:, :, rows], self.null[:, :, rows], self.visible[:, rows], self.length[rows],
            self.holds_null[rows], self.branch[rows], tokens,
        )  # fmt: skip


def join_attention(parts: Sequence[SpanAttention]) -> SpanAttention:
    """The rows of all parts, by branch."""
    keep_tokens = parts[0].tokens is not None
    whole = SpanAttention(
        mass=torch.cat([part.mass for part in parts], dim=2),
        null=torch.cat([part.null for part in parts], dim=2),
        visible=torch.cat([part.visible for part in parts], dim=1),
        length=torch.cat([part.length for part in parts]),
        holds_null=torch.cat([part.holds_null for part in parts]),
        branch=torch.cat([part.branch for part in parts]),
        tokens=tuple(row for part in parts for row in part.tokens or ()) if keep_tokens else None,
    )
    return whole.of(whole.branch.argsort(stable=True))


def head_attention(attention: SpanAttention, definition: str) -> Tensor:
    """SRA of each layer, head and row, [layers, heads, rows, spans] in float64; nan for an empty span.

    The mean over layers and heads is the SRA of a row, the mean of that over the rows of a reply is the reply's.

    Args:
        definition: `paper`, eq. 5 of arXiv 2402.10453: attention per token of the span. `reference`, the paper's
            published code: in each layer the heads' mean row loses its first entry (null attention) and is scaled to
            sum 1. A row that sees nothing but the first token counts as zero. `first_token`, what the paper's table
            holds: `reference` of the first reply token alone, so give it that row.

    Raises:
        ValueError: an unknown definition.
    """
    mass = attention.mass.double()
    if definition in ("reference", "first_token"):
        null = attention.null.double()
        rest = 1 - null.mean(dim=1)[:, None, :, None]
        mass = torch.where(rest > 0, (mass - null[..., None] * attention.holds_null) / rest, 0.0)
    elif definition != "paper":
        raise ValueError(f"no definition '{definition}' of SRA: paper, reference or first_token")
    return mass / attention.length
