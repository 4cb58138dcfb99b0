"""What a role's completion says, or why it cannot be used. Reasoning before the answer is no part of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from typing import Any

from esc_lab.data.dialogue import Speaker
from esc_lab.data.strategies import Inventory, UnknownStrategyError, normalize_label
from esc_lab.prompts import END, drop_reasoning

_ROLE = re.compile(
    r"\A[\s\"'*]*(?:the )?(supporter|seeker|assistant|user)[\s*]*(?:[(\[][^()\[\]\n]*[)\]][\s*]*)?(?::\**|-(?=\s))\s*",
    re.IGNORECASE,
)
_OWN_NAMES: Mapping[Speaker, tuple[str, str]] = {"supporter": ("supporter", "assistant"), "seeker": ("seeker", "user")}
_NEXT_ROLE = re.compile(r"\n[ \t]*\**(?:supporter|seeker|assistant|user)\b[^\n:]{0,60}:", re.IGNORECASE)
# A label before a message, in brackets or before a colon.
_LABEL = re.compile(
    r"\A[\s*\"]*(?:[(\[]([^()\[\]\n]{1,60})[)\]]\**(?:\s*:\**)?|([A-Za-z][A-Za-z \-&/]{1,60})\**:\**)\s*"
)
# `name: number`, perhaps in a list, in quotation marks or in bold.
_LINE = re.compile(
    r"^[ \t\-*\"'(\d.)]*([A-Za-z][A-Za-z \-&/]{0,60}?)[\"'*)]*[ \t]*[:=][ \t*\"']*(\d+(?:\.\d+)?)", re.MULTILINE
)
_YES_NO = re.compile(r"^[ \t\-*\"']*(\w[\w -]{0,60}?)[\"'*]*[ \t]*[:=][ \t*\"']*((?i:yes|no))\b", re.MULTILINE)
_YES_OR_NO = {"yes": True, "true": True, "no": False, "false": False}
_SENTENCE_END = re.compile(r"[.!?…][\"'”\u2019)\]]*(?=\s|\Z)")
_END = re.compile(re.escape(END).replace("END", r"\s*END\s*"), re.IGNORECASE)
_BETTER = re.compile(r"(?i:\bbetter)[\"'*]*\s*[:=]\s*[\"'*]*([AB])\b")
_ALONE = re.compile(r"\A[\s\"'*(\[]*([AB])[\s\"'*)\].]*\Z")
_MAX_BRACES = 100  # at which an object is looked for: each try may read all that follows
# What hardly anybody says in a talk, and prompts do: 1 of 38,365 turns of ESConv has it.
_META = re.compile(
    r"\b(?:you are|you're|you play|playing|i am|i'm) (?:a|the) (?:seeker|supporter)\b"
    r"|\bthe (?:seeker|supporter)'s (?:next|last) message\b|\bemotional support conversation\b",
    re.IGNORECASE,
)
_AROUND = (("**", "**"), ("*", "*"), ('"', '"'), ("“", "”"))


class UnusableError(ValueError):
    """A completion cannot be used; the message tells the model why. `partly` is what could be used of it, if any.

    `kind` is the name that such answers are counted by, where they have one.
    """

    def __init__(self, message: str, partly: Any = None, kind: str = "") -> None:
        super().__init__(message)
        self.partly, self.kind = partly, kind


def parse_numbers(text: str, best: int) -> tuple[dict[str, float], dict[str, str]]:
    """Name -> number in [0, best] of a JSON object in the text, or of lines `name: number`.

    For other numbers, name -> what is wrong. An UnusableError where there is no such thing in the text.
    """
    text = take_answer(text)
    named = find_object(text)
    if named is None:
        named = {name.strip(): value for name, value in _LINE.findall(text)}
    if not named:
        raise UnusableError("there is no JSON object with a number for each name in it")
    values: dict[str, float] = {}
    wrong: dict[str, str] = {}
    for name, value in named.items():
        number = _parse_number(value)
        if number is None:
            wrong[name] = f"{name[:40]!r} has no number"
        elif not 0 <= number <= best:  # nor is NaN
            wrong[name] = f"{name[:40]!r} is {json.dumps(value)[:40]}, which is not from 0 to {best}"
        else:
            values[name] = number
    return values, wrong


def parse_ratings(text: str, inventory: Inventory) -> dict[str, float]:
    """Rating of each strategy that was rated, from 0 to 10, in the order of the completion.

    Raises:
        UnusableError: nothing can be read, a rating is none, or there are names that the inventory does not have;
            `partly` holds the rest.
    """
    values, wrong = parse_numbers(text, 10)
    known: dict[str, float] = {}
    unknown = []
    for name, value in values.items():
        strategy = _find_strategy(name, inventory)
        if strategy is None:
            unknown.append(repr(name[:40]))
        else:
            known[strategy] = value
    reasons = list(wrong.values())[:3]
    if unknown:
        reasons.append(f"{', '.join(unknown[:3])}: no such strategy; use {', '.join(inventory.names)}")
    if reasons:
        raise UnusableError("; ".join(reasons), partly=known or None)
    return known


def parse_scores(text: str, axes: Sequence[str]) -> dict[str, float]:
    """Score of each axis, from 0 to 4; an UnusableError where one has none. What else there is does not matter."""
    values, wrong = parse_numbers(text, 4)
    folded = {name.lower(): value for name, value in values.items()}
    why = {name.lower(): reason for name, reason in wrong.items()}
    missing = [name for name in axes if name.lower() not in folded]
    if missing:
        raise UnusableError("; ".join(why.get(name.lower(), f"no score for {name}") for name in missing))
    return {name: folded[name.lower()] for name in axes}


def parse_yes_no(text: str, names: Sequence[str], reason: str) -> tuple[dict[str, bool], str]:
    """Whether each name is answered with yes, in a JSON object or in lines `name: yes`, and what a JSON object says
    under the name `reason`.

    Raises:
        UnusableError: one is answered with neither yes nor no.
    """
    text = take_answer(text)
    named = find_object(text) or dict(_YES_NO.findall(text))
    folded = {str(name).strip().lower(): str(value).strip(" .\"'").lower() for name, value in named.items()}
    missing = [name for name in names if folded.get(name.lower()) not in _YES_OR_NO]
    if missing:
        raise UnusableError("; ".join(f"no yes or no for {name}" for name in missing))
    return {name: _YES_OR_NO[folded[name.lower()]] for name in names}, str(named.get(reason, "")).strip()


def parse_preference(text: str) -> str:
    """`A` or `B`: the message that a judge prefers; an UnusableError where it does not say, or says both."""
    text = take_answer(text)
    named = set(_BETTER.findall(text)) or set(_ALONE.findall(text))
    if len(named) != 1:
        raise UnusableError("it does not say which message is better, A or B")
    return str(named.pop())


def parse_message(text: str, side: Speaker, inventory: Inventory, *, cut_off: bool = False) -> str:
    """What one side says, by `clean_message`, which tells more."""
    return clean_message(text, side, inventory, cut_off=cut_off)[0]


def clean_message(
    text: str, side: Speaker, inventory: Inventory, *, cut_off: bool = False
) -> tuple[str, frozenset[str]]:
    """What one side says: without a role or strategy label before it, quotation marks around it, or turns after it.

    Where its token limit has cut it off, a last sentence that is not whole is left out if others are.

    Returns:
        The message, and what was taken off it: `role_prefix`, `label`, `further_turns`, `unfinished_sentence`.

    Raises:
        UnusableError: nothing is left, it is marked as the other side's, or it is about the roles: "You are a seeker".
    """
    said, removed = take_answer(text), set()
    role = _ROLE.match(said)
    if role:
        if role[1].lower() not in _OWN_NAMES[side]:
            raise UnusableError(f"it is not the {side}'s message but the other side's", kind="other_side")
        said = said[role.end() :]
        removed.add("role_prefix")
    following = _NEXT_ROLE.search(said)
    if following:
        said = said[: following.start()]
        removed.add("further_turns")
    label = _LABEL.match(said)
    if label and _find_strategy(label[1] or label[2], inventory):
        said = said[label.end() :]
        removed.add("label")
    if _META.search(said):
        raise UnusableError(f"it is about seeker and supporter, and no message of the {side}", kind="meta")
    said = _unwrap(said.strip())
    ends = [match.end() for match in _SENTENCE_END.finditer(said)]
    if cut_off and ends and not following and said[ends[-1] :].strip():
        said = said[: ends[-1]].rstrip()
        removed.add("unfinished_sentence")
    if not re.search(r"\w", said):
        raise UnusableError("there is no message in it")
    return said, frozenset(removed)


def ends_with_sentence(text: str) -> bool:
    """Whether a text ends as a sentence does."""
    return any(match.end() == len(text) for match in _SENTENCE_END.finditer(text))


def split_end(text: str) -> tuple[str, bool]:
    """What a seeker says and whether it ends the talk with it, by the marker; that may stand alone without brackets.

    >>> split_end("Thanks, bye! [END]"), split_end("And then?"), split_end('"End."')
    (('Thanks, bye!', True), ('And then?', False), ('', True))
    """
    said, *after = _END.split(drop_reasoning(text), maxsplit=1)
    said = said.strip()
    bare = said.strip("\"'*.() \t\n")
    return ("", True) if bare.upper() in ("", END.strip("[]")) and (after or bare) else (said, bool(after))


def take_answer(text: str) -> str:
    """A completion without the reasoning before it; an UnusableError where it does not come to its end."""
    answer = drop_reasoning(text)
    if text.strip() and not answer:
        raise UnusableError("it ends within its reasoning, before any answer")
    return answer


@lru_cache(maxsize=1024)
def _find_strategy(label: str, inventory: Inventory) -> str | None:
    try:
        return normalize_label(label, inventory)
    except UnknownStrategyError:
        return None


def _unwrap(said: str) -> str:
    """Without quotation marks or asterisks around the whole; those around a part of it stay."""
    before = None
    while said != before:
        before = said
        for opening, closing in _AROUND:
            inner = said.removeprefix(opening).removesuffix(closing)
            if opening not in inner and closing not in inner:
                said = inner.strip()
    return said


def _parse_number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return None


def find_object(text: str) -> Mapping[str, Any] | None:
    """The first JSON object with a number in a text, be it in a code block, among words or in another object."""
    decoder = json.JSONDecoder()
    objects: list[Mapping[str, Any]] = []
    for brace in islice(re.finditer(r"\{", text), _MAX_BRACES):
        with suppress(ValueError, RecursionError):
            objects.append(decoder.raw_decode(text, brace.start())[0])
            if any(_parse_number(number) is not None for number in objects[-1].values()):
                return objects[-1]
    return next(filter(None, objects), None)
