"""The key of a survey: which rater is asked what, in which order and on which side. It is kept apart from raters."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from esc_lab.artifacts import READ_ERRORS, fingerprint, write_atomic
from esc_lab.config.survey import FormConfig, SurveyConfig
from esc_lab.errors import UserError
from esc_lab.judging.survey_items import SurveyItem, SurveyReply
from esc_lab.runs.layout import SURVEY_KEY
from esc_lab.seeds import derive_seed
from esc_lab.statistics.intervals import FloatArray

FORMAT = "esc-lab/survey-2"
LABEL_STUDIO = "label_studio"  # the questionnaire that everybody there shares
# What Label Studio's exports have beside answers, and comparisons beside questions.
_RESERVED = (
    "survey", "entry", "history", "strategy", "reply_1", "reply_2", "id", "annotator", "annotation_id", "created_at",
    "updated_at", "lead_time", "agreement", "n",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What a rater sees on one page.

    Attributes:
        name: says nothing of what it is; also in files of raters.
        item: name of the item; of an attention check, of the item that it looks like.
        swapped: whether the second reply stands on the left.
        repeat: whether the item was asked before.
        check: what an attention check says to choose; None if it is none.
    """

    name: str
    item: str
    swapped: bool = False
    repeat: bool = False
    check: int | None = None


@dataclass(frozen=True)
class SurveyKey:
    """A survey.

    Attributes:
        runs: fingerprints of the predictions, by label of the run; empty where they are not known.
        inventory: of the strategies, as a configuration has it.
        items: by name.
        questionnaires: entries by name in the order in which they are asked, by name of the questionnaire.
    """

    form: FormConfig
    runs: Mapping[str, str]
    inventory: Mapping[str, Any]
    items: Mapping[str, SurveyItem]
    questionnaires: Mapping[str, Mapping[str, Entry]]

    @cached_property
    def identity(self) -> str:
        """Hash of all that is asked; answers to other questions have another one."""
        return fingerprint({**asdict(self), "runs": None, "format": FORMAT})

    @property
    def pairs(self) -> bool:
        return self.form.unit == "pair"

    @property
    def questions(self) -> list[str]:
        return [question["name"] for question in self.form.questions]

    @property
    def scale(self) -> FloatArray:
        """What there is to choose from, ascending."""
        return np.arange(-self.form.reach if self.pairs else 1, self.form.reach + 1)

    def write(self, directory: Path) -> None:
        """Write key.json."""
        record = {"format": FORMAT, "survey": self.identity, **asdict(self)}
        write_atomic(directory / SURVEY_KEY, json.dumps(record, ensure_ascii=False, indent=1))


def read_key(directory: Path) -> SurveyKey:
    """The key in the run directory that made a survey.

    Raises:
        UserError: there is none, it is of another version, or it was changed.
    """
    path = directory / SURVEY_KEY
    fix = "name the run directory of the stage=survey that made the questionnaires, with its key.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            message = f"a key of another version: {record['format']!r}, not {FORMAT!r}"
            raise UserError(message, where=str(path), fix="read it with the version of esc-lab that made it")
        key = SurveyKey(
            FormConfig(**record["form"]),
            record["runs"],
            record["inventory"],
            {
                name: SurveyItem(**{**item, "replies": tuple(SurveyReply(**each) for each in item["replies"])})
                for name, item in record["items"].items()
            },
            {
                questionnaire: {name: Entry(**entry) for name, entry in entries.items()}
                for questionnaire, entries in record["questionnaires"].items()
            },
        )
        if key.identity != record["survey"]:
            raise UserError("the key was changed, so sides cannot be resolved", where=str(path), fix=fix)
    except READ_ERRORS as error:
        message = f"no key of a survey, so sides cannot be resolved: {type(error).__name__} {error}"
        raise UserError(message, where=str(path), fix=fix) from error
    return key


def check_form(form: FormConfig) -> None:
    """Raises a UserError if the questions are not ones that can be asked."""
    known = ("name", "text", "low", "high")
    for number, question in enumerate(form.questions, start=1):
        where = f"survey.form.questions, question {number}"
        if not isinstance(question, dict) or sorted(question) != sorted(known):
            message = f"a question has {', '.join(known)}, not {question!r}"
            raise UserError(message, where=where, fix="see conf/form/pairs.yaml")
        if not re.fullmatch(r"[A-Za-z]\w*", str(question["name"])) or question["name"] in _RESERVED:
            fix = f"letters, digits and _ alone, and none of {', '.join(_RESERVED)}"
            raise UserError(f"{question['name']!r} is no name of a question", where=where, fix=fix)
    names = [question["name"] for question in form.questions]
    if not names or len(set(names)) < len(names):
        fix = "give one question at least, each with a name of its own"
        raise UserError(f"questions {names}", where="survey.form.questions", fix=fix)


