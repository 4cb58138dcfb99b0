"""Strategy-Relevant Attention (SRA, arXiv 2402.10453) of replies, with two controls.

SRA is the mean attention that the queries which predict a reply's tokens give to the tokens of a strategy span in the
prompt. Where a span stands in the prompt moves SRA whatever the span says, so two controls stand beside it: the same
measure of a neutral span of equal length in the same instruction (`control`), and SRA times the number of keys that a
query sees (`relative`: 1 = attention spread evenly).

Under a template that lists all strategies the span is that of the strategy which the reply names, and the controls are
the spans of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from esc_lab.models.span_attention import SpanAttention, head_attention
from esc_lab.tokens import TokenSpan
from esc_lab.tokens.encode import IntArray

DEFINITIONS = ("paper", "reference")
KINDS = ("name", "quoted", "instruction")

# A span of the prompt by kind and strategy; a control has no strategy.
Column = tuple[str, str | None]


class UnmeasurableError(Exception):
    """A reply whose SRA does not exist; the message is the reason, a few words that are counted."""


@dataclass(frozen=True)
class SpanSRA:
    """SRA of one reply on one kind of span by one definition.

    Attributes:
        sra: mean attention per token of the span, over response tokens, layers and heads.
        control: the same of the control spans (geometric mean over them).
        relative: like `sra`, with the attention of each query times the number of keys that it could attend to (not
            counting the first token in the `reference` definition, which leaves it out).
        heads: [layers, heads] float32; its mean is `sra`.
    """

    sra: float
    control: float
    relative: float
    heads: npt.NDArray[np.float32]

    @property
    def sham_net(self) -> float:
        """ln `sra` minus ln `control`."""
        return math.log(self.sra) - math.log(self.control)


# By "<definition>/<kind>".
ReplySRA = Mapping[str, SpanSRA]


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
    neutral = {span.span.kind: span for span in spans if span.span.strategy is None}
    if neutral:
        for kind, strategy in list(columns):
            start = neutral["neutral_name" if kind == "name" else "neutral_quoted"].start
            length = len(columns[kind, strategy])
            columns[kind, None] = np.arange(start, min(start + length, neutral["neutral"].end))
    return columns


def reply_sra(found: SpanAttention, columns: Sequence[Column], strategy: str) -> ReplySRA:
    """SRA of one reply by both definitions, on each kind of span that its prompt has for the strategy.

    Args:
        found: attention of the reply's rows, one span for each column.
        columns: what the spans are: keys of `span_columns`.
        strategy: which the reply was told to follow, or which it names.

    Raises:
        UnmeasurableError: there is no row, a span has no token, or no attention falls on it.
    """
    if not len(found.branch):
        raise UnmeasurableError("empty reply")
    measured = {}
    for definition in DEFINITIONS:
        attention = head_attention(found, definition)
        keys = (found.visible - int(definition == "reference")).double()[:, None, :, None]
        relative = (attention * keys).mean(dim=(0, 1, 2))
        values = attention.mean(dim=(0, 1, 2))
        for kind in dict.fromkeys(kind for kind, _ in columns):
            target = columns.index((kind, strategy))
            controls = [n for n, (one, name) in enumerate(columns) if one == kind and name != strategy]
            if not (found.length[0, [target, *controls]] > 0).all():
                raise UnmeasurableError("span without tokens")
            if not (values[[target, *controls]] > 0).all():
                raise UnmeasurableError("no attention on a span")
            measured[f"{definition}/{kind}"] = SpanSRA(
                float(values[target]),
                float(values[controls].log().mean().exp()),
                float(relative[target]),
                attention[..., target].mean(dim=2).float().numpy(),
            )
    return measured


def rows_of(found: SpanAttention, branch: int, skip: int = 0) -> Tensor:
    """Row numbers of a branch, without the first `skip` (those of a reply's label)."""
    return (found.branch == branch).nonzero()[skip:, 0]
