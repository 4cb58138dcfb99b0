"""Whether a judge is believed: does it tell given replies from foils, better than their words alone do?

The rule: against replies of other dialogues its AUC (of a judge in pairs the share that it gets right) reaches a limit,
with an interval above one half; and on a hard kind at least the interval of its difference to the floor is above 0. The
floor is what the tf-idf similarity of history and reply reaches on the same cases, or one half where that is more.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np

from esc_lab.artifacts import replace_nan
from esc_lab.data.dialogue import Dialogue, Survey, Turn
from esc_lab.judge_check.cases import FOREIGN, HARD, KINDS, JudgeCase, add_claim, draw_cases
from esc_lab.judge_check.measures import (
    MIN_DIALOGUES,
    ClaimCheck,
    KindCheck,
    Measure,
    check_claim,
    check_kind,
    check_preferred_claim,
    measure_share,
)
from esc_lab.judge_check.word_similarity import WordSimilarity
from esc_lab.statistics.auc import measure_auc
from esc_lab.statistics.correlation import spearman_interval
from esc_lab.statistics.intervals import FloatArray, Interval

DRAWS = 2000  # of the bootstrap of correlations
MIN_AUC = 0.6
OUTCOMES = {"relief": "drop of the emotion's intensity", "empathy": "empathy", "relevance": "relevance"}
PLACES = {"supporter": "the reply", "seeker": "the seeker's message"}

Conversation: TypeAlias = Sequence[Turn]
Score: TypeAlias = Callable[[Conversation], Awaitable[float | None]]
# Outcome for the first of two replies to a history: 1, 0, or 0.5 for a tie.
Prefer: TypeAlias = Callable[[Conversation, Turn, Turn], Awaitable[float | None]]


@dataclass(frozen=True)
class Foils:
    """Which kinds of foils a check has, and the words for what it compares.

    Attributes:
        easy: the kind on which a limit has to be reached.
        hard: kinds of which one has to be told better than the floor does.
        names: of all kinds, in the plural.
        given: what foils are told from.
        floor: whose the floor is, and `floor_note` what it does.
    """

    easy: str = FOREIGN
    hard: Sequence[str] = HARD
    names: Mapping[str, str] = field(default_factory=lambda: KINDS)
    given: str = "given replies"
    floor: str = "words alone"
    floor_note: str = "of a judge that only counts the words a reply shares with its talk"


@dataclass(frozen=True)
class JudgeCheck:
    """The check of a judge (`rubric` or `pairwise`).

    Attributes:
        kinds: by kind of foil, those with a usable answer.
        claims: by the side in whose message the claim stands.
        outcomes: Spearman's correlation over dialogues of the mean score of given replies with the seeker's survey.
        surveys: dialogues with one.
        min_auc: the limit against the easy kind of foils, replies of other dialogues.
    """

    judge: str
    kinds: Mapping[str, KindCheck]
    claims: Mapping[str, ClaimCheck] = field(default_factory=dict)
    outcomes: Mapping[str, Interval] = field(default_factory=dict)
    surveys: int = 0
    min_auc: float = MIN_AUC
    foils: Foils = Foils()

    @property
    def measure(self) -> str:
        return "AUC" if self.judge == "rubric" else "share"

    @property
    def believed(self) -> bool:
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Why it is not believed."""
        names, easy = self.foils.names, self.kinds.get(self.foils.easy)
        hard = [kind for kind in self.foils.hard if kind in self.kinds]
        if easy is None:
            return ["no usable answer"]
        reasons = []
        if easy.dialogues < MIN_DIALOGUES:
            reasons.append(f"{easy.dialogues} dialogues say too little of others, it takes {MIN_DIALOGUES}")
        if not (easy.value.value >= self.min_auc and easy.value.low > 0.5):
            told = f"{self.measure} {easy.value.text(2)} against {names[self.foils.easy]}"
            reasons.append(f"{told}; it takes {self.min_auc:g} and an interval above 0.5")
        if not any(self.kinds[kind].above.low > 0 for kind in hard):
            shown = "; ".join(f"against {names[kind]} {self.kinds[kind].above.text(2, '+')}" for kind in hard)
            reasons.append(f"not above what {self.foils.floor} tell: {shown or 'no hard cases to ask'}")
        return reasons

    @property
    def verdict(self) -> str:
        """`rubric judge: believed, ...`, in a line."""
        told = ", ".join(
            f"{self.measure} {check.value.text(2)} ({self.foils.floor} {check.floor.value:.2f}) against "
            f"{self.foils.names[kind]}"
            for kind, check in self.kinds.items()
        )
        return f"{self.judge} judge: {self._belief}{f', {told}' if self.believed else ''}"

    @property
    def _belief(self) -> str:
        return "believed" if self.believed else f"NOT believed, {' and '.join(self.reasons)}"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headings, and a row for each kind."""
        foils = self.foils
        heads = [f"{foils.given} against", self.measure, foils.floor, "above that", "contexts", "dialogues"]
        rows = [
            [foils.names[kind], check.value.text(2), check.floor.text(2), check.above.text(2, "+"), str(check.contexts),
             str(check.dialogues)]
            for kind, check in self.kinds.items()
        ]  # fmt: skip
        return heads, rows

    def column_notes(self) -> list[str]:
        """What the columns are."""
        what = "has the higher score than a foil" if self.judge == "rubric" else "wins against a foil"
        return [
            f"{self.foils.given} against: which foils, that should be found worse.",
            f"{self.measure}: how often one of the {self.foils.given} {what}; 0.5 = by chance. In brackets 95 % "
            "intervals over dialogues.",
            f"{self.foils.floor}: the same {self.foils.floor_note}: the floor.",
            "above that: the difference to it, or to 0.5; above 0 with its whole interval: it knows more.",
            "contexts, dialogues: where it was asked, and the dialogues that they are of.",
        ]

    def notes(self) -> list[str]:
        """Sentences on what else was measured, and the verdict."""
        notes = []
        for side, claim in self.claims.items():
            what = "raises its score" if self.judge == "rubric" else "makes it the better one"
            lift = "" if math.isnan(claim.lift.value) else f", by {claim.lift.text(2, '+')} on average"
            share = f"in {claim.share.text(2)} of {claim.contexts} contexts"
            notes.append(f"A good rating written into {PLACES[side]} {what} {share}{lift}.")
        if self.outcomes:
            shown = ", ".join(f"{OUTCOMES[name]} {found.text(2)}" for name, found in self.outcomes.items())
            notes.append(f"Spearman's correlation with the seekers' survey over {self.surveys} dialogues: {shown}.")
        return [*notes, f"{self._belief[0].upper()}{self._belief[1:]}."]

    def record(self) -> dict[str, Any]:
        """In JSON types; what is not a number is None."""
        verdict = {"believed": self.believed, "reasons": self.reasons, "verdict": self.verdict}
        return {**{name: value for name, value in replace_nan(asdict(self)).items() if name != "foils"}, **verdict}

    def metrics(self) -> dict[str, float]:
        """Flat, without what is not known."""
        metrics = {"believed": float(self.believed)}
        for kind, check in self.kinds.items():
            values = {"": check.value.value, "/low": check.value.low, "/high": check.value.high}
            values |= {"/floor": check.floor.value, "/above": check.above.value, "/above_low": check.above.low}
            metrics |= {f"{kind}{name}": value for name, value in values.items()}
            metrics[f"{kind}/contexts"] = float(check.contexts)
        for side, claim in self.claims.items():
            metrics |= {f"claim/{side}/share": claim.share.value, f"claim/{side}/lift": claim.lift.value}
        metrics |= {f"survey/{name}": found.value for name, found in self.outcomes.items()}
        return {name: float(value) for name, value in metrics.items() if not math.isnan(value)}


async def check_rubric(
    score: Score, dialogues: Sequence[Dialogue], count: int, claim: str, seed: int, min_auc: float = MIN_AUC
) -> JudgeCheck:
    """Have a judge score given replies and foils, all at once.

    Args:
        score: of the last message of a conversation.
        count: contexts of each kind.
        claim: what a message may say to get a better score.

    Raises:
        UserError: see `draw_cases`.
    """
    cases = draw_cases(dialogues, count, seed)
    claims = {side: [add_claim(case, claim, side) for case in cases[FOREIGN]] for side in PLACES}
    conversations = dict.fromkeys(
        talk for drawn in (*cases.values(), *claims.values()) for case in drawn for talk in case[:2]
    )
    scores = dict(zip(conversations, await asyncio.gather(*map(score, conversations)), strict=True))

    def pairs(drawn: Sequence[JudgeCase]) -> list[tuple[JudgeCase, float, float]]:
        asked = [(case, scores[case.given], scores[case.foil]) for case in drawn]
        return [(case, given, foil) for case, given, foil in asked if given is not None and foil is not None]

    given = {case.given: case.tree_id for drawn in cases.values() for case in drawn}
    by_tree: dict[str, list[float]] = defaultdict(list)
    for talk, tree in given.items():
        if (value := scores[talk]) is not None:
            by_tree[tree].append(value)
    outcomes, surveys = relate_to_survey(by_tree, dialogues, seed)
    return JudgeCheck(
        "rubric",
        check_kinds({kind: pairs(drawn) for kind, drawn in cases.items()}, measure_auc, dialogues),
        {side: check_claim(*_split(found)) for side, drawn in claims.items() if (found := pairs(drawn))},
        outcomes,
        surveys,
        min_auc,
    )


async def check_pairwise(
    prefer: Prefer,
    dialogues: Sequence[Dialogue],
    count: int,
    claim: str,
    seed: int,
    min_auc: float = MIN_AUC,
    *,
    adherence: bool = False,
) -> JudgeCheck:
    """Have a judge compare given replies with foils. It sees no strategies, so a wrong one is not asked about.

    Args:
        adherence: `prefer` asks which reply follows the strategy of the first one; the foils are of other strategies.

    Raises:
        UserError: see `draw_cases`.
    """
    cases = {kind: drawn for kind, drawn in draw_cases(dialogues, count, seed).items() if kind in _IN_PAIRS}
    if adherence:
        apart = {kind: [case for case in drawn if _of_other_strategy(case)] for kind, drawn in cases.items()}
        cases = {FOREIGN: [], **{kind: drawn for kind, drawn in apart.items() if drawn}}
    claims = [add_claim(case, claim, "supporter") for case in cases[FOREIGN]]
    asked = [case for drawn in (*cases.values(), claims) for case in drawn]
    answers = iter(await asyncio.gather(*(prefer(case.given[:-1], case.given[-1], case.foil[-1]) for case in asked)))

    def known(drawn: Sequence[JudgeCase]) -> list[tuple[JudgeCase, float, float]]:
        outcomes = [(case, next(answers)) for case in drawn]
        return [(case, outcome, 1 - outcome) for case, outcome in outcomes if outcome is not None]

    kinds = check_kinds({kind: known(drawn) for kind, drawn in cases.items()}, measure_share, dialogues)
    answered = known(claims)
    preferred = {"supporter": check_preferred_claim(_split(answered)[0][:, 1], _split(answered)[1])} if answered else {}
    return JudgeCheck("pairwise", kinds, preferred, min_auc=min_auc)


def _of_other_strategy(case: JudgeCase) -> bool:
    given, foil = case.given[-1].reply.strategies, case.foil[-1].reply.strategies
    return bool(given and foil) and not set(given) & set(foil)


_IN_PAIRS = tuple(kind for kind in KINDS if kind != "wrong_strategy")


def check_kinds(
    answers: Mapping[str, Sequence[tuple[JudgeCase, float, float]]],
    measure: Measure,
    dialogues: Sequence[Dialogue],
) -> dict[str, KindCheck]:
    similarity = WordSimilarity(turn.reply.text for dialogue in dialogues for turn in dialogue.turns)
    answered = {kind: asked for kind, asked in answers.items() if asked}
    # A judge that reads no strategies finds a wrong one as good as the given one: there is nothing to be wrong about.
    told = {kind for kind, asked in answered.items() if any(given != foil for _, given, foil in asked)}
    hard = len(told.intersection(HARD))
    return {
        kind: check_kind(scores, words, trees, measure, hard)
        for kind, asked in answered.items()
        for scores, trees in [_split(asked)]
        for words in [np.array([[similarity(talk) for talk in case[:2]] for case, _, _ in asked])]
    }


def _split(asked: Sequence[tuple[JudgeCase, float, float]]) -> tuple[FloatArray, list[str]]:
    """Scores [cases, 2] and the cases' trees."""
    return np.array([(given, foil) for _, given, foil in asked]), [case.tree_id for case, _, _ in asked]


def relate_to_survey(
    scores: Mapping[str, Sequence[float]], dialogues: Sequence[Dialogue], seed: int
) -> tuple[dict[str, Interval], int]:
    """Spearman's correlation with each answer over the trees with a survey, and how many these are."""
    surveys: dict[str, Survey] = {}
    for dialogue in dialogues:
        if dialogue.survey and scores.get(dialogue.tree_id):
            surveys.setdefault(dialogue.tree_id, dialogue.survey)
    outcomes = {}
    for name in OUTCOMES:
        answers = {tree: answer for tree, survey in surveys.items() if (answer := getattr(survey, name)) is not None}
        means = np.array([np.mean(scores[tree]) for tree in answers])
        found = spearman_interval(means, np.array([*answers.values()], dtype=np.float64), DRAWS, seed)
        if not math.isnan(found.value):
            outcomes[name] = found
    return outcomes, len(surveys)
