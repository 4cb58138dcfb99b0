"""Constants of the search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Policy = Literal["puct", "random", "best_of_n"]


@dataclass(frozen=True)
class SearchSettings:
    """Constants of the search; the defaults are the published ones.

    Attributes:
        c: weight of the exploration term of PUCT.
        enough_iterations, enough_ended: stop once this many iterations are done and this many leaves have ended, at the
            next selected leaf where the talk goes on.
        most_ended: stop there also once this many leaves have ended, whatever the iterations.
        most_iterations: stop in any case.
        rollout_rounds: most rounds (strategy, supporter, seeker) of a rollout.
        rating_scale: prior = softmax(rating / scale).
        judge_own_turn: the selected leaf's own reply is judged too.
        in_flight: leaves that may be worked on at once; 1 is the published, sequential search.
        policy: `puct`; `random`: strategies are drawn uniformly, in the tree and in rollouts, and nobody rates them;
            `best_of_n`: at each decision the `candidates` most probable strategies are tried once and the best is
            followed; when its talk has ended, the next best.
        candidates: n of `best_of_n`.
        seed: seed of what is drawn: strategies of `random`, and those of rollouts whose rating is missing.
    """

    c: float = 1.0
    enough_iterations: int = 100
    enough_ended: int = 1
    most_ended: int = 25
    most_iterations: int = 200
    rollout_rounds: int = 4
    rating_scale: float = 5.0
    judge_own_turn: bool = False
    in_flight: int = 1
    policy: Policy = "puct"
    candidates: int = 8
    seed: int = 0
