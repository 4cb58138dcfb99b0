"""Layouts of prompts: which parts the system message has and in what order, how much history stays chat, in what words.

Layouts and wordings are data: `conf/prompt/*.yaml`, `conf/wording/*.yaml`, and files like them in the user's own
directories (docs/prompts.md). The published ones, facts and names after the CSO and SRA papers:

- `cso`: the system message lists the inventory; the model names its strategy itself, `(<strategy>) <reply>`.
- `standard`: the system message asks for one strategy; the whole history follows as chat turns.
- `cK_hf`, `cK_hl` (K = 1, 3, 5): only the last K messages stay chat turns. Older history is quoted in the system
  message, before (`hf`, history first) or after (`hl`, history last) the strategy instruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from esc_lab.config.prompt import TemplateConfig, find_layout
from esc_lab.data.fields import check_keys, check_type, optional, require
from esc_lab.errors import UserError, nearest
from esc_lab.prompts.wording import check_wording, mark_strategy
from esc_lab.seeds import EVALUATION_SEED, derive_seed

# Parts of a system message; `choice` lists the inventory, `instruction` names one strategy.
PARTS = ("role", "situation", "history", "choice", "instruction", "inference")
# Texts that there may be several of, in a list: prompts take turns with them.
SEVERAL = ("neutral_phrase", "instruction")
BEST_OF = "best_of_n"  # asks as `direct` does
# Slots of each text (see `check_wording`).
SLOTS = {
    "role": "",
    "situation": "situation",
    "history": "messages",
    "choice": "strategies",
    "listed_strategy": "name definition",
    "instruction": "strategy neutral?",
    "strategy": "name definition",
    "neutral": "phrase",
    "neutral_phrase": "",
    "example": "exchanges",
    "opening": "opening",
    "pause": "",
    "start": "",
}


@dataclass(frozen=True)
class Baseline:
    """A prompting baseline: text added to the system message, and follow-up requests after the model's answers.

    Attributes:
        follow_ups: the last answer counts.
        reply_marker: only what follows it in the answer is the reply.
        example: the inventory's worked exchange is added to the system message, too.
        choose: several replies are drawn, and a reward model chooses one.
    """

    system: str = ""
    follow_ups: tuple[str, ...] = ()
    reply_marker: str | None = None
    example: bool = False
    choose: bool = False

    @property
    def answers_once(self) -> bool:
        """Whether the model's one answer is the reply, so that attention can be measured on it."""
        return not self.follow_ups and self.reply_marker is None and not self.choose


@dataclass(frozen=True)
class Layout:
    """Layout and words of a prompt.

    Attributes:
        system: parts of the system message, of `PARTS`, in order.
        chat_messages: how many of the last messages stay chat turns; None = all.
        wordings: text of each of `SLOTS`, in every combination of the texts that there are several of.
    """

    name: str
    system: tuple[str, ...]
    chat_messages: int | None
    wordings: tuple[Mapping[str, str], ...] = field(hash=False)
    baselines: Mapping[str, Baseline] = field(hash=False)

    @property
    def chooses_strategy(self) -> bool:
        """Whether the model names the strategy in its reply; else the prompt names it."""
        return "choice" in self.system

    @property
    def wording(self) -> Mapping[str, str]:
        """The texts that all prompts share, with the first of those that they take turns with."""
        return self.wordings[0]

    @property
    def strategy_spans(self) -> tuple[str, ...]:
        """Kinds of spans that its words mark of a strategy (see `Span`)."""
        text = self.wording["listed_strategy" if self.chooses_strategy else "strategy"]
        return tuple(span.kind for span in mark_strategy(text, "name", "definition").spans)

    def choose_wording(self, dialogue: str, turn: int, strategy: int) -> Mapping[str, str]:
        """The texts of the prompt for a strategy, by its number in the inventory, at a turn of a dialogue.

        Where the turn's first strategy begins is drawn, the others follow in order. So the wordings are balanced over
        strategies, and they are the same in every run that asks for a strategy at a turn.
        """
        first = derive_seed(EVALUATION_SEED, "wording", dialogue, turn)
        return self.wordings[(first + strategy) % len(self.wordings)]

    def baseline(self, name: str) -> Baseline:
        """The prompting baseline, which `best_of_n` is too; a UserError if there is none of this name."""
        if name == BEST_OF:
            return Baseline(choose=True)
        if name not in self.baselines:
            what = f"no such baseline{nearest(name, self.baselines)}"
            raise UserError(what, where=f"prompt.inference={name}", fix=f"use {', '.join([*self.baselines, BEST_OF])}")
        return self.baselines[name]


def load_layout(name: str, config_dirs: Sequence[str | Path] = ()) -> Layout:
    """The layout of a name, in the words of `conf/wording/default.yaml`; raises what `build_layout` does."""
    return build_layout(TemplateConfig(template=name), config_dirs)


def build_layout(settings: TemplateConfig, config_dirs: Sequence[str | Path] = ()) -> Layout:
    """The layout that the section of a configuration holds; one with nothing but a name is looked up by it.

    Raises:
        UserError: something is wrong in it, or there is none of this name.
    """
    name = settings.template
    where = f"prompt layout '{name}'"
    data = settings.layout or find_layout(name, config_dirs)
    check_keys(data, ("system", "chat_messages", "wording", "baselines"), where)
    system = tuple(check_type(part, str, "a part", where) for part in require(data, "system", list, where))
    for part in system:
        if part not in PARTS or system.count(part) > 1:
            what = f"part '{part}' twice" if part in PARTS else f"unknown part '{part}'{nearest(part, PARTS)}"
            raise UserError(what, where=f"{where}, system", fix=f"use each of {', '.join(PARTS)} at most once")
    if ("choice" in system) == ("instruction" in system):
        fix = "choice lists the inventory for the model to choose from, instruction names the strategy"
        raise UserError("either 'choice' or 'instruction' has to be there", where=f"{where}, system", fix=fix)
    count = optional(data, "chat_messages", int, where)
    if count is not None and (count < 1 or "history" not in system):
        fix = "a whole number from 1, with 'history' among the parts of system; or null for all messages"
        raise UserError(f"'chat_messages' is {count}", where=where, fix=fix)
    baselines = {
        key: _baseline(value, f"prompt.baselines.{key}") for key, value in (data.get("baselines") or {}).items()
    }
    wordings = _wordings(require(data, "wording", dict, where), f"{where}, wording")
    return Layout(name, system, count, wordings, baselines or {"direct": Baseline()})


def _wordings(wording: Mapping[str, Any], where: str) -> tuple[Mapping[str, str], ...]:
    """The wording with each combination of the texts that there are several of."""
    lists = {name: value for name in SEVERAL if isinstance(value := wording.get(name), list) and value}
    return tuple(
        check_wording({**wording, **dict(zip(lists, texts, strict=True))}, SLOTS, where)
        for texts in product(*lists.values())
    )


def _baseline(value: object, where: str) -> Baseline:
    data = check_type(value, dict, "the baseline", where)
    check_keys(data, ("system", "follow_ups", "reply_marker", "example"), where)
    follow_ups = optional(data, "follow_ups", list, where) or []
    return Baseline(
        optional(data, "system", str, where) or "",
        tuple(check_type(text, str, "a follow-up", where) for text in follow_ups),
        optional(data, "reply_marker", str, where),
        bool(optional(data, "example", bool, where)),
    )
