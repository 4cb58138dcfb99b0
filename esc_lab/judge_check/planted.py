"""Whether a judge of whole talks is believed: does it tell planted good talks from bad ones, question by question?

Planted talks are data (`planted_*.yaml` beside this module, or files of the user's own): pairs of talks with the same
seeker, with the questions by which one is good and the other bad, and those that the bad one passes all the same. A
judge that only knows good from bad tells the former and not the latter. So it is believed in a question if what it gets
right (of yes and no the share of talks, of scores the AUC) is as much as is asked of it, with a 95 % interval above one
half, for good talks against bad ones; and, where there are enough, if it tells talks that are bad otherwise from those
that are bad by it, too, better than one half and better than its answers to the other questions tell them: a judge
whose answer is how it likes a talk in all knows no more than these (the halo, Thorndike 1920).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import yaml

from esc_lab.artifacts import read_yaml, replace_nan
from esc_lab.data.dialogue import Reply, Speaker, Turn
from esc_lab.data.fields import check_keys, check_type, items, require
from esc_lab.errors import UserError
from esc_lab.judge_check.check import MIN_AUC
from esc_lab.judge_check.measures import MIN_DIALOGUES, KindCheck, check_kind, measure_accuracy
from esc_lab.statistics.auc import measure_auc
from esc_lab.statistics.intervals import Interval

FORMAT = "esc-lab-planted/1"
_CHANCE = 0.5

_Told: TypeAlias = tuple["PlantedPair", Mapping[str, float] | None, Mapping[str, float] | None]
# Quality of a talk by each question, the more the better; None without a usable answer.
Score: TypeAlias = Callable[[Sequence[Turn]], Awaitable[Mapping[str, float] | None]]


class PlantedPair(NamedTuple):
    """Two talks with the same seeker.

    `worse`: questions by which the first is good and the second bad; `passes`: those by which the second is not bad.
    """

    name: str
    good: tuple[Turn, ...]
    bad: tuple[Turn, ...]
    worse: tuple[str, ...]
    passes: tuple[str, ...]


@dataclass(frozen=True)
class QuestionCheck:
    """How a judge tells planted talks apart by a question.

    Attributes:
        value: of good talks against bad ones: of scores the AUC, of yes and no the share of talks on their side.
        apart: the same of talks that are bad otherwise against bad ones; None where there are too few.
        above: `apart` less what the mean of its other answers gets right, or less one half if that is surer to be
            reached.
        pairs: with a usable answer to both talks.
        min_auc: the least `value` that is believed.
    """

    value: Interval
    apart: Interval | None
    above: Interval | None
    pairs: int
    min_auc: float = MIN_AUC

    @property
    def believed(self) -> bool:
        enough = self.value.value >= self.min_auc and self.value.low > _CHANCE
        return enough and (self.above is None or self.above.low > 0)


@dataclass(frozen=True)
class TalkCheck:
    """The check of a judge of whole talks; `measure`: what it gets right, `accuracy` or `AUC`."""

    questions: Mapping[str, QuestionCheck]
    measure: str

    @property
    def not_believed(self) -> list[str]:
        """Questions whose answers are not to be believed."""
        return [name for name, check in self.questions.items() if not check.believed]

    @property
    def believed(self) -> bool:
        return not self.not_believed

    @property
    def verdict(self) -> str:
        """`judge of talks: believed`, or why not, in a line."""
        if self.believed:
            return "judge of talks: believed"
        told = "; ".join(f"{name} {_tell(self.questions[name])}" for name in self.not_believed)
        least = next(iter(self.questions.values())).min_auc
        takes = f"it takes {least:g} and intervals above {_CHANCE}, and above its other answers"
        return f"judge of talks: NOT believed, {self.measure} of {told}; {takes}"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headings, and a row for each question."""
        rows = [
            [name, check.value.text(2), check.apart.text(2) if check.apart else "-",
             check.above.text(2, "+") if check.above else "-", str(check.pairs), "yes" if check.believed else "NO"]
            for name, check in self.questions.items()
        ]  # fmt: skip
        measure = f"{self.measure}, good and bad"
        return ["planted talks", measure, "bad otherwise and bad", "above a halo", "pairs", "believed"], rows

    def column_notes(self) -> list[str]:
        """What the columns are."""
        what = {
            "accuracy": "share of planted talks that are told to pass or fail, rightly",
            "AUC": "how often a good planted talk scores above a bad one",
        }
        return [
            f"planted talks: by the question that a good one passes and a bad one fails; {self.measure}, good and bad: "
            f"{what[self.measure]}; 0.5 = by chance. In brackets 95 % intervals over pairs.",
            "bad otherwise and bad: the same of bad talks that pass the question against those that fail it.",
            "above a halo: that less what its answers to the other questions tell of the same talks, or less 0.5; a "
            "judge that goes by how it likes a talk in all is not above 0.",
            "pairs: of a good and a bad talk; believed: whether its answers to the question can be relied on.",
        ]

    def record(self) -> dict[str, Any]:
        """In JSON types; what is not a number is None."""
        questions = {name: {**asdict(check), "believed": check.believed} for name, check in self.questions.items()}
        found = {"measure": self.measure, "questions": questions, "believed": self.believed, "verdict": self.verdict}
        record: dict[str, Any] = replace_nan(found)
        return record

    def metrics(self) -> dict[str, float]:
        metrics = {"believed": float(self.believed)}
        for name, check in self.questions.items():
            metrics |= {name: check.value.value, f"{name}/low": check.value.low, f"{name}/pairs": float(check.pairs)}
            for part, found in (("apart", check.apart), ("above", check.above)):
                metrics |= {f"{name}/{part}": found.value, f"{name}/{part}_low": found.low} if found else {}
        return {name: value for name, value in metrics.items() if not math.isnan(value)}


