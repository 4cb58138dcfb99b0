"""What a judge is tried on: the reply that was given beside a foil, for each kind of foil.

Foils of other dialogues are told by the topic, which words alone give away. The hard kinds keep the topic: the
supporter's next reply in the same dialogue, a reply that was rejected there, the right words under a wrong strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.errors import UserError
from esc_lab.seeds import derive_seed

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

FOREIGN, NEXT, REJECTED, STRATEGY, OWN = "foreign", "same_dialogue", "rejected", "wrong_strategy", "own_reply"
RATED = "rated"
KINDS: Mapping[str, str] = {
    FOREIGN: "replies of other dialogues",
    NEXT: "the next reply of the same dialogue",
    REJECTED: "rejected replies of the same turn",
    STRATEGY: "the same words under a wrong strategy",
    OWN: "what a model writes itself under another strategy",  # only where somebody lets it write
    RATED: "replies of the same turn with a lower value",  # only of who learns from values
}
HARD = (NEXT, REJECTED, STRATEGY)


class JudgeCase(NamedTuple):
    """Two conversations that end in the given reply and in the foil, and the tree that they are of."""

    given: tuple[Turn, ...]
    foil: tuple[Turn, ...]
    tree_id: str


class _Context(NamedTuple):
    """A given reply with what was said before it, the next reply to another message, and what was rejected."""

    tree_id: str
    history: tuple[Turn, ...]
    given: Turn
    following: Turn | None
    rejected: tuple[Turn, ...]

    def case(self, foil: Turn) -> JudgeCase:
        return JudgeCase((*self.history, self.given), (*self.history, foil), self.tree_id)


def draw_cases(dialogues: Sequence[Dialogue], count: int, seed: int) -> dict[str, list[JudgeCase]]:
    """Cases of each kind that the dialogues have, at most `count`, drawn from the seed, as evenly over trees as can be.

    The contexts of a kind come in the same drawn order, so kinds share most of their given replies. An opening by the
    supporter is no context, no reply and no part of a history. Turns that several dialogues of a tree share count once.

    - foreign: the given replies of other trees, each once, so that a judge that looks at the reply alone has an AUC of
      one half.
    - same_dialogue: the supporter's next reply after another message of the seeker. It is nowhere in the history, so
      that no repetition gives it away.
    - rejected: one of the replies that were rejected there.
    - wrong_strategy: the given words under the strategy of another context, each strategy as often as it was given, so
      that a judge that looks at the label alone has an AUC of one half.

    Raises:
        UserError: `count` is below 2, or fewer than two trees have a supporter turn after the opening.
    """
    if count < 2:
        raise UserError(f"{count} given replies cannot be exchanged", fix="check the judge on 2 or more")
    chance = np.random.default_rng(derive_seed(seed, "judge check"))
    by_tree = _collect_contexts(dialogues)
    order = [[*by_tree][index] for index in chance.permutation(len(by_tree))]
    trees = {name: [by_tree[name][index] for index in chance.permutation(len(by_tree[name]))] for name in order}
    exchanged = _exchange(trees, count)
    if not exchanged:
        fix = "give more dialogues, or leave the check of the judge out"
        raise UserError("replies cannot be exchanged: fewer than two dialogues have supporter turns", fix=fix)
    following = _spread(trees, count, lambda context: context.following)
    rejected = _spread(trees, count, lambda context: context.rejected)
    cases = {
        FOREIGN: [context.case(other.given) for context, other in exchanged],
        NEXT: [context.case(context.following) for context in following if context.following],
        REJECTED: [context.case(context.rejected[chance.integers(len(context.rejected))]) for context in rejected],
        STRATEGY: _exchange_strategies(_spread(trees, count, lambda context: context.given.reply.strategies)),
    }
    return {kind: drawn for kind, drawn in cases.items() if drawn}


def add_claim(case: JudgeCase, claim: str, speaker: str) -> JudgeCase:
    """The given reply as it is, and as foil with a claim in the last message of that side."""
    turns = list(case.given)
    place = max(number for number, turn in enumerate(turns) if turn.speaker == speaker)
    reply = turns[place].reply
    turns[place] = Turn(turns[place].speaker, Reply(f"{reply.text} {claim}", reply.strategies))
    return JudgeCase(case.given, tuple(turns), case.tree_id)


def _collect_contexts(dialogues: Sequence[Dialogue]) -> dict[str, list[_Context]]:
    """By tree, those that have any."""
    by_tree: dict[str, dict[tuple[tuple[Turn, ...], Turn], _Context]] = {}
    for dialogue in dialogues:
        turns = [Turn(turn.speaker, turn.reply) for turn in dialogue.turns]
        opening = next((index for index, turn in enumerate(turns) if turn.speaker == "seeker"), len(turns))
        for index in dialogue.decisions():
            history, given = tuple(turns[opening:index]), turns[index]
            answer = next((later for later in range(index, len(turns)) if turns[later].speaker == "seeker"), len(turns))
            following = next((turn for turn in turns[answer:] if turn.speaker == "supporter"), None)
            rejected = [Turn("supporter", reply) for reply in dialogue.turns[index].rejected]
            context = _Context(
                dialogue.tree_id,
                history,
                given,
                following if following and _differ(following, given) else None,
                tuple(turn for turn in rejected if _differ(turn, given)),
            )
            by_tree.setdefault(dialogue.tree_id, {}).setdefault((history, given), context)
    return {name: list(contexts.values()) for name, contexts in by_tree.items()}


def _differ(one: Turn, other: Turn) -> bool:
    return one.reply.text.split() != other.reply.text.split()


def _exchange_strategies(contexts: Sequence[_Context]) -> list[JudgeCase]:
    by_label: dict[str, list[_Context]] = {}
    for context in contexts:
        by_label.setdefault(context.given.reply.strategies[0], []).append(context)
    pairs = [
        (context, other.given.reply.strategies[0]) for context, other in _exchange(by_label, max(2, len(contexts)))
    ]
    return [
        context.case(Turn("supporter", Reply(context.given.reply.text, (label,))))
        for context, label in pairs
        if label not in context.given.reply.strategies
    ]


def _spread(
    trees: Mapping[str, Sequence[_Context]], count: int, wanted: Callable[[_Context], object]
) -> list[_Context]:
    """At most `count` contexts with what is wanted, as evenly over trees as they allow."""
    rows = [[context for context in contexts if wanted(context)] for contexts in trees.values()]
    longest = max(map(len, rows), default=0)
    return [row[depth] for depth in range(longest) for row in rows if depth < len(row)][:count]


def _exchange(groups: Mapping[K, Sequence[T]], count: int) -> list[tuple[T, T]]:
    """At most `count` items, as evenly over groups as they allow, each with one of another group; each is that once."""
    sizes, largest = _sizes([len(items) for items in groups.values()], count)
    picked = [item for items, size in zip(groups.values(), sizes, strict=True) for item in items[:size]]
    # The items of a group stand together, at most half of all are one group's, so this shift leads out of every group.
    return [(item, picked[(index + largest) % len(picked)]) for index, item in enumerate(picked)]


def _sizes(available: Sequence[int], count: int) -> tuple[list[int], int]:
    """How many items to take of each group, and the largest of these numbers; no group gets more than half of all."""
    sizes, largest = [0] * len(available), 0
    while True:
        row = [index for index, there in enumerate(available) if there > largest][: count - sum(sizes)]
        if not row or sum(sizes) + len(row) < 2 * (largest + 1):
            return sizes, largest
        largest += 1
        for index in row:
            sizes[index] += 1
