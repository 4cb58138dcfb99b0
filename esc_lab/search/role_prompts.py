"""Prompts of the four roles of the search. The conversation comes first in each, and what is asked for last.

Strategist, supporter and judge share one system message with the strategies, and the transcript with their labels;
the seeker sees its own situation and a transcript without labels. So the prompts of a conversation share their
prefixes with each other and with those of its next turns. Their words, and the judge's rubric, are data:
`conf/roles/*.yaml`, and files like them in the user's own directories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from esc_lab.artifacts import fingerprint
from esc_lab.config.files import read_option
from esc_lab.config.search import LLMConfig, StrategistConfig
from esc_lab.data.dialogue import Reply, Turn
from esc_lab.data.fields import check_keys, check_type, require
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.prompts import END, Message, SeekerProfile, check_wording, seeker_system
from esc_lab.search.requests import Answer, Request

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
    "adhere": "strategy definition first second form",
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
class RolePrompts:
    """What the roles are asked, in the words of a configuration; the weights of the judge's axes sum to 1."""

    inventory: Inventory
    axes: tuple[Axis, ...]
    wording: Mapping[str, str]

    def support_messages(self, history: Sequence[Turn], asked: str) -> tuple[Message, ...]:
        """Prompt of strategist, supporter or judge."""
        listed = [
            self.text("listed_strategy", name=strategy.name, definition=strategy.definition)
            for strategy in self.inventory.strategies
        ]
        system = self.text("supporter_system", strategies="\n".join(listed))
        return self._messages(system, transcript(history, labels=True), asked)

    def seeker_messages(self, seeker: SeekerProfile, history: Sequence[Turn], asked: str) -> tuple[Message, ...]:
        """Prompt of the seeker."""
        system = seeker_system(self.wording, seeker)
        return self._messages(system, transcript(history, labels=False), asked)

    def rate_request(self, *, json: bool, discourage: bool) -> str:
        """What the strategist is asked; `discourage`: not to repeat a strategy or lean on the published favourite."""
        parts = [self.text("rate")]
        if discourage:
            favourite = self.wording["favourite"]
            parts.append(self.text("discourage_repeating"))
            if favourite in self.inventory.names:
                parts.append(self.text("discourage_favourite", strategy=favourite))
        names = ", ".join(f'"{name}": rating' for name in self.inventory.names)
        form = self.text("json_form", object=f"{{{names}}}") if json else self.text("rate_form")
        return " ".join([*parts, form])

    def reply_request(self, strategy: str) -> str:
        return self.text("reply", strategy=strategy, definition=self.inventory.definition(strategy))

    def answer_request(self, *, marker: bool) -> str:
        """What the seeker is asked; `marker`: it says by `END` that it ends the conversation."""
        end = [self.text("answer_end", end=END)] if marker else []
        return " ".join([self.text("answer"), *end, self.text("answer_form")])

    def judge_request(self, *, json: bool) -> str:
        names = ", ".join(f'"{axis.name}": score' for axis in self.axes)
        form = self.text("json_form", object=f"{{{names}}}") if json else self.text("judge_form")
        return self.text("judge", rubric=self._rubric(), form=form)

    def prefer_request(self, first: str, second: str, *, json: bool, strategy: str | None = None) -> str:
        """What the judge is asked of two replies: which is better, or which follows a strategy more."""
        form = self.prefer_form(json=json)
        replies = {"first": " ".join(first.split()), "second": " ".join(second.split())}
        if strategy is None:
            return self.text("prefer", **replies, rubric=self._rubric(), form=form)
        definition = self.inventory.definition(strategy)
        return self.text("adhere", **replies, strategy=strategy, definition=definition, form=form)

    def prefer_form(self, *, json: bool) -> str:
        """How the judge is to say which of A and B is better."""
        answers = '{"better": "A"} or {"better": "B"}'
        return self.text("json_form", object=answers) if json else self.text("prefer_form")

    def text(self, name: str, /, **slots: str) -> str:
        """A text of the wording with its slots filled in."""
        return self.wording[name].format(**slots)

    def _messages(self, system: str, conversation: str, asked: str) -> tuple[Message, ...]:
        shown = self.text("conversation", history=conversation, request=asked)
        return Message("system", system), Message("user", shown)

    def _rubric(self) -> str:
        return "\n".join(self.text("axis", name=axis.name, rubric=axis.rubric) for axis in self.axes)


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


REWARD = Axis("reward", 1.0, "how probably it beats a middling reply, by a trained reward model")


def choose_axes(prompts: RolePrompts, asked: Mapping[str, Any] | None) -> tuple[Axis, ...]:
    """The axes that a judge scores: its rubric's; one of a reward model, which the record of its prompts tells."""
    return (REWARD,) if asked and asked["side"] == "judge" else prompts.axes


def transcript(history: Sequence[Turn], *, labels: bool) -> str:
    """The conversation, a line a turn."""
    lines = []
    for turn in history:
        label = f" ({turn.reply.strategies[0]})" if labels and turn.reply.strategies else ""
        lines.append(f"{turn.speaker}{label}: {' '.join(turn.reply.text.split())}")
    return "\n".join(lines)


def fingerprint_prompts(prompts: RolePrompts, strategist: StrategistConfig) -> str:
    """Hash of all words of the prompts, on a fixed conversation."""
    history = (
        Turn("seeker", Reply("First.")),
        Turn("supporter", Reply("Second.", prompts.inventory.names[:1])),
        Turn("seeker", Reply("Third.")),
    )
    asked = [prompts.reply_request(name) for name in prompts.inventory.names]
    for flag in (False, True):
        asked += [
            prompts.rate_request(json=flag, discourage=strategist.discourage),
            prompts.judge_request(json=flag),
            prompts.answer_request(marker=flag),
        ]
    seeker = SeekerProfile("Situation.", "Emotion.", "Problem.")
    messages = [
        *prompts.support_messages(history, "\n".join(asked)),
        *prompts.seeker_messages(seeker, history, prompts.text("ends")),
    ]
    request = add_correction(
        Request("supporter", tuple(messages)), Answer(), prompts.text("correction", error="Error.")
    )
    return fingerprint([message.content for message in request.messages])


def add_correction(request: Request, answer: Answer, correction: str) -> Request:
    """The request with an unusable answer to it, and what is wrong with that.

    Earlier ones stay: a request that was made before would get the answer that it got before.
    """
    shown = answer.text.strip()[:400] or "(nothing)"
    return replace(request, messages=(*request.messages, Message("assistant", shown), Message("user", correction)))
