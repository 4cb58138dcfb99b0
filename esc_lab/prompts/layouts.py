"""Prompt templates: a dialogue up to a supporter turn, and perhaps a strategy, become chat messages.

Templates know neither tokens nor models. Each prompt carries the character spans of its strategy-relevant text, so that
attention on it can be measured later.

Templates (facts and names after the CSO and SRA papers; the wording is this project's own):

- `cso`: the system message lists the inventory; the model names its strategy itself, `(<strategy>) <reply>`.
- `standard`: the system message asks for one strategy; the whole history follows as chat turns.
- `cK_hf`, `cK_hl` (K = 1, 3, 5): only the last K messages stay chat turns. Older history is quoted in the system
  message, before (`hf`, history first) or after (`hl`, history last) the strategy instruction.

Messages after the system message always alternate, start with the seeker (`user`) and end with the seeker. Four rules
make it so, the same for every model:

1. Consecutive seeker turns are joined by a newline.
2. Supporter turns before the first seeker turn are quoted at the head of the first user message.
3. Between supporter turns that are kept apart (`data.merge=none`) stands a user message `PAUSE`.
4. A chat without a system role gets the system text at the head of its first user message (`without_system_role`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from esc_lab.data.dialogue import Dialogue, Turn
from esc_lab.data.strategies import Inventory, UnknownStrategyError, normalize_label

Role = Literal["system", "user", "assistant"]
SpanKind = Literal["name", "quoted", "instruction", "neutral_name", "neutral_quoted", "neutral"]

PAUSE = "[The seeker has not answered yet; the supporter writes again.]"
START = "[The seeker has just joined the chat.]"


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True)
class Span:
    """Characters `start:end` of the content of message number `message`.

    Kinds: `name` (strategy name), `quoted` (name with its quotation marks), `instruction` (name with its definition),
    `neutral` (instruction text that has nothing to do with a strategy: the control), and in it `neutral_name` and
    `neutral_quoted`, worded and quoted like a strategy's name.
    """

    kind: SpanKind
    message: int
    start: int
    end: int
    strategy: str | None = None


@dataclass(frozen=True)
class Prompt:
    """Messages that end with a user message, and the strategy-relevant spans in them."""

    messages: tuple[Message, ...]
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Template:
    """Layout of a prompt.

    Attributes:
        chooses_strategy: the model names the strategy in its reply; else the prompt names it.
        chat_messages: how many of the last messages stay chat turns; None = all.
        history_first: where older history goes in the system message, before or after the strategy instruction.
    """

    name: str
    chooses_strategy: bool = False
    chat_messages: int | None = None
    history_first: bool = True


TEMPLATES: Mapping[str, Template] = {
    "cso": Template("cso", chooses_strategy=True),
    "standard": Template("standard"),
    **{
        f"c{k}_{where}": Template(f"c{k}_{where}", chat_messages=k, history_first=where == "hf")
        for k in (1, 3, 5)
        for where in ("hf", "hl")
    },
}


@dataclass(frozen=True)
class Inference:
    """A prompting baseline: text added to the system message, and follow-up requests after the model's answers.

    The last answer counts; with `reply_marker` only what follows the marker.
    """

    system: str = ""
    follow_ups: tuple[str, ...] = ()
    reply_marker: str | None = None


INFERENCE: Mapping[str, Inference] = {
    "direct": Inference(),
    "cot": Inference(
        system=(
            "Before you answer, think. Write 'Thought:' and then one or two sentences about what the seeker feels and "
            "needs now and which strategy serves that. Then write 'Reply:' and your reply in the form asked for."
        ),
        reply_marker="Reply:",
    ),
    "direct_refine": Inference(
        follow_ups=("Read your reply again as the seeker would and write a better one. Keep the form. Only the reply.",)
    ),
    "self_refine": Inference(
        follow_ups=(
            "What is good and what is weak about your reply: strategy, empathy, fit to what the seeker said? Two "
            "sentences.",
            "Now write a new reply that mends what you named. Keep the form. Only the reply.",
        )
    ),
    "with_example": Inference(),  # its text is the inventory's example
}

_ROLE = (
    "You are the supporter in an emotional support conversation. The seeker comes to you with a problem that weighs on "
    "them."
)
_CHOOSE = (
    "Choose for each reply the one strategy from this list that helps the seeker most at this point of the "
    "conversation:"
)
_FORM = (
    "Answer in the form (<strategy>) <response>, with a name from the list in the brackets and one to three sentences "
    "after it."
)
_NEUTRAL_NAME = "short chat message"
_NEUTRAL = (
    f'Write in the style "{_NEUTRAL_NAME}": one to three plain sentences in everyday words, without lists, headings '
    "or emoji, as one person types to another in the same conversation."
)


def build_prompt(
    template: Template,
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
        strategy: canonical name; required where the template names the strategy, ignored where the model chooses.
        history_labels: show `(strategy)` before the supporter's turns of the history.
        situation: show the seeker's situation, if the dialogue has one.
        inference: key of `INFERENCE`.
        start: first turn of the history that is shown; a seeker turn, to shorten a history that is too long.

    Raises:
        ValueError: the template needs a strategy and none is given.
    """
    chat = history_messages(dialogue.turns[start:turn], labels=history_labels)
    kept = chat if template.chat_messages is None else chat[-template.chat_messages :]
    older = chat[: len(chat) - len(kept)]
    text = _Text()
    text.add(_ROLE)
    if situation and dialogue.situation:
        text.add(f"\n\nThe seeker's situation: {dialogue.situation}")
    if template.chooses_strategy:
        _add_inventory(text, inventory)
    else:
        if strategy is None:
            raise ValueError(f"template '{template.name}' needs a strategy")
        if older and template.history_first:
            text.add(_transcript(older))
        _add_instruction(text, strategy, inventory.definition(strategy))
        if older and not template.history_first:
            text.add(_transcript(older))
    extra = _example(inventory, template) if inference == "with_example" else INFERENCE[inference].system
    if extra:
        text.add(f"\n\n{extra}")
    return Prompt((Message("system", text.text), *kept), tuple(text.spans))


