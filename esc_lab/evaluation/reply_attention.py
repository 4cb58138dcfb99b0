"""SRA of a reply from the attention on the spans of its prompt, and where these lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from esc_lab.metrics.attention import DEFINITIONS, KINDS, ReplySRA, SpanSRA
from esc_lab.models.span_attention import SpanAttention, head_attention
from esc_lab.tokens import TokenSpan
from esc_lab.tokens.encode import IntArray

# A span of the prompt by kind and strategy; a control has no strategy.
Column = tuple[str, str | None]


class UnmeasurableError(Exception):
    """A reply whose SRA does not exist; the message is the reason, a few words that are counted."""


def span_columns(spans: Sequence[TokenSpan]) -> dict[Column, IntArray]:
    """Token positions of the strategy spans of a prompt and of their controls, in an order that templates share.

    A control is as many tokens of the neutral text as the strategy span has, from its own quoted phrase on; fewer if
    the text ends before that.
    """
    columns: dict[Column, IntArray] = {
        (span.span.kind, span.span.strategy): np.arange(span.start, span.end)
        for span in spans
        if span.span.kind in KINDS
    }
    neutral = {span.span.kind: span for span in spans if span.span.kind.startswith("neutral")}
    if neutral:
        for kind, strategy in list(columns):
            name = neutral["neutral_name"]
            start = (name if kind == "name" else neutral.get("neutral_quoted", name)).start
            length = len(columns[kind, strategy])
            columns[kind, None] = np.arange(start, min(start + length, neutral["neutral"].end))
    return columns


def reply_sra(attention: SpanAttention, columns: Sequence[Column], strategy: str) -> ReplySRA:
    """SRA of a reply by all definitions, on each kind of span that its prompt has for the strategy.

    Args:
        attention: of the reply's rows, one span for each column.
        columns: what the spans are: keys of `span_columns`.
        strategy: which the reply was told to follow, or which it names.

    Raises:
        UnmeasurableError: there is no row, a span has no token, or no attention falls on it.
    """
    if not len(attention.branch):
        raise UnmeasurableError("empty reply")
    measured = {}
    for definition in DEFINITIONS:
        rows = attention.of(torch.zeros(1, dtype=torch.int64)) if definition == "first_token" else attention
        by_head = head_attention(rows, definition)
        keys = (rows.visible - int(definition != "paper")).double()[:, None, :, None]
        relative = (by_head * keys).mean(dim=(0, 1, 2))
        values = by_head.mean(dim=(0, 1, 2))
        for kind in dict.fromkeys(kind for kind, _ in columns):
            target = columns.index((kind, strategy))
            controls = [n for n, (other, name) in enumerate(columns) if other == kind and name != strategy]
            if not (attention.length[0, [target, *controls]] > 0).all():
                raise UnmeasurableError("span without tokens")
            if not (values[[target, *controls]] > 0).all():
                raise UnmeasurableError("no attention on a span")
            measured[f"{definition}/{kind}"] = SpanSRA(
                float(values[target]),
                float(values[controls].log().mean().exp()),
                float(relative[target]),
                by_head[..., target].mean(dim=2).float().numpy(),
            )
    return measured
