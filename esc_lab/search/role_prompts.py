"""Prompts of the four roles of the search. The conversation comes first in each, and what is asked for last.

Strategist, supporter and judge share one system message with the strategies, and the transcript with their labels;
the seeker sees its own situation and a transcript without labels. So the prompts of a conversation share their
prefixes with each other and with those of its next turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from esc_lab.data.dialogue import Turn
from esc_lab.data.strategies import Inventory
from esc_lab.prompts import Message

END = "[END]"

# The published strategist's nudge (an option): it must not repeat a strategy or lean on planning all the time.
DISCOURAGE = "Do not pick the strategy of the supporter's last message again."
PLANNING = "Collaborative Planning"
DISCOURAGE_PLANNING = f"Do not always favour '{PLANNING}'."


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


def support_messages(inventory: Inventory, history: Sequence[Turn], asked: str) -> tuple[Message, ...]:
    """Prompt of strategist, supporter or judge."""
    strategies = "\n".join(f"- {strategy.name}: {strategy.definition}" for strategy in inventory.strategies)
    system = (
        "You know emotional support conversations well. A seeker talks to a supporter, who uses these strategies:\n"
        f"{strategies}"
    )
    return _messages(system, transcript(history, labels=True), asked)


def seeker_messages(seeker: SeekerProfile, history: Sequence[Turn], asked: str) -> tuple[Message, ...]:
    """Prompt of the seeker."""
    about = [f"What happened to you: {seeker.situation}"] if seeker.situation else []
    about += [f"What it is about: {seeker.problem}."] if seeker.problem else []
    about += [f"How you feel: {seeker.emotion}."] if seeker.emotion else []
    system = (
        "You play the seeker in an emotional support conversation: an ordinary person with a real problem, who talks "
        "to a supporter. You never play the supporter.\n" + "\n".join(about)
    )
    return _messages(system.strip(), transcript(history, labels=False), asked)


def transcript(history: Sequence[Turn], *, labels: bool) -> str:
    """The conversation, a line a turn."""
    return "\n".join(_line(turn, labels) for turn in history)


def _line(turn: Turn, labels: bool) -> str:
    text = " ".join(turn.reply.text.split())
    label = f" ({turn.reply.strategies[0]})" if labels and turn.reply.strategies else ""
    return f"{turn.speaker}{label}: {text}"


def _messages(system: str, conversation: str, asked: str) -> tuple[Message, ...]:
    return Message("system", system), Message("user", f"The conversation so far:\n\n{conversation}\n\n{asked}")


def rate_request(inventory: Inventory, *, json: bool, discourage: bool) -> str:
    """What the strategist is asked."""
    parts = ["How well does each strategy suit the supporter's next message? Rate it from 0 (not at all) to 10 (best)."]
    if discourage:
        parts += [DISCOURAGE, *([DISCOURAGE_PLANNING] if PLANNING in inventory.names else [])]
    if json:
        names = ", ".join(f'"{name}": rating' for name in inventory.names)
        parts.append(f"Answer with one JSON object and nothing else: {{{names}}}")
    else:
        parts.append("Answer in the form 'strategy: rating'.")
    return " ".join(parts)


def reply_request(inventory: Inventory, strategy: str) -> str:
    """What the supporter is asked."""
    return (
        f'Write the supporter\'s next message. Use the strategy "{strategy}": {inventory.definition(strategy)} '
        "Speak plainly and warmly, like a person, in one to three short sentences. Write only the message, no label."
    )


def answer_request(*, marker: bool) -> str:
    """What the seeker is asked."""
    asked = (
        "Write the seeker's next message, fewer than 20 words, in everyday language. Answer what the supporter said. "
        "Tell a little more of your story if it fits, not everything at once. Do not only say thanks."
    )
    end = f" If you have had enough of the talk or feel better and want to stop, write {END} instead."
    return f"{asked}{end if marker else ''} Write only the message."


def end_request() -> str:
    """What the seeker is asked where its wish to end the talk is read off probabilities."""
    return "Does the seeker end the conversation here, or does it go on? Answer with one word, 'ends' or 'continues'."


def judge_request(axes: Sequence[Axis], *, json: bool) -> str:
    """What the judge is asked."""
    rubric = "\n".join(f"- {axis.name}: {axis.rubric}" for axis in axes)
    form = "{" + ", ".join(f'"{axis.name}": score' for axis in axes) + "}"
    how = f"Answer with one JSON object and nothing else: {form}" if json else "Answer in the form 'aspect: score'."
    return f"Score the supporter's last message from 0 (worst) to 4 (best) on each of these aspects:\n{rubric}\n{how}"


def prefer_request(axes: Sequence[Axis], first: str, second: str, *, json: bool) -> str:
    """What the judge is asked of two replies."""
    rubric = "\n".join(f"- {axis.name}: {axis.rubric}" for axis in axes)
    form = """Answer with one JSON object and nothing else: {"better": "A"} or {"better": "B"}"""
    how = form if json else "Answer in the form 'better: A' or 'better: B'."
    return (
        "Two messages that the supporter could send next:\n"
        f"A: {' '.join(first.split())}\nB: {' '.join(second.split())}\n\n"
        f"Which of them helps the seeker more? Look at these aspects:\n{rubric}\n"
        f"Neither the order of the messages nor their length is a merit. {how}"
    )


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
