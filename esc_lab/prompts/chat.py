"""Prompts: a dialogue up to a supporter turn, and perhaps a strategy, become chat messages with marked spans.

They know neither tokens nor models. Messages after the system message always alternate, start with the seeker (`user`)
and end with the seeker. Four rules make it so, the same for every model:

1. Consecutive seeker turns are joined by a newline.
2. Supporter turns before the first seeker turn are quoted at the head of the first user message.
3. Between supporter turns that are kept apart (`data.merge=none`) stands a user message, `pause` of the wording.
4. A chat without a system role gets the system text at the head of its first user message (`without_system_role`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from esc_lab.data.dialogue import Dialogue, Turn
from esc_lab.data.strategies import Inventory
from esc_lab.prompts.layouts import Layout
from esc_lab.prompts.replies import label_text, reply_content
from esc_lab.prompts.spans import MarkedText, Span, fill, join, mark_neutral, mark_strategy

Role = Literal["system", "user", "assistant"]
_SPEAKERS: Mapping[str, str] = {"user": "seeker", "assistant": "supporter"}


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True)
class Prompt:
    """Messages that end with a user message, and the strategy-relevant spans in them."""

    messages: tuple[Message, ...]
    spans: tuple[Span, ...] = ()


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
) -> Prompt:
    """The prompt for the supporter's reply at index `turn` of the dialogue.

    Args:
        strategy: canonical name; required where the prompt names the strategy, ignored where the model chooses.
        history_labels: show `(strategy)` before the supporter's turns of the history.
        situation: show the seeker's situation, if the dialogue has one.
        inference: name of the prompting baseline.
        start: first turn of the history that is shown; a seeker turn, to shorten a history that is too long.

    Raises:
        ValueError: the layout needs a strategy and none is given.
    """
    if strategy is None and not layout.chooses_strategy:
        raise ValueError(f"template '{layout.name}' needs a strategy")
    chat = history_messages(dialogue.turns[start:turn], layout.wording, labels=history_labels)
    kept = chat if layout.chat_messages is None else chat[-layout.chat_messages :]
    older = chat[: len(chat) - len(kept)]
    words = layout.wording
    parts = {"role": MarkedText(words["role"]), "inference": _baseline_text(layout, inventory, inference)}
    if situation and dialogue.situation:
        parts["situation"] = fill(words["situation"], situation=dialogue.situation)
    if older:
        parts["history"] = fill(words["history"], messages=_transcript(older))
    if strategy is None or layout.chooses_strategy:
        parts["choice"] = _choice(words, inventory)
    else:
        text = mark_strategy(words["strategy"], strategy, inventory.definition(strategy))
        neutral = mark_neutral(words["neutral"], words["neutral_phrase"])
        parts["instruction"] = fill(words["instruction"], strategy=text, neutral=neutral)
    system = join("\n\n", [parts[part] for part in layout.system if part in parts and parts[part].text])
    return Prompt((Message("system", system.text), *kept), system.spans)


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


def _choice(words: Mapping[str, str], inventory: Inventory) -> MarkedText:
    listed = [
        mark_strategy(words["listed_strategy"], strategy.name, strategy.definition) for strategy in inventory.strategies
    ]
    return fill(words["choice"], strategies=join("\n", listed))


def _transcript(messages: Sequence[Message]) -> str:
    return "\n".join(f"{_SPEAKERS[message.role]}: {message.content}" for message in messages)


def _baseline_text(layout: Layout, inventory: Inventory, name: str) -> MarkedText:
    baseline = layout.baseline(name)
    pieces = [MarkedText(baseline.system)] if baseline.system else []
    if baseline.example:
        exchanges = "\n".join(
            f"seeker: {exchange.seeker}\nsupporter: {reply_content(layout, exchange.supporter, (exchange.strategy,))}"
            for exchange in inventory.example
        )
        pieces.append(fill(layout.wording["example"], exchanges=exchanges))
    return join("\n\n", pieces)
