"""What an engine is asked to do with a prompt: write a reply, or score given continuations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from esc_lab.models.generate import Sampling
from esc_lab.tokens.encode import IntArray


@dataclass(eq=False)
class Writing:
    """A prompt to be continued until a stop token or `max_new_tokens`; the draws depend on `seed` alone.

    Attributes:
        reply: the tokens so far, without the stop token.
    """

    prompt: IntArray
    sampling: Sampling
    seed: int
    reply: list[int] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Most tokens that come after the prompt."""
        return self.sampling.max_new_tokens


@dataclass(eq=False)
class Scoring:
    """A prompt with continuations (of one token or more) whose probabilities are asked for.

    Attributes:
        first: for each continuation the number of the first token that is scored.
        log_probs: for each continuation those of its tokens from there on.
    """

    prompt: IntArray
    continuations: Sequence[IntArray]
    first: Sequence[int]
    log_probs: list[npt.NDArray[np.float64]] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Most tokens that come after the prompt."""
        return sum(map(len, self.continuations))


Task = Writing | Scoring
