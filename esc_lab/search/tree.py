"""The search tree: supporter decisions with prior, visits and value, as plain data that can be saved.

After *Chain of Strategy Optimization* (arXiv 2503.05362) and its code. A node is one supporter decision: a strategy,
and once it was reached the supporter's text, the seeker's answer and whether the conversation ended there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from esc_lab.data.dialogue import Reply, Turn

WORST_REWARD = -3.0
SEED_VALUE, SEED_VISITS, SEED_PRIOR = 1.0, 100, 0.1


@dataclass
class Node:
    """A supporter decision. The root (number 0) has no strategy: it is the conversation before the first decision.

    Attributes:
        parent: number of the decision before it; -1 for the root.
        prior: P, the strategist's probability among its siblings.
        visits, value: N and Q, the running mean of the rewards that were backed up. A node of the seed starts with
            `SEED_VISITS` and `SEED_VALUE`, which nobody judged.
        text, answer: what supporter and seeker say; None until the node is reached. The answer may be empty.
        ended: the seeker ended the conversation here.
        seed: the node is a decision of the seed dialogue.
        lost: there is no usable text for it, so it is not selected again.
        turn_score: the judge's latest score of this very reply, in [0, 4]; None if nobody judged it.
        scorings: how often the judge was asked about this very reply.
        children: numbers of the children, in the order of the ratings; empty until expanded.
    """

    parent: int
    strategy: str | None = None
    prior: float = 1.0
    visits: int = 0
    value: float = 0.0
    text: str | None = None
    answer: str | None = None
    ended: bool = False
    seed: bool = False
    lost: bool = False
    turn_score: float | None = None
    scorings: int = 0
    children: list[int] = field(default_factory=list)

    @property
    def judgement(self) -> tuple[int, float | None]:
        """How many rewards were backed up and their mean, without what a seed node starts with."""
        if not self.seed:
            return self.visits, self.value if self.visits else None
        count = self.visits - SEED_VISITS
        return count, (self.value * self.visits - SEED_VALUE * SEED_VISITS) / count if count else None


@dataclass
class Tree:
    """All decisions of one search.

    Attributes:
        start: the turns before the first decision; ends with the seeker.
        nodes: by number; a parent comes before its children.
        iterations: finished ones, with a reward or without.
    """

    start: tuple[Turn, ...]
    nodes: list[Node] = field(default_factory=lambda: [Node(parent=-1, text="", answer="")])
    iterations: int = 0

    def path(self, number: int) -> list[int]:
        """Numbers from the root's child down to the node; empty for the root."""
        steps: list[int] = []
        while number > 0:
            steps.append(number)
            number = self.nodes[number].parent
        return steps[::-1]

    def history(self, number: int) -> tuple[Turn, ...]:
        """The conversation up to and with a node's texts."""
        history = self.start
        for node in (self.nodes[step] for step in self.path(number)):
            assert node.text is not None
            assert node.strategy is not None
            history = append_answer(append_reply(history, node.text, node.strategy), node.answer or "")
        return history

    def count_ended(self) -> int:
        """How many leaves have ended; the seed's last decision is one."""
        return sum(node.ended for node in self.nodes)

    def siblings(self, number: int) -> Iterator[int]:
        """Numbers of the other children of a node's parent."""
        return (other for other in self.nodes[self.nodes[number].parent].children if other != number)

    def expand(self, number: int, priors: Mapping[str, float]) -> list[int]:
        """Give a node one child for each strategy; their numbers."""
        first = len(self.nodes)
        self.nodes += [Node(parent=number, strategy=name, prior=prior) for name, prior in priors.items()]
        self.nodes[number].children = list(range(first, len(self.nodes)))
        return self.nodes[number].children

    def back_up(self, number: int, reward: float) -> None:
        """Add a reward to the running mean of a node and all above it."""
        while number >= 0:
            node = self.nodes[number]
            node.value = (node.value * node.visits + reward) / (node.visits + 1)
            node.visits += 1
            number = node.parent

    def state(self) -> dict[str, Any]:
        """The tree as JSON types."""
        start = [asdict(turn) for turn in self.start]
        return {"start": start, "iterations": self.iterations, "nodes": [asdict(node) for node in self.nodes]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Tree:
        """The tree that `state()` gave."""
        start = tuple(_turn(data) for data in state["start"])
        return cls(start, [Node(**data) for data in state["nodes"]], state["iterations"])


def append_reply(history: Sequence[Turn], text: str, strategy: str) -> tuple[Turn, ...]:
    """The conversation with the supporter's next turn."""
    return (*history, Turn("supporter", Reply(text, (strategy,))))


def append_answer(history: Sequence[Turn], text: str) -> tuple[Turn, ...]:
    """The conversation with the seeker's next turn, unless it is empty."""
    return (*history, Turn("seeker", Reply(text))) if text else tuple(history)


def _turn(data: Mapping[str, Any]) -> Turn:
    def reply(fields: Mapping[str, Any]) -> Reply:
        return Reply(**{**fields, "strategies": tuple(fields["strategies"])})

    return Turn(data["speaker"], reply(data["reply"]), tuple(reply(other) for other in data["rejected"]))


def compute_priors(ratings: Mapping[str, float], scale: float = 5.0) -> dict[str, float]:
    """softmax(rating / scale) over the rated strategies, in their order."""
    weights = {name: math.exp(rating / scale) for name, rating in ratings.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def puct(node: Node, parent_visits: int, c: float) -> float:
    """`Q + c P sqrt(N_parent) / (N + 1)`."""
    return node.value + c * node.prior * math.sqrt(parent_visits) / (node.visits + 1)
