"""A judge of whole talks at work: the check on planted talks, pairs in each aspect, the intensity of the emotion."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from esc_lab.config import Config
from esc_lab.data.dialogue import Dialogue, Turn
from esc_lab.errors import UserError
from esc_lab.evaluation.arena.persona import ask_intensity, build_words
from esc_lab.judge_check.check import Foils, JudgeCheck
from esc_lab.judge_check.measures import KindCheck, check_kind, measure_share
from esc_lab.judging.results import Pair
from esc_lab.judging.session import JUDGE, check_gates, compare_both_ways, open_judge
from esc_lab.judging.talk_pairs import POOR, Aspect, PlantedPair, build_talk_pair_prompts, read_planted_pairs
from esc_lab.judging.talks import TalkPairInputs, TalkRun
from esc_lab.metrics.prediction_table import Key
from esc_lab.runs.layout import TALK_PAIRS
from esc_lab.search.calls import Calls, gather_all
from esc_lab.search.journal import describe_role
from esc_lab.search.role_prompts import build_role_prompts
from esc_lab.search.roles import leave_out_too_long
from esc_lab.terminal import show_progress

log = logging.getLogger(__name__)
_OTHER = "other_aspect"
_NAMES = {POOR: "talks that are poor at all of it", _OTHER: "talks that are good at something else"}


@dataclass(frozen=True)
class TalkPairAnswers:
    """What the judge said.

    Attributes:
        gates: the check of the judge in pairs; empty where it is asked for no pairs, or cannot be checked.
        forced: reasons not to believe it that were overruled.
        pairs: of each run but the baseline, by label, and each aspect, in the order of the talks.
        intensity: of each run, by label, in the order of the talks: after the seeker's first message, then after each
            turn of the supporter; empty if it is not asked for.
    """

    gates: Sequence[JudgeCheck]
    forced: Sequence[str]
    pairs: Mapping[str, Mapping[str, Sequence[Pair]]]
    intensity: Mapping[str, Sequence[Sequence[float | None]]]
    seconds: float


class TalkPairSession:
    """One judge of talks, and all that it is asked. Attributes: see `JudgeSession`."""

    def __init__(self, cfg: Config, inputs: TalkPairInputs, calls: Calls) -> None:
        self.cfg, self.inputs, self.calls = cfg, inputs, calls
        self.prompts = build_talk_pair_prompts(cfg.judge.talk_pairs, build_role_prompts(inputs.inventory, cfg.llm))
        self.counts: Counter[str] = Counter()
        self.settings = describe_role(cfg.llm.judge, calls.clients[JUDGE])
        self.config: dict[str, Any] = {
            "seed": cfg.seed,
            "roles": {JUDGE: self.settings},
            "aspects": [asdict(aspect) for aspect in self.prompts.aspects],
            "prompts": self.prompts.fingerprint(),
        }

    async def judge(self) -> TalkPairAnswers:
        """Check the judge, then have it judge.

        Raises:
            UserError: it fails its check and is not forced, an answer cannot be had, or the budget is spent.
        """
        cfg, inputs, started = self.cfg, self.inputs, time.time()
        self.roles = open_judge(cfg, self.calls, self.config, inputs.inventory, self.counts, TALK_PAIRS)
        compared = inputs.candidates if cfg.judge.pairwise else []
        gates, failures = await self._check() if compared else ([], [])
        rated = inputs.runs if cfg.judge.intensity else []
        questions: list[Awaitable[Any]] = [
            self._compare(run, key, aspect)
            for run in compared
            for aspect in self.prompts.aspects
            for key in inputs.keys
        ]
        questions += [self._rate(run, key) for run in rated for key in inputs.keys]
        with show_progress("judging talks", len(questions)) as update:
            gathered = await gather_all(questions, lambda number: update(number, self.calls.spent.text))
        answers = iter(gathered)
        pairs = {
            run.label: {aspect.name: [next(answers) for _ in inputs.keys] for aspect in self.prompts.aspects}
            for run in compared
        }
        return TalkPairAnswers(
            gates=gates,
            forced=[*inputs.conflicts, *failures],
            pairs=pairs,
            intensity={run.label: [next(answers) for _ in inputs.keys] for run in rated},
            seconds=time.time() - started,
        )

    async def _check(self) -> tuple[list[JudgeCheck], list[str]]:
        planted = read_planted_pairs(self.cfg.judge.talk_pairs, self.prompts.aspects)
        if not planted:
            names = ", ".join(aspect.name for aspect in self.prompts.aspects)
            what = f"the judge of talks cannot be checked: there are no planted talks for {names}"
            return [], check_gates([], self.cfg.judge.force, unchecked=[f"{what} (judge.talk_pairs.planted)"])
        outcomes = await asyncio.gather(*(self._ask(pair.aspect, pair.better, pair.worse) for pair in planted))
        gate = check_planted(planted, [pair.outcome for pair in outcomes], self.cfg.judge.min_auc)
        log.log(logging.INFO if gate.believed else logging.WARNING, "%s", gate.verdict)
        return [gate], check_gates([gate], self.cfg.judge.force, self.counts["judge/too_long"])

    async def _compare(self, run: TalkRun, key: Key, aspect: Aspect) -> Pair:
        return await self._ask(aspect, run.talks[key].turns, self.inputs.baseline.talks[key].turns)

    async def _ask(self, aspect: Aspect, talk: Sequence[Turn], other: Sequence[Turn]) -> Pair:
        json = JUDGE not in self.roles.scoring

        async def prefer(first: Sequence[Turn], second: Sequence[Turn]) -> float | None:
            messages = self.prompts.pair_messages(first, second, aspect, json=json)
            return await leave_out_too_long(self.roles.prefer_first(messages), JUDGE, self.counts)

        same = _texts(talk) == _texts(other)
        return await compare_both_ways(prefer, talk, other, count_characters(talk) - count_characters(other), same)

    async def _rate(self, run: TalkRun, key: Key) -> list[float | None]:
        """The intensity after each turn at which the seeker's model is asked for it."""
        talk, words = run.talks[key], build_words(run.config["converse"].get("wording") or {})
        question = words.ask_intensity(talk.emotion, json=JUDGE not in self.roles.scoring)
        asked = [
            ask_intensity(self.roles, JUDGE, self.prompts.intensity_messages(talk.turns[:end], question))
            for end in find_rated_turns(talk)
        ]
        return [*await asyncio.gather(*(leave_out_too_long(each, JUDGE, self.counts) for each in asked))]


