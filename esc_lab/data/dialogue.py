"""Support dialogues: frozen records, their content hash, and the two ways to merge consecutive supporter turns.

A dialogue is a path through a tree: at every supporter turn there is the reply that was given and there may be rejected
replies that could have been given. Dialogues that come from one search tree share `tree_id`; splits, tries and pair
deduplication go by it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

Speaker = Literal["seeker", "supporter"]
Merge = Literal["none", "first", "set"]
_CONTENT = ("turns", "inventory", "situation", "emotion", "problem", "meta")


@dataclass(frozen=True)
class Reply:
    """What one side says: text, and for the supporter the strategies it carries and its search statistics."""

    text: str  # without surrounding white space
    strategies: tuple[str, ...] = ()  # canonical names, most important first; empty for the seeker or where unlabelled
    value: float | None = None  # mean value Q of the search, in [-3, 1] with the published judge; None: not judged
    visits: int | None = None  # N of the search; None: not from one

    def without_words(self) -> Reply:
        """Its first strategy alone."""
        return Reply("", self.strategies[:1])


@dataclass(frozen=True)
class Turn:
    """One message of the dialogue, with the supporter replies that were rejected in its place."""

    speaker: Speaker
    reply: Reply
    rejected: tuple[Reply, ...] = ()


@dataclass(frozen=True)
class Survey:
    """What the seeker answered after the talk, each from 1 to 5; None where it did not (ESConv, Liu et al. 2021)."""

    initial_intensity: int | None = None  # of the emotion, before the talk
    final_intensity: int | None = None  # and after it
    empathy: int | None = None  # how well the supporter understood
    relevance: int | None = None  # how much the replies kept to the topic

    @property
    def relief(self) -> int | None:
        """Drop of the emotion's intensity."""
        if self.initial_intensity is None or self.final_intensity is None:
            return None
        return self.initial_intensity - self.final_intensity


@dataclass(frozen=True)
class Dialogue:
    """A support dialogue. Two dialogues with equal content have equal `id`."""

    turns: tuple[Turn, ...]  # messages in order; neither side has to alternate
    inventory: str  # name of the inventory that its labels come from
    tree_id: str = ""  # shared by all dialogues of one search tree or one seed; by default the dialogue's own id
    situation: str = ""  # the seeker's problem in a sentence or two
    emotion: str = ""  # the corpus' type of emotion
    problem: str = ""  # the corpus' type of problem
    meta: Mapping[str, Any] = field(default_factory=dict)  # what else a corpus brings, JSON types; part of the content
    survey: Survey | None = None  # None: nobody was asked
    where: str = field(default="", compare=False, repr=False)  # file and record it was read from; no part of it

    def __post_init__(self) -> None:
        if not self.tree_id:
            object.__setattr__(self, "tree_id", self.id)

    @cached_property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of the content (turns, inventory and what a corpus says of them)."""
        content = {name: getattr(self, name) for name in _CONTENT}
        # `vars` of records takes a tenth of the time of `asdict`: prompts of the search and of talks ask for ids.
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=vars)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def decisions(self, *, score_opening: bool = False) -> Iterator[int]:
        """Indices of the supporter turns that are decisions.

        The opening (supporter turns before the first seeker turn) is context, not a decision, unless `score_opening`.
        """
        seeker_spoke = score_opening
        for index, turn in enumerate(self.turns):
            if turn.speaker == "seeker":
                seeker_spoke = True
            elif seeker_spoke:
                yield index


def merge_turns(dialogue: Dialogue, policy: Merge) -> Dialogue:
    """Join consecutive turns of the same speaker with a newline.

    `none` keeps supporter turns apart (each is a decision of its own). `first` and `set` join them: the joined reply
    carries the strategies of the first labelled utterance, or the distinct strategies of all, in order. Seeker turns
    are joined under `first` and `set` too. Rejected replies belong to one utterance; they are kept only where nothing
    was joined, since they answer a shorter reply. A joined reply has no value or visits.
    """
    if policy == "none":
        return dialogue
    groups: list[list[Turn]] = []
    for turn in dialogue.turns:
        if groups and groups[-1][0].speaker == turn.speaker:
            groups[-1].append(turn)
        else:
            groups.append([turn])
    turns = tuple(group[0] if len(group) == 1 else _joined(group, policy) for group in groups)
    return dialogue if len(turns) == len(dialogue.turns) else replace(dialogue, turns=turns)


def _joined(group: list[Turn], policy: Merge) -> Turn:
    labelled = [turn.reply.strategies for turn in group if turn.reply.strategies]
    if policy == "first":
        strategies = labelled[0] if labelled else ()
    else:
        strategies = tuple(dict.fromkeys(name for names in labelled for name in names))
    text = "\n".join(turn.reply.text for turn in group)
    return Turn(speaker=group[0].speaker, reply=Reply(text=text, strategies=strategies))
