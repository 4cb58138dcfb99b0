"""Prompts of the four roles of the search. The conversation comes first in each, and what is asked for last.

Strategist, supporter and judge share one system message with the strategies, and the transcript with their labels;
the seeker sees its own situation and a transcript without labels. So the prompts of a conversation share their
prefixes with each other and with those of its next turns. Their words, and the judge's rubric, are data:
`conf/roles/*.yaml`, and files like them in the user's own directories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esc_lab.config.files import read_option
from esc_lab.config.search import LLMConfig
from esc_lab.data.dialogue import Turn
from esc_lab.data.fields import check_keys, check_type, require
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.prompts import Message, check_wording

END = "[END]"

# Slots of each text (see `check_wording`).
SLOTS = {
    "supporter_system": "strategies",
    "listed_strategy": "name definition",
    "seeker_system": "profile",
    "seeker_situation": "situation",
    "seeker_problem": "problem",
    "seeker_emotion": "emotion",
    "conversation": "history request",
    "rate": "",
    "rate_form": "",
    "discourage_repeating": "",
    "discourage_favourite": "strategy",
    "favourite": "",
    "reply": "strategy definition",
    "answer": "",
    "answer_end": "end",
    "answer_form": "",
    "ends": "",
    "judge": "rubric form",
    "judge_form": "",
    "axis": "name rubric",
    "prefer": "first second rubric form",
    "prefer_form": "",
    "json_form": "object",
    "correction": "error",
}


@dataclass(frozen=True)
class Axis:
    """An axis on which the judge scores a reply from 0 to 4: its weight in the turn score, and what 0 and 4 mean."""

    name: str
    weight: float
    rubric: str


@dataclass(frozen=True)
class SeekerProfile:
    """The person that the seeker plays."""

    situation: str
    emotion: str = ""
    problem: str = ""


@dataclass(frozen=True)
class RolePrompts:
    """What the roles are asked, in the words of a configuration.

    Attributes:
        axes: of the judge; their weights sum to 1.
        wording: text of each of `SLOTS`.
    """

    inventory: Inventory
    axes: tuple[Axis, ...]
    wording: Mapping[str, str]

    def support_messages(self, history: Sequence[Turn], asked: str) -> tuple[Message, ...]:
        """Prompt of strategist, supporter or judge."""
        listed = [
            self._text("listed_strategy", name=strategy.name, definition=strategy.definition)
            for strategy in self.inventory.strategies
        ]
        system = self._text("supporter_system", strategies="\n".join(listed))
        return self._messages(system, transcript(history, labels=True), asked)

    def seeker_messages(self, seeker: SeekerProfile, history: Sequence[Turn], asked: str) -> tuple[Message, ...]:
        """Prompt of the seeker."""
        about = [
            self._text(f"seeker_{key}", **{key: getattr(seeker, key)})
            for key in ("situation", "problem", "emotion")
            if getattr(seeker, key)
        ]
        system = self._text("seeker_system", profile="\n".join(about)).strip()
        return self._messages(system, transcript(history, labels=False), asked)

    def rate_request(self, *, json: bool, discourage: bool) -> str:
        """What the strategist is asked; `discourage`: not to repeat a strategy or lean on the published favourite."""
        parts = [self._text("rate")]
        if discourage:
            favourite = self.wording["favourite"]
            parts.append(self._text("discourage_repeating"))
            if favourite in self.inventory.names:
                parts.append(self._text("discourage_favourite", strategy=favourite))
        names = ", ".join(f'"{name}": rating' for name in self.inventory.names)
        return " ".join([*parts, self._json_form(f"{{{names}}}") if json else self._text("rate_form")])

    def reply_request(self, strategy: str) -> str:
        """What the supporter is asked."""
        return self._text("reply", strategy=strategy, definition=self.inventory.definition(strategy))

    def answer_request(self, *, marker: bool) -> str:
        """What the seeker is asked; `marker`: it says by `END` that it ends the conversation."""
        end = [self._text("answer_end", end=END)] if marker else []
        return " ".join([self._text("answer"), *end, self._text("answer_form")])

    def end_request(self) -> str:
        """What the seeker is asked where its wish to end the conversation is read off probabilities."""
        return self._text("ends")

    def judge_request(self, *, json: bool) -> str:
        """What the judge is asked."""
        form = self._json_form("{" + ", ".join(f'"{axis.name}": score' for axis in self.axes) + "}")
        return self._text("judge", rubric=self._rubric(), form=form if json else self._text("judge_form"))

    def prefer_request(self, first: str, second: str, *, json: bool) -> str:
        """What the judge is asked of two replies."""
        form = self._json_form('{"better": "A"} or {"better": "B"}') if json else self._text("prefer_form")
        replies = {"first": " ".join(first.split()), "second": " ".join(second.split())}
        return self._text("prefer", **replies, rubric=self._rubric(), form=form)

    def correction(self, error: object) -> str:
        """What a role is asked after an answer that cannot be used."""
        return self._text("correction", error=str(error))

    def _text(self, text: str, /, **values: str) -> str:
        return self.wording[text].format(**values)

    def _messages(self, system: str, conversation: str, asked: str) -> tuple[Message, ...]:
        shown = self._text("conversation", history=conversation, request=asked)
        return Message("system", system), Message("user", shown)

    def _rubric(self) -> str:
        return "\n".join(self._text("axis", name=axis.name, rubric=axis.rubric) for axis in self.axes)

    def _json_form(self, form: str) -> str:
        return self._text("json_form", object=form)


def build_role_prompts(inventory: Inventory, llm: LLMConfig) -> RolePrompts:
    """The words and the rubric of a configuration; where it has none, those of `conf/roles/default.yaml`.

    Raises:
        UserError: a text or an axis is missing or wrong.
    """
    default = read_option("roles", "default")
    wording = check_wording(llm.wording or default["wording"], SLOTS, "llm.wording")
    return RolePrompts(inventory, _build_axes(llm.judge.axes or default["judge"]["axes"]), wording)


def _build_axes(items: Sequence[Any]) -> tuple[Axis, ...]:
    axes = []
    for number, item in enumerate(items, start=1):
        where = f"llm.judge.axes: axis {number}"
        data = check_type(item, dict, "the axis", where)
        check_keys(data, Axis.__dataclass_fields__, where)
        weight = data.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise UserError(f"'weight' is {weight!r}", where=where, fix="make it a number")
        axes.append(Axis(require(data, "name", str, where), float(weight), require(data, "rubric", str, where)))
    shown = ", ".join(f"{axis.name} {axis.weight:g}" for axis in axes)
    if abs(sum(axis.weight for axis in axes) - 1) > 1e-6 or min(axis.weight for axis in axes) < 0:
        fix = "change them, such as llm.judge.axes.0.weight=0.2, or give a list of axes of your own"
        raise UserError(f"the weights are {shown}; they have to sum to 1", where="llm.judge.axes", fix=fix)
    if len({axis.name.lower() for axis in axes}) < len(axes):
        raise UserError(f"two axes have one name: {shown}", where="llm.judge.axes", fix="name them apart")
    return tuple(axes)


def transcript(history: Sequence[Turn], *, labels: bool) -> str:
    """The conversation, a line a turn."""
    return "\n".join(_line(turn, labels) for turn in history)


def _line(turn: Turn, labels: bool) -> str:
    text = " ".join(turn.reply.text.split())
    label = f" ({turn.reply.strategies[0]})" if labels and turn.reply.strategies else ""
    return f"{turn.speaker}{label}: {text}"


def prefer_schema() -> Mapping[str, object]:
    """JSON schema of the answer to `prefer_request`."""
    better = {"type": "string", "enum": ["A", "B"]}
    return {"type": "object", "properties": {"better": better}, "required": ["better"], "additionalProperties": False}


def ratings_schema(names: Sequence[str], most: int) -> Mapping[str, object]:
    """JSON schema of an object with a whole number from 0 to `most` for each name."""
    number = {"type": "integer", "minimum": 0, "maximum": most}
    return {
        "type": "object",
        "properties": dict.fromkeys(names, number),
        "required": list(names),
        "additionalProperties": False,
    }
