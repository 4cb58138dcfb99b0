"""Probabilities of strategies from the alternatives that an endpoint serves with the first tokens of a reply."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from esc_lab.prompts import label_text
from esc_lab.search.requests import TopLogProbs

_BRACKETS = str.maketrans("[]", "()")


def read_label_probabilities(
    tokens: TopLogProbs, strategies: Sequence[str]
) -> tuple[dict[str, float], float] | tuple[None, float]:
    """The probability of each strategy, normalised over their labels, and the share of all probability that is theirs.

    A reply that begins with a label is one path through the tree of tokens; at each of its tokens the alternatives are
    where others leave it. P(what was written up to there) P(alternative) goes to the label that is the only one which
    can still come. Where several can (`(Re`: reflection or restatement), it is shared among them as the rest is, evenly
    if none of them has any. So the probability is exact where each label is told from the others by its first token
    that differs, and those tokens are among the alternatives; what is not among them counts as none, and an alternative
    that any label may follow (a space) says nothing.

    Args:
        tokens: of a reply, from its first token.
        strategies: names of the inventory.

    Returns:
        None and 0 where no label can be seen.
    """
    labels = [label_text(name).casefold() for name in strategies]
    sole, shared = np.zeros(len(labels)), list[tuple[float, list[int]]]()

    def add(mass: float, coming: Sequence[int]) -> None:
        if len(coming) == 1:
            sole[coming[0]] += mass
        elif coming and len(coming) < len(labels):
            shared.append((mass, [*coming]))

    text, reached = "", 1.0
    coming = range(len(labels)) if tokens else []
    for (token, log_prob), *others in tokens:
        for other, other_log_prob in others:
            add(reached * math.exp(other_log_prob), _find_coming(text + other, labels))
        text, reached = text + token, reached * math.exp(log_prob)
        coming = _find_coming(text, labels)
        if len(coming) < 2:
            break
    add(reached, coming)
    masses = sole.copy()
    for mass, several in shared:
        weights = sole[several] if sole[several].any() else np.ones(len(several))
        masses[several] += mass * weights / weights.sum()
    total = float(masses.sum())
    if total <= 0:
        return None, 0.0
    return dict(zip(strategies, (masses / total).tolist(), strict=True)), min(total, 1.0)


def _find_coming(text: str, labels: Sequence[str]) -> list[int]:
    """The labels that a reply with this beginning has, or can still have."""
    start = text.lstrip().translate(_BRACKETS).casefold()
    return [number for number, label in enumerate(labels) if label.startswith(start) or start.startswith(label)]
