"""Seeds for everything random, derived from the run's seed and what the draw is for, never from call order."""

from __future__ import annotations

import hashlib

# Of what evaluations have in common whatever their run's seed: which decisions get a reply, which strategies prompts
# name, the judge of adherence. Runs of different seeds could not be compared decision by decision otherwise.
EVALUATION_SEED = 1


def derive_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed that depends on the run's seed and the purpose alone.

    >>> derive_seed(1, "generation", "dialogue", 3) == derive_seed(1, "generation", "dialogue", 3)
    True
    >>> derive_seed(1, "generation") == derive_seed(2, "generation")
    False
    """
    text = "\x1f".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