def reply_content(template: Template, text: str, strategies: Sequence[str]) -> str:
    """What the model is to write: `(<strategy>) <text>` where it chooses the strategy, else the text alone.

    A reply without a strategy is its text alone. Of several strategies the first is named.
    """
    return f"{label_text(strategies[0])} {text}" if template.chooses_strategy and strategies else text


def label_text(strategy: str) -> str:
    """The label as models write it: the complete label whose probability is the strategy's."""
    return f"({strategy})"


def parse_reply(content: str, inventory: Inventory, inference: str = "direct") -> tuple[str | None, str]:
    """Strategy and text of what a model wrote.

    The strategy is None where there is no leading label or it is not in the inventory under any known spelling. The
    text is without the label and without a role prefix such as `supporter:`.
    """
    marker = INFERENCE[inference].reply_marker
    if marker:
        content = content.rpartition(marker)[2]
    text = re.sub(r"^\s*(assistant|supporter)\s*:\s*", "", content, flags=re.IGNORECASE).strip()
    match = re.match(r"[(\[]([^()\[\]\n]{1,60})[)\]]:?\s*", text)
    if match is None:
        return None, text
    try:
        return normalize_label(match.group(1), inventory), text[match.end() :].strip()
    except UnknownStrategyError:
        return None, text[match.end() :].strip()


def history_messages(turns: Sequence[Turn], *, labels: bool) -> tuple[Message, ...]:
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
                messages.append(Message("user", PAUSE))
            label = f"{label_text(turn.reply.strategies[0])} " if labels and turn.reply.strategies else ""
            messages.append(Message("assistant", label + turn.reply.text))
    if not messages:
        messages.append(Message("user", START))
    elif messages[-1].role == "assistant":
        messages.append(Message("user", PAUSE))
    if openings:
        opening = "\n".join(openings)
        messages[0] = Message("user", f'[The supporter opened the chat with: "{opening}"]\n{messages[0].content}')
    return tuple(messages)


def without_system_role(prompt: Prompt) -> Prompt:
    """Rule 4: the system text at the head of the first user message. Spans cover the same text as before."""
    system, first, *rest = prompt.messages
    head = f"{system.content}\n\n"
    spans = []
    for span in prompt.spans:
        shift = len(head) if span.message == 1 else 0
        spans.append(replace(span, message=max(span.message - 1, 0), start=span.start + shift, end=span.end + shift))
    return Prompt((Message("user", head + first.content), *rest), tuple(spans))


class _Text:
    """Text under construction that remembers where its pieces are."""

    def __init__(self) -> None:
        self.text = ""
        self.spans: list[Span] = []

    def add(self, piece: str) -> tuple[int, int]:
        start = len(self.text)
        self.text += piece
        return start, len(self.text)

    def mark(self, kind: SpanKind, start: int, end: int, strategy: str | None = None) -> None:
        self.spans.append(Span(kind, 0, start, end, strategy))


def _add_inventory(text: _Text, inventory: Inventory) -> None:
    text.add(f"\n\n{_CHOOSE}")
    for strategy in inventory.strategies:
        text.add("\n- ")
        start, end = text.add(strategy.name)
        text.mark("name", start, end, strategy.name)
        _, stop = text.add(f": {strategy.definition}")
        text.mark("instruction", start, stop, strategy.name)
    text.add(f"\n\n{_FORM}")


def _add_instruction(text: _Text, strategy: str, definition: str) -> None:
    text.add("\n\nIn your next reply use the strategy ")
    quote, _ = text.add('"')
    start, end = text.add(strategy)
    _, unquote = text.add('"')
    _, stop = text.add(f": {definition}")
    text.mark("name", start, end, strategy)
    text.mark("quoted", quote, unquote, strategy)
    text.mark("instruction", quote, stop, strategy)
    text.add(" ")
    first, last = text.add(_NEUTRAL)
    start = first + _NEUTRAL.index(_NEUTRAL_NAME)
    text.mark("neutral", first, last)
    text.mark("neutral_name", start, start + len(_NEUTRAL_NAME))
    text.mark("neutral_quoted", start - 1, start + len(_NEUTRAL_NAME) + 1)


def _transcript(messages: Sequence[Message]) -> str:
    speakers = {"user": "seeker", "assistant": "supporter"}
    lines = "\n".join(f"{speakers[message.role]}: {message.content}" for message in messages)
    return f"\n\nThe conversation so far:\n{lines}"


def _example(inventory: Inventory, template: Template) -> str:
    lines = (
        f"seeker: {exchange.seeker}\nsupporter: {reply_content(template, exchange.supporter, (exchange.strategy,))}"
        for exchange in inventory.example
    )
    return "\n".join(("An example of such a conversation:", *lines))
