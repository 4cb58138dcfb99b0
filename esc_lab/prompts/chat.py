"""Prompts and replies: a dialogue up to a supporter turn, and perhaps a strategy, as messages with marked spans.

They know neither tokens nor models. Messages after the system message always alternate, start with the seeker (`user`)
and end with the seeker. Four rules make it so, the same for every model:

1. Consecutive seeker turns are joined by a newline.
2. Supporter turns before the first seeker turn are quoted at the head of the first user message.
3. Between supporter turns that are kept apart (`data.merge=none`) stands a user message, `pause` of the wording.
4. A chat without a system role gets the system text at the head of its first user message (`without_system_role`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from esc_lab.data.dialogue import Dialogue, Turn
from esc_lab.data.strategies import MAX_NAME, Exchange, Inventory, Strategy, UnknownStrategyError, normalize_label
from esc_lab.prompts.layouts import Layout
from esc_lab.prompts.wording import MarkedText, Span, fill, join, mark_neutral, mark_strategy

Role = Literal["system", "user", "assistant"]
_SPEAKERS: Mapping[str, str] = {"user": "seeker", "assistant": "supporter"}
# What models of reasoning write around it; where the prompt holds the first tag, only the second is there.
_TAGS = "think|thinking|thought|reasoning|seed:think"
_REASONING_START = re.compile(rf"\A\s*(?:<(?:{_TAGS})>|\[THINK\])", re.IGNORECASE)
_REASONING_END = re.compile(rf"\A.*(?:</(?:{_TAGS})>|\[/THINK\])", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True)
class Prompt:
    """Messages that end with a user message, and the strategy-relevant spans in them."""

    messages: tuple[Message, ...]
    spans: tuple[Span, ...] = ()

    @property
    def neutral(self) -> dict[str, str] | None:
        """The control of attention: its `phrase`, and its `place`, before or after the strategy; None without one."""
        spans = {span.kind: span for span in self.spans}
        if "neutral_name" not in spans or "instruction" not in spans:
            return None
        span = spans["neutral_name"]
        place = "before" if span.start < spans["instruction"].start else "after"
        return {"phrase": self.messages[span.message].content[span.start : span.end], "place": place}


def build_prompt(
    layout: Layout,
    inventory: Inventory,
    dialogue: Dialogue,
    turn: int,
    strategy: str | None = None,
    *,
    history_labels: bool,
    situation: bool = False,
    inference: str = "direct",
    start: int = 0,
    unconditional: bool = False,
    examples: Sequence[Exchange] = (),
) -> Prompt:
    """The prompt for the supporter's reply at index `turn` of the dialogue.

    Args:
        strategy: canonical name; required where the prompt names the strategy, unless it is `unconditional`; ignored
            where the model chooses.
        history_labels: show `(strategy)` before the supporter's turns of the history.
        situation: show the seeker's situation, if the dialogue has one.
        inference: name of the prompting baseline.
        start: first turn of the history that is shown; a seeker turn, to shorten a history that is too long.
        unconditional: name no strategy: of the instruction only what says how to write is left.
        examples: exchanges that are shown with what the prompting baseline shows.

    Raises:
        ValueError: the layout needs a strategy and none is given.
    """
    words = layout.wording
    chat = history_messages(dialogue.turns[start:turn], words, labels=history_labels)
    kept = chat if layout.chat_messages is None else chat[-layout.chat_messages :]
    older = chat[: len(chat) - len(kept)]
    shown = _baseline_text(layout, inventory, inference, examples)
    parts = {"role": MarkedText(words["role"]), "inference": shown}
    if situation and dialogue.situation:
        parts["situation"] = fill(words["situation"], situation=dialogue.situation)
    if older:
        quoted = "\n".join(f"{_SPEAKERS[message.role]}: {message.content}" for message in older)
        marks = () if layout.chooses_strategy else (Span("history", 0, 0, len(quoted)),)
        parts["history"] = fill(words["history"], messages=MarkedText(quoted, marks))
    if layout.chooses_strategy:
        parts["choice"] = _list_strategies(words["choice"], words["listed_strategy"], inventory.strategies)
    elif unconditional:
        words = layout.choose_wording(dialogue.id, turn, len(inventory))
        if "{neutral}" in words["instruction"]:
            parts["instruction"] = mark_neutral(words["neutral"], words["neutral_phrase"])
    elif strategy is None:
        raise ValueError(f"template '{layout.name}' needs a strategy")
    else:
        words = layout.choose_wording(dialogue.id, turn, inventory.index(strategy))
        text = mark_strategy(words["strategy"], strategy, inventory.definition(strategy))
        neutral = mark_neutral(words["neutral"], words["neutral_phrase"])
        parts["instruction"] = fill(words["instruction"], strategy=text, neutral=neutral)
    system = join("\n\n", [parts[part] for part in layout.system if part in parts and parts[part].text])
    spans = system.spans
    if not layout.chooses_strategy:
        spans += tuple(Span("history", number, 0, len(message.content)) for number, message in enumerate(kept, 1))
    return Prompt((Message("system", system.text), *kept), spans)


@lru_cache(maxsize=64)  # the same in every prompt of a run
def _list_strategies(choice: str, listed: str, strategies: tuple[Strategy, ...]) -> MarkedText:
    marked = [mark_strategy(listed, each.name, each.definition) for each in strategies]
    return fill(choice, strategies=join("\n", marked))


def history_messages(turns: Sequence[Turn], wording: Mapping[str, str], *, labels: bool) -> tuple[Message, ...]:
    """The turns before a supporter reply as user / assistant messages: rules 1 to 3 of the module's docstring."""
    openings: list[str] = []
    messages: list[Message] = []
    for turn in turns:
        if turn.speaker == "seeker":
            if messages and messages[-1].role == "user":
                messages[-1] = replace(messages[-1], content=f"{messages[-1].content}\n{turn.reply.text}")
            else:
                messages.append(Message("user", turn.reply.text))
        elif not messages:
            openings.append(turn.reply.text)
        else:
            if messages[-1].role == "assistant":
                messages.append(Message("user", wording["pause"]))
            label = f"{label_text(turn.reply.strategies[0])} " if labels and turn.reply.strategies else ""
            messages.append(Message("assistant", label + turn.reply.text))
    if not messages:
        messages.append(Message("user", wording["start"]))
    elif messages[-1].role == "assistant":
        messages.append(Message("user", wording["pause"]))
    if openings:
        opening = fill(wording["opening"], opening="\n".join(openings))
        messages[0] = Message("user", f"{opening.text}\n{messages[0].content}")
    return tuple(messages)