def draw_questionnaires(items: Sequence[SurveyItem], settings: SurveyConfig, seed: int) -> dict[str, dict[str, Entry]]:
    """The questionnaires of all raters, and one of all items for Label Studio.

    Of each pair of runs a rater has half the items (give or take one) with sides exchanged. Repeated items stand in the
    second half and were asked in the first; attention checks lie spread over the whole.
    """
    assigned = _assign(items, settings, np.random.default_rng(derive_seed(seed, "who rates what")))
    return {
        name: _draw_entries(name, own, settings, np.random.default_rng(derive_seed(seed, "questionnaire", name)))
        for name, own in {**assigned, LABEL_STUDIO: [*items]}.items()
    }


def _assign(
    items: Sequence[SurveyItem], settings: SurveyConfig, chance: np.random.Generator
) -> dict[str, list[SurveyItem]]:
    """Each item goes to those who have the fewest, then the fewest of its runs and strategy."""
    raters = [f"rater_{number}" for number in range(1, settings.raters + 1)]
    assigned: dict[str, list[SurveyItem]] = {rater: [] for rater in raters}
    used: Counter[object] = Counter()
    for item in items:
        kinds = (_runs_of(item), item.strategy)
        order = [raters[number] for number in chance.permutation(len(raters))]
        order.sort(key=lambda rater: (len(assigned[rater]), *(used[rater, kind] for kind in kinds)))
        for rater in order[: settings.ratings or settings.raters]:
            assigned[rater].append(item)
            used.update((rater, kind) for kind in kinds)
    return assigned


def _draw_entries(
    questionnaire: str, items: Sequence[SurveyItem], settings: SurveyConfig, chance: np.random.Generator
) -> dict[str, Entry]:
    order = [items[number] for number in chance.permutation(len(items))]
    pairs = settings.form.unit == "pair"
    numbers = Counter(map(_runs_of, order))
    sides = {runs: _draw_sides(number, chance) for runs, number in numbers.items()}
    placed: list[tuple[float, Entry]] = []
    swapped: dict[str, bool] = {}

    def put(place: float, item: SurveyItem, **about: Any) -> None:
        name = fingerprint([questionnaire, int(chance.integers(2**62))])[:10]
        placed.append((place, Entry(name, item.name, **about)))

    for number, item in enumerate(order):
        runs = _runs_of(item)
        reversed_order = tuple(reply.run for reply in item.replies) != runs
        swapped[item.name] = pairs and sides[runs].pop() != reversed_order
        put(number / len(order), item, swapped=swapped[item.name])
    early = order[: len(order) // 2] or order
    if settings.repeats > len(early):
        where, fix = f"survey.repeats={settings.repeats}", f"{len(early)} at most, or raise survey.items"
        raise UserError(f"{questionnaire} has {len(early)} items in its first half", where=where, fix=fix)
    for number in chance.permutation(len(early))[: settings.repeats]:
        item = early[number]
        put(chance.uniform(0.55, 1.0), item, swapped=pairs and not swapped[item.name], repeat=True)
    values = [value for value in range(-settings.form.reach if pairs else 1, settings.form.reach + 1) if value]
    for number in range(settings.checks if order else 0):
        place = (number + chance.uniform(0.1, 0.9)) / settings.checks
        item, value = order[chance.integers(len(order))], values[chance.integers(len(values))]
        put(place, item, check=value)
    return {entry.name: entry for _, entry in sorted(placed, key=lambda each: each[0])}


def _draw_sides(number: int, chance: np.random.Generator) -> list[bool]:
    """Whether the first of two runs stands on the right: as often as not, give or take one, in random order."""
    sides = (np.arange(number) + chance.integers(2)) % 2 == 1
    return [bool(side) for side in chance.permutation(sides)]


def _runs_of(item: SurveyItem) -> tuple[str, ...]:
    return tuple(sorted(reply.run for reply in item.replies))
