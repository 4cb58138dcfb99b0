"""Numbers of a preference data set that a search made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from esc_lab.data.dialogue import Dialogue, Reply
from esc_lab.search.tree import Tree

QUARTILES = ("first quartile", "median", "third quartile")


@dataclass(frozen=True)
class SearchStatistics:
    """What trees and dialogues hold. Replies and pairs that several dialogues of a tree share count once.

    Attributes:
        trees, trees_without_dialogues: searches, and those of them in which nothing is preferred.
        iterations, ended_leaves: over all trees; the last decision of a seed that comes to its end is an ended leaf.
        dialogues, turns_per_dialogue: preferred ways through trees, and their mean number of turns.
        preferred_found, preferred_seed: preferred replies that the search found, and those that are the seeds'.
        preferred_alone: preferred replies beside which nothing is rejected.
        rejected: rejected replies.
        pairs: of a preferred and a rejected reply.
        pairs_unjudged: pairs with a reply that nobody judged.
        pairs_inverted: pairs whose preferred reply has the lower value.
        gap_quartiles: of the value of the preferred less that of the rejected reply, over judged pairs (numpy's
            `linear`); None without such pairs.
        depth_mean, depth_max: which decision of its dialogue a preferred reply is, from 1.
        chosen_strategies, rejected_strategies: preferred and rejected replies of each strategy.
    """

    trees: int
    trees_without_dialogues: int
    iterations: int
    ended_leaves: int
    dialogues: int
    turns_per_dialogue: float
    preferred_found: int
    preferred_seed: int
    preferred_alone: int
    rejected: int
    pairs: int
    pairs_unjudged: int
    pairs_inverted: int
    gap_quartiles: tuple[float, float, float] | None
    depth_mean: float
    depth_max: int
    chosen_strategies: Mapping[str, int]
    rejected_strategies: Mapping[str, int]

    @property
    def preferred(self) -> int:
        """Preferred replies."""
        return self.preferred_found + self.preferred_seed

    def as_metrics(self) -> dict[str, float]:
        """Flat, under `search/`; the quartiles are left out where there are none."""
        names = (
            *("trees", "trees_without_dialogues", "iterations", "ended_leaves", "dialogues", "turns_per_dialogue"),
            *("preferred", "preferred_found", "preferred_seed", "preferred_alone", "rejected"),
            *("pairs", "pairs_unjudged", "pairs_inverted", "depth_mean", "depth_max"),
        )
        metrics = {f"search/{name}": float(getattr(self, name)) for name in names}
        for number, value in enumerate(self.gap_quartiles or (), start=1):
            metrics[f"search/gap_quartile_{number}"] = value
        for kind, counts in (("chosen", self.chosen_strategies), ("rejected", self.rejected_strategies)):
            metrics |= {f"search/{kind}/{strategy}": float(count) for strategy, count in counts.items()}
        return metrics

    def table(self) -> list[tuple[str, str]]:
        """Rows of what and how much."""
        rows: list[tuple[str, str]] = [
            ("trees", str(self.trees)),
            ("trees in which nothing is preferred", str(self.trees_without_dialogues)),
            ("iterations", str(self.iterations)),
            ("ended leaves", str(self.ended_leaves)),
            ("dialogues", str(self.dialogues)),
            ("turns a dialogue, mean", f"{self.turns_per_dialogue:.1f}"),
            ("preferred replies", str(self.preferred)),
            ("of these found by the search", str(self.preferred_found)),
            ("of these the seeds'", str(self.preferred_seed)),
            ("of these without a rejected reply", str(self.preferred_alone)),
            ("rejected replies", str(self.rejected)),
            ("pairs", str(self.pairs)),
            ("pairs with a reply that nobody judged", str(self.pairs_unjudged)),
            ("pairs whose preferred reply has the lower value", str(self.pairs_inverted)),
        ]
        gaps = self.gap_quartiles or ()
        rows += [
            (f"value gap of judged pairs, {name}", f"{gap:.3f}") for name, gap in zip(QUARTILES, gaps, strict=False)
        ]
        depths = [("mean", f"{self.depth_mean:.1f}"), ("largest", str(self.depth_max))]
        return rows + [(f"depth of preferred replies, {name}", value) for name, value in depths]

    def strategy_table(self) -> list[tuple[str, str, str]]:
        """Rows of strategy, preferred replies with it and rejected ones."""
        names = dict.fromkeys([*self.chosen_strategies, *self.rejected_strategies])
        return [
            (name, str(self.chosen_strategies.get(name, 0)), str(self.rejected_strategies.get(name, 0)))
            for name in names
        ]


def search_statistics(
    dialogues: Iterable[Dialogue], trees: Iterable[Tree], strategies: Sequence[str]
) -> SearchStatistics:
    """Numbers of the trees and of the dialogues that `preferences.dialogues` made of them.

    Args:
        trees: all that were searched, in any order.
        strategies: names of the inventory, in its order; they are counted even where there are none.
    """
    counted = _Counted()
    for dialogue in dialogues:
        counted.add(dialogue)
    searched = iterations = ended = 0
    for tree in trees:
        searched, iterations, ended = searched + 1, iterations + tree.iterations, ended + tree.ended()
    gaps = [chosen - other for chosen, other in counted.values() if chosen is not None and other is not None]
    quartiles = np.quantile(gaps, (0.25, 0.5, 0.75)).tolist() if gaps else None
    return SearchStatistics(
        trees=searched,
        trees_without_dialogues=searched - len(counted.trees),
        iterations=iterations,
        ended_leaves=ended,
        dialogues=len(counted.turns),
        turns_per_dialogue=_mean(counted.turns),
        preferred_found=len(counted.chosen) - len(counted.seed),
        preferred_seed=len(counted.seed),
        preferred_alone=len(counted.chosen) - len({chosen for chosen, _ in counted.pairs}),
        rejected=len(counted.rejected),
        pairs=len(counted.pairs),
        pairs_unjudged=len(counted.pairs) - len(gaps),
        pairs_inverted=sum(gap < 0 for gap in gaps),
        gap_quartiles=tuple(quartiles) if quartiles else None,
        depth_mean=_mean(list(counted.depth.values())),
        depth_max=max(counted.depth.values(), default=0),
        chosen_strategies=_by_strategy(counted.chosen.values(), strategies),
        rejected_strategies=_by_strategy(counted.rejected.values(), strategies),
    )


class _Counted:
    """Distinct replies and pairs. A reply is known by its place: the number of its tree, its history and itself."""

    def __init__(self) -> None:
        self.trees: set[str] = set()
        self.turns: list[int] = []
        self.chosen: dict[int, Reply] = {}
        self.rejected: dict[int, Reply] = {}
        self.depth: dict[int, int] = {}
        self.seed: set[int] = set()
        self.pairs: set[tuple[int, int]] = set()
        self._places: dict[tuple[object, ...], int] = {}

    def add(self, dialogue: Dialogue) -> None:
        self.trees.add(dialogue.tree_id)
        self.turns.append(len(dialogue.turns))
        seed_turns = dialogue.meta["search"]["seed_turns"]
        before, depth = self._place(dialogue.tree_id), 0
        for index, turn in enumerate(dialogue.turns):
            place = self._place(before, turn.speaker, turn.reply.text, turn.reply.strategies)
            if turn.reply.visits is not None:  # a decision of the search
                depth += 1
                self.chosen[place], self.depth[place] = turn.reply, depth
                if index in seed_turns:
                    self.seed.add(place)
                for other in turn.rejected:
                    beside = self._place(before, turn.speaker, other.text, other.strategies)
                    self.rejected[beside] = other
                    self.pairs.add((place, beside))
            before = place

    def values(self) -> list[tuple[float | None, float | None]]:
        """Values of preferred and rejected reply of each pair."""
        return [(self.chosen[chosen].value, self.rejected[other].value) for chosen, other in self.pairs]

    def _place(self, *parts: object) -> int:
        return self._places.setdefault(parts, len(self._places))


def _by_strategy(replies: Iterable[Reply], strategies: Sequence[str]) -> dict[str, int]:
    counts = Counter(name for reply in replies for name in reply.strategies)
    return {name: counts[name] for name in dict.fromkeys([*strategies, *sorted(counts)])}


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