def without_system_role(prompt: Prompt) -> Prompt:
    """Rule 4: the system text at the head of the first user message. Spans cover the same text as before."""
    system, first, *rest = prompt.messages
    head = f"{system.content}\n\n"
    spans = tuple(
        replace(span.moved(len(head) if span.message == 1 else 0), message=max(span.message - 1, 0))
        for span in prompt.spans
    )
    return Prompt((Message("user", head + first.content), *rest), spans)


def label_text(strategy: str) -> str:
    """The label as models write it: the complete label whose probability is the strategy's."""
    return f"({strategy})"


def reply_content(layout: Layout, text: str, strategies: Sequence[str]) -> str:
    """What the model is to write: `(<strategy>) <text>` where it chooses the strategy, the first of several.

    Where it does not, or the reply has none, its text alone.
    """
    return f"{label_text(strategies[0])} {text}" if layout.chooses_strategy and strategies else text


def drop_reasoning(content: str) -> str:
    """What a model answers: what follows its reasoning (`<think> ... </think>`); nothing where that does not end.

    >>> drop_reasoning("<think>They are sad.</think> I hear you.")
    'I hear you.'
    """
    answer = _REASONING_END.sub("", content, count=1)
    return "" if _REASONING_START.match(answer) else answer.strip()


def parse_reply(content: str, inventory: Inventory, reply_marker: str | None = None) -> tuple[str | None, str]:
    """Strategy and text of what a model wrote, its reasoning apart; with a marker, of what follows it.

    The strategy is None where there is no leading label or it is not in the inventory under any known spelling. The
    text is without the label and without a role prefix such as `supporter:`.
    """
    content = drop_reasoning(content)
    if reply_marker:
        content = content.rpartition(reply_marker)[2]
    text = re.sub(r"^\s*(assistant|supporter)\s*:\s*", "", content, flags=re.IGNORECASE).strip()
    match = re.match(rf"[(\[]([^()\[\]\n]{{1,{MAX_NAME}}})[)\]]:?\s*", text)
    if match is None:
        return None, text
    try:
        strategy = normalize_label(match.group(1), inventory)
    except UnknownStrategyError:
        strategy = None
    return strategy, text[match.end() :].strip()


def _baseline_text(layout: Layout, inventory: Inventory, name: str, examples: Sequence[Exchange]) -> MarkedText:
    baseline = layout.baseline(name)
    pieces = [MarkedText(baseline.system)] if baseline.system else []
    if shown := (*(inventory.example if baseline.example else ()), *examples):
        exchanges = "\n".join(
            f"seeker: {exchange.seeker}\nsupporter: {reply_content(layout, exchange.supporter, (exchange.strategy,))}"
            for exchange in shown
        )
        pieces.append(fill(layout.wording["example"], exchanges=exchanges))
    return join("\n\n", pieces)
