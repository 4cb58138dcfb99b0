"""What raters gave back: files of questionnaires and exports of Label Studio, and the ratings in them.

A rating is in the order of its item: above 0 if the second reply is preferred, on whichever side it stood.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esc_lab.artifacts import READ_ERRORS
from esc_lab.errors import UserError
from esc_lab.judging.survey_items import SurveyItem
from esc_lab.judging.survey_key import LABEL_STUDIO, Entry, SurveyKey

ANSWERS = "esc-lab/answers-1"


@dataclass(frozen=True)
class Answer:
    """What a rater chose on a page, as it stood there: below 0 for the left reply."""

    rater: str
    entry: Entry
    question: str
    value: int


@dataclass(frozen=True)
class Rating:
    """An answer about an item, the first one of its rater that is known.

    Attributes:
        shown: as the rater saw it: below 0 for the reply on the left.
        value: in the order of the item: below 0 for its first reply; of a single reply the score.
        again: what the rater answered when asked a second time, like `value`; None if it was not, or if that is the
            rating, since the first time it gave no answer or two.
    """

    rater: str
    item: SurveyItem
    question: str
    shown: int
    value: int
    again: int | None = None


@dataclass
class Ratings:
    """All ratings that count, and what was left out.

    Attributes:
        checks: attention checks that each rater passed, and how many it answered.
        set_aside: ratings that do not count, with the reason: `double` (two different answers to one question),
            `failed_checks`.
        missing: questions that were not answered, by rater.
        duplicates: answers that came more than once, all the same.
        careless: raters whose ratings were set aside.
    """

    ratings: list[Rating] = field(default_factory=list)
    checks: dict[str, tuple[int, int]] = field(default_factory=dict)
    set_aside: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    careless: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, float]:
        """For metrics.json."""
        reasons = Counter(line["reason"] for line in self.set_aside)
        counts = {"ratings": len(self.ratings), "raters": len({rating.rater for rating in self.ratings})}
        counts |= {"missing": sum(self.missing.values()), "duplicates": self.duplicates}
        counts |= {"careless_raters": len(self.careless)}
        return {**counts, **{f"set_aside/{reason}": reasons[reason] for reason in ("double", "failed_checks")}}


def read_answers(path: Path, key: SurveyKey) -> list[Answer]:
    """The answers in a file that a questionnaire gave, or in an export of Label Studio (JSON or JSON-MIN).

    Raises:
        UserError: it is neither, of another version or survey, an entry is not in the key, so that its sides cannot be
            resolved, or a value is not on the scale.
    """
    data = read_json(path)
    try:
        found = list(_read_questionnaire(data, key, path) if isinstance(data, dict) else _read_tasks(data, key, path))
    except READ_ERRORS as error:
        message = f"not what raters give back: {type(error).__name__} {error}"
        fix = "give files that questionnaires saved, or JSON exports of Label Studio"
        raise UserError(message, where=str(path), fix=fix) from error
    return found


def read_json(path: Path) -> Any:
    """The content of a file of raters."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except READ_ERRORS as error:
        fix = "give a JSON file that a questionnaire saved or Label Studio exported"
        raise UserError(f"no JSON: {error}", where=str(path), fix=fix) from error


def _read_questionnaire(data: Mapping[str, Any], key: SurveyKey, path: Path) -> Iterator[Answer]:
    if data["format"] != ANSWERS:
        message = f"answers of another version: {data['format']!r}, not {ANSWERS!r}"
        raise UserError(message, where=str(path), fix="read it with the version of esc-lab that made the questionnaire")
    _check_survey(data["survey"], key, str(path))
    rater = data["questionnaire"]
    for name, values in data["answers"].items():
        entry = _find_entry(rater, name, key, f"{path}, page {name}")
        for question, value in values.items():
            yield Answer(rater, entry, question, _check_value(question, value, key, f"{path}, page {name}"))


def _read_tasks(data: Sequence[Mapping[str, Any]], key: SurveyKey, path: Path) -> Iterator[Answer]:
    """Of Label Studio: tasks with their annotations (JSON), or rows with one annotation each (JSON-MIN)."""
    for number, task in enumerate(data, start=1):
        where = f"{path}, task {number}"
        about = task.get("data", task)
        _check_survey(about.get("survey"), key, where)
        entry = _find_entry(LABEL_STUDIO, about["entry"], key, where)
        for rater, values in _read_annotations(task, key):
            for question, value in values.items():
                yield Answer(rater, entry, question, _check_value(question, value, key, where))


