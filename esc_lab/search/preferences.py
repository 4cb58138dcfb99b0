"""From a finished search tree to preference data: which replies are preferred, which are rejected, and the dialogues.

The rule of *Chain of Strategy Optimization* (arXiv 2503.05362): ended leaves of high value are preferred, and so is
every decision on the way to them; rejected are siblings of a preferred decision that have low value and lie on no such
way. Only leaves have to pass a limit, so a preferred reply can have a lower value than one that is rejected beside it.
The published code rejects texts that nobody judged, which `rejected_visits=0` reproduces. `lower` is not published: it
compares judgements, and a reply of the seed that nobody judged passes. Nor is `ended=false`, which prefers leaves
wherever their talks stand: trained seekers seldom end one, and without rollouts a search is broad rather than deep.

Q and N are the search's: those of the seed's decisions hold what they were planted with, which nobody judged.

With `threshold=quantile`, `preferred_min` and `rejected_max` are quantiles of a tree's own values: of the judged ended
leaves that the search found, and of all its judged decisions; the seed's are in neither. Of values v_0 <= ... <=
v_(n-1) quantile q is the one at position q (n - 1), on the straight line between two neighbours (numpy's `linear`), so
of one value it is that value. A tree without such leaves has no preferred limit, and nothing that the search found is
preferred in it; one without judged decisions has no rejected limit, and nothing is rejected. The seed's last decision
is then preferred in any case, as it is under the published limits, which its planted Q of 1 passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from esc_lab.config.search import PreferenceConfig
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.errors import UserError
from esc_lab.search.tree import Node, Tree


@dataclass(frozen=True)
class Preferences:
    """Preferred and rejected decisions of a tree, as numbers of its nodes.

    Attributes:
        leaves: preferred ended leaves, ascending.
        rejected: for every preferred decision, ascending, the siblings that are rejected beside it, in their order.
        preferred_min, rejected_max: the limits as values; None where a tree has no such quantile.
    """

    leaves: tuple[int, ...]
    rejected: Mapping[int, tuple[int, ...]]
    preferred_min: float | None
    rejected_max: float | None

    @property
    def preferred(self) -> frozenset[int]:
        """All preferred decisions: the leaves, and those on the way to them."""
        return frozenset(self.rejected)


def find_preferences(tree: Tree, rule: PreferenceConfig) -> Preferences:
    """Apply the rule to a tree. The root is no decision and is neither preferred nor rejected.

    Raises:
        UserError: a quantile is not in [0, 1].
    """
    preferred_min, rejected_max = _limits(tree, rule)

    def is_preferred(node: Node) -> bool:
        if not _is_leaf(tree, node, rule) or node.visits < rule.preferred_visits:
            return False
        if node.seed and rule.threshold == "quantile":
            return True
        return preferred_min is not None and _value(node, rule) >= preferred_min

    def is_low(node: Node) -> bool:
        judgements, _ = node.judgement
        reached = node.text is not None and judgements >= rule.rejected_visits
        return reached and rejected_max is not None and _value(node, rule) <= rejected_max

    nodes = tree.nodes
    leaves = tuple(number for number in range(1, len(nodes)) if is_preferred(nodes[number]))
    preferred = sorted({number for leaf in leaves for number in tree.path(leaf)})
    low = {number for number in range(1, len(nodes)) if is_low(nodes[number])}.difference(preferred)
    rejected = {
        number: tuple(
            other
            for other in tree.siblings(number)
            if other in low and (not rule.lower or _is_lower(nodes[other], nodes[number], rule))
        )
        for number in preferred
    }
    return Preferences(leaves, rejected, preferred_min, rejected_max)


def find_extensions(tree: Tree, preferences: Preferences) -> list[int]:
    """Siblings that the search did not reach, of preferred decisions beside which nothing is rejected; ascending."""
    alone = (number for number, rejected in preferences.rejected.items() if not rejected)
    siblings = {other for number in alone for other in tree.siblings(number)}
    return sorted(other for other in siblings if tree.nodes[other].text is None and not tree.nodes[other].lost)


def extract_dialogues(tree: Tree, preferences: Preferences, seed: Dialogue) -> list[Dialogue]:
    """One dialogue for each preferred leaf, in the order of the leaves.

    Replies have the value and visits that were judged: a reply of the seed that nobody judged has no value, and 0
    visits. The turns before the first decision keep their texts and strategies only, so that every rejected reply is
    this search's. An empty answer of the seeker is no turn.

    Inventory, tree and seeker are those of the seed dialogue from which the search began. In `meta` stand its id as
    `seed_dialogue`, and `search` with `{"seed_turns": [...]}`, the indices of the turns whose replies are the seed's.
    The search found those of the other decisions; each decision's turn has visits.
    """
    start = [Turn(turn.speaker, Reply(turn.reply.text.strip(), turn.reply.strategies)) for turn in tree.start]
    dialogues = []
    for leaf in preferences.leaves:
        turns, seed_turns = [*start], []
        for number in tree.path(leaf):
            node, rejected = tree.nodes[number], preferences.rejected[number]
            if node.seed:
                seed_turns.append(len(turns))
            turns.append(Turn("supporter", _reply(node), tuple(_reply(tree.nodes[other]) for other in rejected)))
            answer = (node.answer or "").strip()
            if answer:
                turns.append(Turn("seeker", Reply(answer)))
        meta = {"seed_dialogue": seed.id, "search": {"seed_turns": seed_turns}}
        # The seeker who answered the survey had another talk.
        dialogues.append(replace(seed, turns=tuple(turns), meta=meta, survey=None))
    return dialogues


def _limits(tree: Tree, rule: PreferenceConfig) -> tuple[float | None, float | None]:
    """Lowest value of a preferred leaf and highest value of a rejected reply."""
    if rule.threshold == "absolute":
        return rule.preferred_min, rule.rejected_max
    for name in ("preferred_min", "rejected_max"):
        if not 0 <= getattr(rule, name) <= 1:
            fix = "choose it from 0 to 1, or threshold=absolute"
            raise UserError(f"{name}={getattr(rule, name)} is not a quantile", fix=fix)
    judged = [node for node in tree.nodes[1:] if node.visits and not node.seed]
    leaves = [_value(node, rule) for node in judged if _is_leaf(tree, node, rule)]
    return (
        float(np.quantile(leaves, rule.preferred_min)) if leaves else None,
        float(np.quantile([_value(node, rule) for node in judged], rule.rejected_max)) if judged else None,
    )


def _is_leaf(tree: Tree, node: Node, rule: PreferenceConfig) -> bool:
    """Whether the talk has ended here; without `ended`, whether it has gone on nowhere below."""
    on = any(tree.nodes[child].text is not None for child in node.children)
    return node.ended or (not rule.ended and node.text is not None and not on)


def _value(node: Node, rule: PreferenceConfig) -> float:
    return node.value if rule.value == "max_q" else node.visits


def _is_lower(rejected: Node, preferred: Node, rule: PreferenceConfig) -> bool:
    count, value = _judgement(preferred)
    other_count, other_value = _judgement(rejected)
    if value is None or other_value is None:
        return value is None
    return other_value < value if rule.value == "max_q" else other_count < count


def _reply(node: Node) -> Reply:
    assert node.text is not None
    assert node.strategy is not None
    visits, value = _judgement(node)
    return Reply(node.text.strip(), (node.strategy,), value, visits)


def _judgement(node: Node) -> tuple[int, float | None]:
    """How often a reply was judged, and the mean; its last digits, noise of the running mean, are rounded away."""
    visits, value = node.judgement
    return visits, None if value is None else round(float(value), 9)
