"""Numbers of a preference data set that a search made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import fmean
from typing import Any

import numpy as np

from esc_lab.data.dialogue import Dialogue, Reply
from esc_lab.search.tree import Tree


def _number(heading: str, decimals: int = 0) -> Any:
    return field(metadata={"heading": heading, "decimals": decimals})


# What the rows of a search's table are, for readers who know no search.
NOTES = (
    "A tree: all talks that were played from one dialogue, the seed. An iteration plays one more reply on; ended "
    "leaves are talks that came to their end. Dialogues: the talks with preferred replies, as ESC-Pro has them.",
    "Preferred replies: those of talks that went well; rejected replies: worse ones at the same turns. Pairs of both "
    "at one turn are what CSO learns from.",
    "Value gap: how much better the judge finds the preferred reply. Depth: which reply of the talk it is.",
)


@dataclass(frozen=True)
class SearchStatistics:
    """What trees and dialogues hold. Replies and pairs that several dialogues of a tree share count once.

    A pair is one of a preferred and a rejected reply. The last decision of a seed that comes to its end is an ended
    leaf. A gap is the value of the preferred less that of the rejected reply (quartiles: numpy's `linear`; None without
    judged pairs). Depth: which decision of its dialogue a preferred reply is, from 1.

    Attributes:
        chosen_strategies, rejected_strategies: preferred and rejected replies of each strategy.
    """

    trees: int = _number("trees")
    trees_without_dialogues: int = _number("trees in which nothing is preferred")
    iterations: int = _number("iterations")
    ended_leaves: int = _number("ended leaves")
    dialogues: int = _number("dialogues")
    turns_per_dialogue: float = _number("turns a dialogue, mean", 1)
    preferred: int = _number("preferred replies")
    preferred_found: int = _number("of these found by the search")
    preferred_seed: int = _number("of these the seeds'")
    preferred_alone: int = _number("of these without a rejected reply")
    rejected: int = _number("rejected replies")
    pairs: int = _number("pairs")
    pairs_unjudged: int = _number("pairs with a reply that nobody judged")
    pairs_inverted: int = _number("pairs whose preferred reply has the lower value")
    gap_quartile_1: float | None = _number("value gap of judged pairs, first quartile", 3)
    gap_quartile_2: float | None = _number("value gap of judged pairs, median", 3)
    gap_quartile_3: float | None = _number("value gap of judged pairs, third quartile", 3)
    depth_mean: float = _number("depth of preferred replies, mean", 1)
    depth_max: int = _number("depth of preferred replies, largest")
    chosen_strategies: Mapping[str, int] = field(default_factory=dict)
    rejected_strategies: Mapping[str, int] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        metrics = {f"search/{name}": float(value) for name, value, _ in self._numbers()}
        for kind, counts in (("chosen", self.chosen_strategies), ("rejected", self.rejected_strategies)):
            metrics |= {f"search/{kind}/{strategy}": float(count) for strategy, count in counts.items()}
        return metrics

    def table(self) -> list[tuple[str, str]]:
        """Rows of what and how much."""
        return [(about["heading"], f"{value:.{about['decimals']}f}") for _, value, about in self._numbers()]

    def _numbers(self) -> list[tuple[str, float, Mapping[str, Any]]]:
        """Name, value and metadata of each number that there is."""
        numbers = [(entry.name, getattr(self, entry.name), entry.metadata) for entry in fields(self) if entry.metadata]
        return [number for number in numbers if number[1] is not None]

    def strategy_table(self) -> list[tuple[str, str, str]]:
        """Rows of strategy, preferred replies with it and rejected ones."""
        chosen, rejected = self.chosen_strategies, self.rejected_strategies
        return [(name, str(chosen.get(name, 0)), str(rejected.get(name, 0))) for name in {**chosen, **rejected}]


def compute_statistics(
    dialogues: Iterable[Dialogue], trees: Sequence[Tree], strategies: Sequence[str]
) -> SearchStatistics:
    """Numbers of all trees and of the dialogues that `extract_dialogues` made of them.

    Strategies of the inventory are counted in its order, even where there are none.
    """
    tally = _Tally()
    for dialogue in dialogues:
        tally.add(dialogue)
    values = [(tally.chosen[chosen].value, tally.rejected[other].value) for chosen, other in tally.pairs]
    gaps = [chosen - other for chosen, other in values if chosen is not None and other is not None]
    quartiles = np.quantile(gaps, (0.25, 0.5, 0.75)).tolist() if gaps else [None] * 3
    return SearchStatistics(
        trees=len(trees),
        trees_without_dialogues=len(trees) - len(tally.trees),
        iterations=sum(tree.iterations for tree in trees),
        ended_leaves=sum(tree.count_ended() for tree in trees),
        dialogues=len(tally.turns),
        turns_per_dialogue=fmean(tally.turns or [0]),
        preferred=len(tally.chosen),
        preferred_found=len(tally.chosen) - len(tally.seed),
        preferred_seed=len(tally.seed),
        preferred_alone=len(tally.chosen) - len({chosen for chosen, _ in tally.pairs}),
        rejected=len(tally.rejected),
        pairs=len(tally.pairs),
        pairs_unjudged=len(tally.pairs) - len(gaps),
        pairs_inverted=sum(gap < 0 for gap in gaps),
        **{f"gap_quartile_{number}": value for number, value in enumerate(quartiles, 1)},
        depth_mean=fmean(tally.depth.values() or [0]),
        depth_max=max(tally.depth.values(), default=0),
        chosen_strategies=_count_strategies(tally.chosen.values(), strategies),
        rejected_strategies=_count_strategies(tally.rejected.values(), strategies),
    )


class _Tally:
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

    def _place(self, *parts: object) -> int:
        return self._places.setdefault(parts, len(self._places))


def _count_strategies(replies: Iterable[Reply], strategies: Sequence[str]) -> dict[str, int]:
    counts = Counter(name for reply in replies for name in reply.strategies)
    return {name: counts[name] for name in dict.fromkeys([*strategies, *sorted(counts)])}
