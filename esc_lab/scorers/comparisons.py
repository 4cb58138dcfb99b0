"""What a reward model learns from: given replies beside foils, drawn by kind anew in each epoch.

A judge could tell foils by themselves, by their length, say, or by how often their strategy is given. So what is drawn
from other turns are given replies again: each kind's foils are the same sort of text as what they are compared with. A
foil of the same dialogue is one of the next replies after another message: near, so that it is hard to tell, and later,
since a repetition of the history would give it away. A given strategy is compared with those of random other turns, an
equal one with nothing: so what fits best is a difference of scores that tells how many times likelier each strategy is
here than anywhere (its pointwise mutual information), and none scores high by being given often.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile
from typing import NamedTuple, TypeAlias

import numpy as np

from esc_lab.config.reward import RATED, RewardConfig
from esc_lab.data.dialogue import Dialogue, Reply
from esc_lab.errors import UserError
from esc_lab.seeds import derive_seed
from esc_lab.statistics.correlation import center
from esc_lab.statistics.intervals import FloatArray

log = logging.getLogger(__name__)
_Said: TypeAlias = tuple[str, str, tuple[str, ...]]  # speaker, text and strategies of a turn
_Path: TypeAlias = tuple[str | _Said, ...]  # a tree's name, and what was said from its beginning on
NEAR = 3  # replies after a given one that are its foils of the same dialogue


class Comparison(NamedTuple):
    """Two replies to the turns before index `turn` of a dialogue; the first is the better one, or they are a tie."""

    turn: int
    better: Reply
    worse: Reply
    kind: str
    tie: bool = False


@dataclass
class ComparisonPool:
    """What the dialogues of a split offer to compare.

    Dialogues of a tree share turns. What several of them offer at one is offered once, by the first that has it.

    Args:
        dialogues: of the split; those of one tree are never foreign to each other.
        own_replies: the same dialogues with what the model wrote as their rejected replies; None where it wrote none.

    Attributes:
        kinds: by dialogue and decision that no dialogue of its tree before it has, its comparisons of each kind.
        shared: decisions that a dialogue of the tree before it has.
    """

    dialogues: Sequence[Dialogue]
    settings: RewardConfig
    own_replies: Sequence[Dialogue] | None = None
    kinds: list[dict[int, dict[str, list[tuple[Reply, Reply, bool]]]]] = field(init=False)
    shared: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.kinds = [{} for _ in self.dialogues]
        first: dict[_Path, int] = {}
        offered: set[tuple[_Path, str, frozenset[_Said]]] = set()
        for number, dialogue in enumerate(self.dialogues):
            said = [_say(turn.speaker, turn.reply) for turn in dialogue.turns]
            for turn in dialogue.decisions():
                history: _Path = (dialogue.tree_id, *said[:turn])
                path: _Path = (*history, said[turn])
                own = first.setdefault(path, number)
                self.shared += own != number
                choices = self.kinds[own].setdefault(turn, {})
                for kind, compared in self._choices(number, turn).items():
                    for each in compared:
                        key = (history, kind, frozenset(_say("supporter", reply) for reply in each[:2]))
                        if key not in offered:
                            offered.add(key)
                            choices.setdefault(kind, []).append(each)
        self._given = [
            (dialogue.tree_id, dialogue.turns[turn].reply)
            for dialogue, turns in zip(self.dialogues, self.kinds, strict=True)
            for turn in turns
        ]
        self._trees = len({tree for tree, _ in self._given})
        self._strategies = [reply.strategies[0] for _, reply in self._given if reply.strategies]

    @property
    def shares(self) -> Mapping[str, float]:
        return {kind: share for kind, share in self.settings.kinds.items() if share > 0}

    def counts(self) -> dict[str, int]:
        """Decisions that have foils of each kind."""
        counts = dict.fromkeys(self.shares, 0)
        for turns in self.kinds:
            for choices in turns.values():
                for kind in counts:
                    counts[kind] += self._trees > 1 if kind == "other_dialogue" else bool(choices.get(kind))
        if "strategy" in counts and len(set(self._strategies)) > 1:
            counts["strategy"] = len(self._strategies)
        return counts

    def check(self) -> None:
        """Raises a UserError if there is nothing to compare."""
        if not any(self.counts().values()):
            fix = "give more dialogues, or other kinds: reward.kinds={same_dialogue: 1, other_dialogue: 1}"
            what = f"nothing to compare in {len(self.dialogues)} training dialogues: no given reply has a foil"
            raise UserError(what, where=f"reward.kinds={dict(self.shares)}", fix=fix)

    def draw(self, number: int, seed: int) -> list[Comparison]:
        """The comparisons of a dialogue: at each decision up to `foils` foils, each of a kind drawn by its share.

        Foils have other words than what they are compared with.
        """
        dialogue = self.dialogues[number]
        chance = np.random.default_rng(derive_seed(seed, "comparisons", dialogue.id))
        drawn = []
        for turn, choices in self.kinds[number].items():
            offers = {kind: list(choices.get(kind, ())) for kind in self.shares}
            given = dialogue.turns[turn].reply
            if "strategy" in offers and given.strategies:
                others = [self._strategies[chance.integers(len(self._strategies))] for _ in range(self.settings.foils)]
                named = [Reply("", (other,)) for other in others if other not in given.strategies]
                offers["strategy"] = [(given.without_words(), other, False) for other in named]
            if "other_dialogue" in offers and self._trees > 1:
                foreign = [self._foreign(dialogue.tree_id, chance) for _ in range(self.settings.foils)]
                offers["other_dialogue"] = [(given, reply, False) for reply in foreign if _differ(given, reply)]
            for _ in range(self.settings.foils):
                left = [kind for kind, offered in offers.items() if offered]
                if not left:
                    break
                weights = np.array([self.shares[kind] for kind in left])
                kind = left[chance.choice(len(left), p=weights / weights.sum())]
                better, worse, tie = offers[kind].pop(chance.integers(len(offers[kind])))
                drawn.append(Comparison(turn, better, worse, kind, tie))
        return drawn

    def _foreign(self, tree: str, chance: np.random.Generator) -> Reply:
        while True:
            other, reply = self._given[chance.integers(len(self._given))]
            if other != tree:
                return reply

    def _choices(self, number: int, turn: int) -> dict[str, list[tuple[Reply, Reply, bool]]]:
        """Better and worse reply, and whether they are a tie, of each comparison within the dialogue."""
        dialogue = self.dialogues[number]
        given, rejected = dialogue.turns[turn].reply, dialogue.turns[turn].rejected
        answered = dropwhile(lambda each: each.speaker == "supporter", dialogue.turns[turn:])
        later = [each.reply for each in answered if each.speaker == "supporter"][:NEAR]
        written = self.own_replies[number].turns[turn].rejected if self.own_replies else ()
        rated = [reply for reply in (given, *rejected) if reply.value is not None]
        foils: dict[str, Sequence[Reply]] = {"same_dialogue": later, "rejected": rejected, "own_reply": written}
        choices = {
            kind: [(given, reply, False) for reply in replies if _differ(given, reply)]
            for kind, replies in foils.items()
        }
        pairs = [(one, other) for place, one in enumerate(rated) for other in rated[:place] if _differ(one, other)]
        return {**choices, RATED: [self._rate(one, other) for one, other in pairs]}

    def _rate(self, one: Reply, other: Reply) -> tuple[Reply, Reply, bool]:
        assert one.value is not None
        assert other.value is not None
        better, worse = (one, other) if one.value >= other.value else (other, one)
        return better, worse, abs(one.value - other.value) <= self.settings.tie_margin


def _say(speaker: str, reply: Reply) -> _Said:
    return speaker, reply.text, reply.strategies


def _differ(one: Reply, other: Reply) -> bool:
    return one.text.split() != other.text.split()


def hold_out_rated(
    splits: Mapping[str, list[Dialogue]], settings: RewardConfig, seed: int
) -> dict[str, list[Dialogue]]:
    """The splits, with some training trees as validation data if it needs values and has none.

    What a search leaves is training data alone; without its values nobody would see whether they are learnt.
    """
    train, validation = splits["train"], splits.get("val", [])
    if not settings.kinds.get(RATED) or not settings.held_out or _rated_trees(validation):
        return dict(splits)
    trees = _rated_trees(train)
    if len(trees) < 2:
        log.warning("%d training trees have values: none is left for validation", len(trees))
        return dict(splits)
    count = min(max(round(settings.held_out * len(trees)), 1), len(trees) - 1)
    held = {*np.random.default_rng(derive_seed(seed, "held-out trees")).permutation(trees)[:count].tolist()}
    log.info("%d of %d training trees with values are validation data", count, len(trees))
    kept = [dialogue for dialogue in train if dialogue.tree_id not in held]
    return {**splits, "train": kept, "val": [*validation, *(each for each in train if each.tree_id in held)]}


def _rated_trees(dialogues: Sequence[Dialogue]) -> list[str]:
    """Trees with two replies to one history that have values."""
    rated = {
        dialogue.tree_id
        for dialogue in dialogues
        for turn in (dialogue.turns[index] for index in dialogue.decisions())
        if sum(reply.value is not None for reply in (turn.reply, *turn.rejected)) > 1
    }
    return sorted(rated)


def outcome_weights(dialogues: Sequence[Dialogue], strength: float) -> FloatArray:
    """Weight [N] of each dialogue: 1 + strength x the relief of its seeker in standard deviations, not below 0.

    A dialogue without a survey weighs 1.
    """
    relief = np.array([np.nan if each.survey is None or each.survey.relief is None else each.survey.relief
                       for each in dialogues], dtype=np.float64)  # fmt: skip
    known = ~np.isnan(relief)
    weights = np.ones(len(dialogues))
    if strength and known.any() and (spread := relief[known].std()) > 0:
        weights[known] = np.maximum(1 + strength * center(relief[known]) / spread, 0)
    return weights
