"""One token drawn from logits, in a way that small changes of the logits hardly ever change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Most probable tokens among which those of `top_p` are looked for before all are sorted.
_NUCLEUS = 512


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: `temperature` 0 is greedy; `top_p` keeps the smallest set of tokens with that mass."""

    max_new_tokens: int = 96
    temperature: float = 0.0
    top_p: float = 1.0


def draw(logits: Tensor, sampling: Sampling, draws: torch.Generator) -> int:
    """A token from logits [vocabulary], by inverting the distribution at one uniform number."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    probs = torch.softmax(logits.float() / sampling.temperature, dim=-1).cpu()
    if sampling.top_p < 1:
        probs, order = _nucleus(probs, sampling.top_p)
    mass = probs.double().cumsum(dim=-1)
    uniform = torch.rand(1, dtype=torch.float64, generator=draws)
    index = int(torch.searchsorted(mass, uniform * mass[-1], right=True).clamp(max=len(mass) - 1))
    return int(order[index]) if sampling.top_p < 1 else index


def _nucleus(probs: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The smallest set of tokens with mass `top_p`, most probable first: probabilities (others 0), and tokens."""
    found, order = probs.topk(min(_NUCLEUS, len(probs)))
    if found.sum() < top_p:
        found, order = probs.sort(descending=True)
    outside = found.cumsum(dim=-1) - found >= top_p
    return found.masked_fill(outside, 0.0), order