def find_rated_turns(talk: Dialogue) -> list[int]:
    """After how many turns of a talk the intensity is asked for: the seeker's first, then each of the supporter's, the
    last time at the end, which may be a message of the seeker. The greeting comes before the first.
    """
    first = next((number for number, turn in enumerate(talk.turns) if turn.speaker == "seeker"), None)
    if first is None:
        return []
    later = [n for n, turn in enumerate(talk.turns) if n > first and turn.speaker == "supporter"]
    rated = [number + 1 for number in (first, *later)]
    return [*rated[:-1], len(talk.turns)] if later else rated


def count_characters(talk: Sequence[Turn]) -> int:
    """Length of what the supporter says."""
    return sum(len(turn.reply.text) for turn in talk if turn.speaker == "supporter")


def check_planted(planted: Sequence[PlantedPair], outcomes: Sequence[float | None], min_auc: float) -> JudgeCheck:
    """The check of a judge in pairs of talks, from its outcome for the better talk of each.

    Talks that are poor at everything are the easy kind. Those that are good at something else are the hard one: there
    a judge that does not heed what it is asked is right in half of the pairs, whatever talks it likes. Beside these,
    each aspect. The floor is what the longer talk would give.
    """
    answered = [(pair, outcome) for pair, outcome in zip(planted, outcomes, strict=True) if outcome is not None]
    kinds: dict[str, list[tuple[PlantedPair, float]]] = {POOR: [], _OTHER: []}
    for pair, outcome in answered:
        kinds[POOR if pair.other == POOR else _OTHER].append((pair, outcome))
        kinds.setdefault(pair.aspect.name, []).append((pair, outcome))
    names = {**_NAMES, **{name: f"all, in {name}" for name in kinds if name not in _NAMES}}
    foils = Foils(POOR, (_OTHER,), names, "planted talks", "lengths", "if the longer one wins")
    found = {kind: _check_kind(asked) for kind, asked in kinds.items() if asked}
    return JudgeCheck("pairwise", found, min_auc=min_auc, foils=foils)


def _check_kind(asked: Sequence[tuple[PlantedPair, float]]) -> KindCheck:
    scores = np.array([(outcome, 1 - outcome) for _, outcome in asked])
    lengths = np.array([[count_characters(talk) for talk in (pair.better, pair.worse)] for pair, _ in asked])
    return check_kind(scores, lengths.astype(np.float64), [pair.id for pair, _ in asked], measure_share)


def _texts(talk: Sequence[Turn]) -> list[tuple[str, str]]:
    return [(turn.speaker, " ".join(turn.reply.text.split())) for turn in talk]


def check_talk_settings(cfg: Config, inputs: TalkPairInputs) -> None:
    """Raises a UserError if there is nothing to ask of these talks, or the judge had a part in them."""
    if inputs.conflicts and not cfg.judge.force:
        fix = "another model as judge, or judge.force=true, which is said with the results"
        raise UserError("; ".join(inputs.conflicts), where="llm.judge", fix=fix)
    if cfg.llm.judge.client == "reward":
        fix = "another llm.judge.client"
        raise UserError("a reward model values single replies, not whole talks", where="llm.judge.client", fix=fix)
    if cfg.judge.question != "help":
        raise UserError("whole talks follow no one strategy", where="judge.question", fix="leave it out")
    if not (cfg.judge.intensity or (cfg.judge.pairwise and inputs.candidates)):
        fix = "name a second run, or judge.intensity=true"
        raise UserError("one run makes no pair of talks", where="judge.runs", fix=fix)
