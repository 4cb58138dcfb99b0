"""How a judge is shown two whole talks, and the planted ones that it is checked on.

The protocol is ESC-Judge's (Madani and Srihari 2025, arXiv 2505.12531): two supporters have talked with the same
seeker, and are compared in each of Hill's stages of helping. The words are data: `conf/talk_pairs/*.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import yaml

from esc_lab.artifacts import READ_ERRORS, fingerprint, read_yaml
from esc_lab.config.compare import TalkPairsConfig
from esc_lab.config.files import read_option
from esc_lab.data.dialogue import Reply, Speaker, Turn
from esc_lab.data.fields import check_keys, check_type, items, require
from esc_lab.errors import UserError
from esc_lab.judge_check.planted_files import find_planted
from esc_lab.prompts import Message, check_wording
from esc_lab.search.role_prompts import RolePrompts, transcript

FORMAT = "esc-lab-planted-talks/1"
POOR = "poor"
_SLOTS = {"system": "", "pair": "first second question form"}


@dataclass(frozen=True)
class Aspect:
    """What supporters are compared in: its name, and the question that the judge is asked."""

    name: str
    question: str


@dataclass(frozen=True)
class TalkPairPrompts:
    """What a judge of talks is asked."""

    aspects: tuple[Aspect, ...]
    wording: Mapping[str, str]
    roles: RolePrompts

    def pair_messages(
        self, first: Sequence[Turn], second: Sequence[Turn], aspect: Aspect, *, json: bool
    ) -> tuple[Message, ...]:
        """Which of two talks is better in an aspect. What is asked comes last: prompts of a pair share the talks."""
        talks = {"first": transcript(first, labels=False), "second": transcript(second, labels=False)}
        form = self.roles.prefer_form(json=json)
        return self._messages(self.wording["pair"].format(**talks, question=aspect.question, form=form))

    def intensity_messages(self, history: Sequence[Turn], question: str) -> tuple[Message, ...]:
        """The question for the intensity, to one who reads the talk and knows nothing else of the seeker."""
        shown = transcript(history, labels=False)
        return self._messages(self.roles.text("conversation", history=shown, request=question))

    def fingerprint(self) -> str:
        """Hash of all words."""
        texts = ("conversation", "prefer_form", "json_form", "correction")
        words = [{name: self.roles.wording[name] for name in texts}, dict(self.wording)]
        return fingerprint([*words, [asdict(aspect) for aspect in self.aspects]])

    def _messages(self, asked: str) -> tuple[Message, ...]:
        return Message("system", self.wording["system"]), Message("user", asked)


def build_talk_pair_prompts(settings: TalkPairsConfig, roles: RolePrompts) -> TalkPairPrompts:
    """The words of a configuration; where it has none, those of `conf/talk_pairs/hill.yaml`.

    Raises:
        UserError: a text is missing or wrong, or an aspect has no name of its own.
    """
    default = read_option("talk_pairs", "hill")
    where = "judge.talk_pairs.aspects"
    aspects = []
    for item, place in items(settings.aspects or default["aspects"], dict, "aspect", where):
        check_keys(item, Aspect.__dataclass_fields__, place)
        aspects.append(Aspect(require(item, "name", str, place), require(item, "question", str, place)))
    if len({aspect.name for aspect in aspects} - {POOR, "overall"}) < len(aspects):
        raise UserError(f"two have one name, or one is called {POOR} or overall", where=where, fix="name them apart")
    wording = check_wording(settings.wording or default["wording"], _SLOTS, "judge.talk_pairs.wording")
    return TalkPairPrompts(tuple(aspects), wording, roles)


@dataclass(frozen=True)
class PlantedPair:
    """Two talks with the seeker `id`, of which the first is better in an aspect.

    `other` is what the second is good at instead, or `POOR`.
    """

    id: str
    aspect: Aspect
    other: str
    better: tuple[Turn, ...]
    worse: tuple[Turn, ...]


def read_planted_pairs(settings: TalkPairsConfig, aspects: Sequence[Aspect]) -> list[PlantedPair]:
    """Each talk that is good in an aspect beside every other talk with its seeker; none where an aspect has no talks.

    So a talk is as often the better one as the worse one of those that are good at something, and a judge that likes
    some talks more, whatever it is asked, is right in half of these pairs.

    Raises:
        UserError: the file cannot be read, or a talk is missing or does not go from the supporter to and fro.
    """
    path = find_planted(settings.planted or "hill")
    where = str(path)
    try:
        content = read_yaml(path)
    except (*READ_ERRORS, yaml.YAMLError) as error:
        raise UserError(f"cannot be read: {error}", where=where, fix="correct judge.talk_pairs.planted") from error
    data = check_type(content, dict, "the file", where)
    if (version := require(data, "format", str, where)) != FORMAT:
        raise UserError(f"unknown format '{version}'", where=where, fix=f"write format: {FORMAT}")
    pairs = []
    for item, place in items(require(data, "talks", list, where), dict, "talk", where):
        if any(aspect.name not in item for aspect in aspects):
            return []
        name, seeker = require(item, "id", str, place), require(item, "seeker", str, place)
        talks = {key: _talk(seeker, item, key, f"{place} ({name})") for key in (*(a.name for a in aspects), POOR)}
        for aspect, (other, worse) in product(aspects, talks.items()):
            if other != aspect.name:
                pairs.append(PlantedPair(name, aspect, other, talks[aspect.name], worse))
    return pairs


def _talk(seeker: str, data: Mapping[str, Any], key: str, where: str) -> tuple[Turn, ...]:
    """The talk: the seeker's first message, then the supporter's and the seeker's in turn."""
    texts = [text for text, _ in items(require(data, key, list, where), str, "message", f"{where}, {key}")]
    if not texts:
        raise UserError(f"'{key}' has no messages", where=where, fix="begin with one of the supporter")
    sides: tuple[Speaker, Speaker] = ("supporter", "seeker")
    return (Turn("seeker", Reply(seeker)), *(Turn(sides[n % 2], Reply(text)) for n, text in enumerate(texts)))
