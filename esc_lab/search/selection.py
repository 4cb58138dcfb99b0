"""Which leaf of a search tree is worked on next.

Policies: `puct`; `random`, where strategies are drawn uniformly and nobody rates them; `best_of_n`, where at each
decision the `candidates` most probable strategies are tried once and the best is followed; when the conversation has
ended there, the next best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from esc_lab.config.search import MCTSConfig
from esc_lab.search.tree import Tree, puct
from esc_lab.seeds import derive_seed


def select(tree: Tree, settings: MCTSConfig, seed: int, begun: int = 0) -> int | None:
    """Number of the leaf to work on, from the root down the best children.

    Leaves that are lost are not selected; the next best child stands in for one below which nothing else is left.

    Args:
        seed: seed of the draws of `random`.
        begun: how many leaves were selected before; `random` draws by it.

    Returns:
        None if there is no such leaf.
    """
    return _Selection(tree, settings, seed, begun).leaf(0)


@dataclass(frozen=True)
class _Selection:
    tree: Tree
    settings: MCTSConfig
    seed: int
    begun: int

    def leaf(self, number: int) -> int | None:
        node = self.tree.nodes[number]
        if node.lost:
            return None
        if not node.children:
            return number
        return next((leaf for child in self.order_children(number) if (leaf := self.leaf(child)) is not None), None)

    def order_children(self, number: int) -> Sequence[int]:
        """Children of a node, the one to descend to first; of equals the one that was rated first."""
        nodes, settings = self.tree.nodes, self.settings
        children = nodes[number].children
        if settings.policy == "random":
            draw = np.random.default_rng(derive_seed(self.seed, "selection", self.begun, number))
            return [children[index] for index in draw.permutation(len(children))]
        if settings.policy == "best_of_n":
            return self.order_candidates(number)
        if settings.policy == "puct":
            visits = nodes[number].visits
            return sorted(children, key=lambda child: -puct(nodes[child], visits, settings.c))
        raise ValueError(f"no policy {settings.policy!r}")

    def order_candidates(self, number: int) -> Sequence[int]:
        """best_of_n: the untried candidates; when all of them were tried, these by their value."""
        nodes, candidates = self.tree.nodes, self.candidates(number)
        untried = [child for child in candidates if not (nodes[child].visits or nodes[child].lost)]
        if untried:
            return untried
        going_on = [child for child in candidates if not self.is_closed(child)]
        # What is followed stays followed, whatever its running mean becomes.
        return sorted(going_on, key=lambda child: (nodes[child].visits == 1, -nodes[child].value))

    def is_closed(self, number: int) -> bool:
        """best_of_n: the conversation has ended here, or at all candidates below."""
        node = self.tree.nodes[number]
        return node.lost or node.ended or (bool(node.children) and all(map(self.is_closed, self.candidates(number))))

    def candidates(self, number: int) -> list[int]:
        """best_of_n: the most probable children."""
        nodes = self.tree.nodes
        return sorted(nodes[number].children, key=lambda child: -nodes[child].prior)[: self.settings.candidates]