def _read_annotations(task: Mapping[str, Any], key: SurveyKey) -> Iterator[tuple[str, dict[str, Any]]]:
    if "annotations" not in task:
        yield f"annotator {task['annotator']}", {name: task[name] for name in key.questions if name in task}
        return
    for annotation in task["annotations"]:
        if not annotation.get("was_cancelled"):
            by = annotation["completed_by"]
            values = {result["from_name"]: result["value"]["choices"][0] for result in annotation["result"]}
            yield f"annotator {by['id'] if isinstance(by, dict) else by}", values


def _check_survey(survey: object, key: SurveyKey, where: str) -> None:
    if survey != key.identity:
        fix = "name the directory of the survey that it belongs to as survey.directory, or leave the file out"
        raise UserError(f"answers to another survey: {survey!r}, not {key.identity!r}", where=where, fix=fix)


def _find_entry(questionnaire: str, name: str, key: SurveyKey, where: str) -> Entry:
    entry = key.questionnaires.get(questionnaire, {}).get(name)
    if entry is None:
        message = f"no page {name!r} of {questionnaire!r} in the key, so its sides cannot be resolved"
        raise UserError(message, where=where, fix="give the file as it was saved, with the key of its survey")
    return entry


def _check_value(question: str, value: object, key: SurveyKey, where: str) -> int:
    if question not in key.questions:
        fix = f"the survey asks {', '.join(key.questions)}"
        raise UserError(f"no such question: {question!r}", where=where, fix=fix)
    if isinstance(value, bool) or str(value) not in {str(number) for number in key.scale}:
        fix = f"one of {', '.join(map(str, key.scale))}"
        raise UserError(f"{question} is {value!r}, which is not on the scale", where=where, fix=fix)
    return int(str(value))


def collect_ratings(key: SurveyKey, answers: Sequence[Answer], min_checks: float) -> Ratings:
    """The ratings of all raters.

    Two different answers of a rater to one question of a page are set aside, both: which one counts is not known. So
    are all ratings of raters who passed less than `min_checks` of the attention checks that they answered. Of an item
    that was asked about twice the second answer is the rating where the first is not known.
    """
    found = Ratings()
    given: dict[tuple[str, Entry, str], list[int]] = defaultdict(list)
    for answer in answers:
        given[answer.rater, answer.entry, answer.question].append(answer.value)
    _count_missing(key, given, found)
    single = {}
    for place, values in given.items():
        if len(set(values)) == 1:
            found.duplicates += len(values) - 1
            single[place] = values[0]
        else:
            found.set_aside += [_describe(place, value, "double") for value in values]
    for rater in dict.fromkeys(rater for rater, _, _ in single):
        passed = [value == e.check for (by, e, _), value in single.items() if by == rater and e.check is not None]
        if passed:
            found.checks[rater] = (sum(passed), len(passed))
            if sum(passed) / len(passed) < min_checks:
                found.careless.append(rater)
    asked = {place: value for place, value in single.items() if place[1].check is None}
    first = {(rater, entry.item, question) for rater, entry, question in asked if not entry.repeat}
    again = {(rater, e.item, question): _orient(e, v) for (rater, e, question), v in asked.items() if e.repeat}
    for (rater, entry, question), value in asked.items():
        if rater in found.careless:
            found.set_aside.append(_describe((rater, entry, question), value, "failed_checks"))
        elif not entry.repeat or (rater, entry.item, question) not in first:
            repeated = None if entry.repeat else again.get((rater, entry.item, question))
            item = key.items[entry.item]
            found.ratings.append(Rating(rater, item, question, value, _orient(entry, value), repeated))
    return found


def _count_missing(key: SurveyKey, given: Mapping[tuple[str, Entry, str], object], found: Ratings) -> None:
    """Of a rater's questionnaire; in Label Studio, where not everybody has each task, of the tasks that one did."""
    touched: dict[str, set[Entry]] = defaultdict(set)
    for rater, entry, _ in given:
        touched[rater].add(entry)
    for rater, entries in touched.items():
        asked = set(key.questionnaires[rater].values()) if rater in key.questionnaires else entries
        answered = sum((rater, entry, question) in given for entry in asked for question in key.questions)
        found.missing[rater] = len(asked) * len(key.questions) - answered


def _orient(entry: Entry, value: int) -> int:
    return -value if entry.swapped else value


def _describe(place: tuple[str, Entry, str], value: int, reason: str) -> dict[str, Any]:
    rater, entry, question = place
    known = {"rater": rater, "item": entry.item, "question": question, "value": _orient(entry, value)}
    return {**known, "reason": reason}
