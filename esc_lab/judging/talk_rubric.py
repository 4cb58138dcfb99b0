"""The rubric of a judge of whole talks: its questions, their answers, and the words in which it is asked.

All of it is data: `conf/rubric/*.yaml`, and files like them in the user's own directories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from esc_lab.config.compare import TalkRubricConfig
from esc_lab.data.dialogue import Turn
from esc_lab.data.fields import check_keys, check_type, items, require
from esc_lab.errors import UserError
from esc_lab.prompts import Message, check_wording
from esc_lab.search.role_prompts import transcript
from esc_lab.search.roles import BEST_SCORE

YES_NO = "yes_no"
REASON = "reason"
_WHERE = "judge.talk_rubric"
# Slots of each text (see `check_wording`).
_SLOTS = {
    "system": "", "request": "talk questions form", "question": "name text answers?", "form": "", "json_form": "object",
}  # fmt: skip


@dataclass(frozen=True)
class TalkQuestion:
    """A question about a talk.

    Attributes:
        title: what a talk has that passes, for tables.
        levels: of scores, what each from 0 to 4 means; else empty.
        desired: of yes and no, whether yes is the answer with which a talk passes.
    """

    name: str
    title: str
    text: str
    levels: tuple[str, ...] = ()
    desired: bool = True


@dataclass(frozen=True)
class TalkRubric:
    """A rubric; see `TalkRubricConfig`."""

    name: str
    yes_no: bool
    min_severity: int
    planted: str
    questions: tuple[TalkQuestion, ...]
    wording: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        return [question.name for question in self.questions]

    def messages(self, talk: Sequence[Turn], *, json: bool) -> tuple[Message, ...]:
        """What the judge is asked of a talk, which it sees without strategies; `json`: how it is to answer."""
        answers = dict.fromkeys(self.names, '"yes" or "no"' if self.yes_no else "score")
        answers = {REASON: '"..."', **answers} if self.yes_no else answers
        shown = ", ".join(f'"{name}": {answer}' for name, answer in answers.items())
        request = self.wording["request"].format(
            talk=transcript(talk, labels=False),
            questions="\n".join(map(self._ask, self.questions)),
            form=self.wording["json_form"].format(object=f"{{{shown}}}") if json else self.wording["form"],
        )
        return Message("system", self.wording["system"]), Message("user", request)

    def schema(self) -> Mapping[str, Any]:
        """JSON schema of answers with yes and no, and a reason."""
        values: dict[str, Any] = {REASON: {"type": "string"}}
        values |= {name: {"type": "string", "enum": ["yes", "no"]} for name in self.names}
        return {"type": "object", "properties": values, "required": list(values), "additionalProperties": False}

    def rate(self, scores: Mapping[str, float]) -> dict[str, float]:
        """How good the talk is by each question: its score, or the probability of the desired answer."""
        return {
            question.name: scores[question.name] if question.desired else 1 - scores[question.name]
            for question in self.questions
        }

    def find_failed(self, scores: Mapping[str, float]) -> list[str]:
        """The questions that a talk does not pass: the desired answer has no more than one half; none of scores."""
        return [name for name, quality in self.rate(scores).items() if quality <= 0.5] if self.yes_no else []

    def record(self) -> dict[str, Any]:
        """All that a judge is asked, as JSON types."""
        questions = [asdict(question) for question in self.questions]
        return {"name": self.name, "yes_no": self.yes_no, "questions": questions, "wording": dict(self.wording)}

    def _ask(self, question: TalkQuestion) -> str:
        answers = "; ".join(f"{number} = {level}" for number, level in enumerate(question.levels))
        return self.wording["question"].format(name=question.name, text=question.text, answers=answers)


def build_rubric(settings: TalkRubricConfig) -> TalkRubric:
    """The rubric of a configuration.

    Raises:
        UserError: it has no questions, one of them lacks a field or has a wrong value, or a text is missing or wrong.
    """
    yes_no = settings.scale == YES_NO
    where = f"{_WHERE} ({settings.name or 'without a name'})"
    asked = items(settings.questions, dict, "question", where)
    questions = tuple(_build_question(data, place, yes_no=yes_no) for data, place in asked)
    if not questions:
        raise UserError("there are no questions", where=where, fix="rubric=axes, rubric=safety, or write some")
    names = [question.name.lower() for question in questions]
    if len({*names, REASON}) <= len(names):
        raise UserError(f"names are {', '.join(names)}", where=where, fix=f"give each its own, and not '{REASON}'")
    wording = check_wording(settings.wording, _SLOTS, f"{where}, wording")
    return TalkRubric(settings.name, yes_no, settings.min_severity, settings.planted, questions, wording)


def _build_question(data: Mapping[str, Any], where: str, *, yes_no: bool) -> TalkQuestion:
    check_keys(data, ("name", "title", "text", "desired" if yes_no else "levels"), where)
    name, text = require(data, "name", str, where), require(data, "text", str, where).strip()
    title = check_type(data.get("title", name), str, "'title'", where)
    if yes_no:
        return TalkQuestion(name, title, text, desired=require(data, "desired", bool, where))
    levels = tuple(level for level, _ in items(require(data, "levels", list, where), str, "level", where))
    if len(levels) != BEST_SCORE + 1:
        raise UserError(f"there are {len(levels)} levels", where=where, fix=f"describe each from 0 to {BEST_SCORE}")
    return TalkQuestion(name, title, text, levels)