def _tell(check: QuestionCheck) -> str:
    few = f" of {check.pairs} pairs, it takes {MIN_DIALOGUES}" if check.pairs < MIN_DIALOGUES else ""
    apart = f" ({check.apart.text(2)} among bad ones" if check.apart else ""
    above = f", {check.above.text(2, '+')} above its other answers)" if check.above else ""
    return f"{check.value.text(2)}{few}{apart}{above}"


async def check_talks(
    score: Score, pairs: Sequence[PlantedPair], names: Sequence[str], *, yes_no: bool, min_auc: float = MIN_AUC
) -> TalkCheck:
    """Have a judge score planted talks, all at once.

    Args:
        names: of its questions.
        yes_no: qualities are probabilities, and talks above one half pass.
        min_auc: see `QuestionCheck`.
    """
    answers = await asyncio.gather(*(score(talk) for pair in pairs for talk in (pair.good, pair.bad)))
    told = [*zip(pairs, answers[::2], answers[1::2], strict=True)]
    measure = measure_accuracy if yes_no else measure_auc

    def compare(cases: Sequence[tuple[float, float]], floor: Sequence[tuple[float, float]] = ()) -> KindCheck:
        scores = np.array(cases)
        by_others = np.array(floor) if floor else 0 * scores
        return check_kind(scores, by_others, [str(number) for number in range(len(cases))], measure)

    checks = {}
    for name in names:
        both = [(good[name], bad[name]) for pair, good, bad in told if good and bad and name in pair.worse]
        apart = _take_apart(told, name)
        found = None
        if len(apart) >= MIN_DIALOGUES:
            floor = [(_others(passing, name), _others(failing, name)) for passing, failing in apart]
            found = compare([(passing[name], failing[name]) for passing, failing in apart], floor)
        checks[name] = QuestionCheck(
            compare(both).value if both else Interval(math.nan, math.nan, math.nan),
            found.value if found else None,
            found.above if found else None,
            len(both),
            min_auc,
        )
    return TalkCheck(checks, "accuracy" if yes_no else "AUC")


def _take_apart(told: Sequence[_Told], name: str) -> list[tuple[Mapping[str, float], Mapping[str, float]]]:
    """Answers to bad talks that pass a question, each beside those to one that fails it; each talk once, so that cases
    are independent. Those that pass are bad by as many other questions as there are, the others by as few, so that the
    worth of a talk in all tells them as little as may be.
    """
    failing = sorted((each for each in told if each[2] and name in each[0].worse), key=lambda each: len(each[0].worse))
    passing = sorted(
        (each for each in told if each[2] and name in each[0].passes), key=lambda each: -len(each[0].worse)
    )
    return [(one, other) for (_, _, one), (_, _, other) in zip(passing, failing, strict=False) if one and other]


def _others(answers: Mapping[str, float], name: str) -> float:
    """The mean of the answers to all other questions."""
    others = [value for other, value in answers.items() if other != name]
    return sum(others) / len(others) if others else 0.0


def read_planted(path: Path) -> list[PlantedPair]:
    """The pairs of a file: `seeker`, and as many messages of a supporter in `good` and in `bad`, turn by turn.

    Raises:
        UserError: it cannot be read, or a pair lacks a field or has a wrong value.
    """
    where = str(path)
    try:
        content = read_yaml(path)
    except OSError as error:
        fix = "check planted of the rubric"
        raise UserError(f"cannot be read: {error.strerror}", where=where, fix=fix) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"not YAML: {' '.join(str(error).split())}", where=where, fix="correct the file") from error
    data = check_type(content, dict, "the file", where)
    if (version := require(data, "format", str, where)) != FORMAT:
        raise UserError(f"unknown format '{version}'", where=where, fix=f"write format: {FORMAT}")
    check_keys(data, ("format", "pairs"), where)
    return [_read_pair(item, place) for item, place in items(require(data, "pairs", list, where), dict, "pair", where)]


def _read_pair(data: Mapping[str, Any], where: str) -> PlantedPair:
    check_keys(data, (*PlantedPair._fields, "seeker"), where)
    name = require(data, "name", str, where)
    where = f"{where} ({name})"
    seeker, good, bad, worse, passes = (
        [text.strip() for text, _ in items(require({"passes": [], **data}, key, list, where), str, key, where)]
        for key in ("seeker", "good", "bad", "worse", "passes")
    )
    if not len(seeker) == len(good) == len(bad) > 0:
        what = f"{len(seeker)} messages of the seeker, {len(good)} good replies and {len(bad)} bad ones"
        raise UserError(what, where=where, fix="write a good and a bad reply to each message")
    return PlantedPair(name, _take_turns(seeker, good), _take_turns(seeker, bad), tuple(worse), tuple(passes))


def _take_turns(seeker: Sequence[str], supporter: Sequence[str]) -> tuple[Turn, ...]:
    sides: tuple[Speaker, Speaker] = ("seeker", "supporter")
    both = zip(seeker, supporter, strict=True)
    return tuple(Turn(side, Reply(text)) for texts in both for side, text in zip(sides, texts, strict=True))
