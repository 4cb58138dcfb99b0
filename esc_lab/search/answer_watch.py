"""Stops a search in which no answer of a role can be used, before it has spent everything on such answers."""

from __future__ import annotations

from collections import Counter, defaultdict

from esc_lab.errors import UserError
from esc_lab.search.requests import Answer

MIN_ANSWERS = 30  # of a role, before it is said that none of them can be used

_FIXES = {
    "refused": "another model, or other words in conf/roles",
    "cut off": "raise llm.{role}.max_tokens; a model that reasons needs room for that too",
    "empty": "if the model only reasons, raise llm.{role}.max_tokens, or turn reasoning off with llm.openai.extra_body",
    "unreadable": "another model; llm.openai.structured=true where the endpoint can hold a model to a form",
}


class AnswerWatch:
    """Counts the answers of each role that cannot be used, until one of the role can."""

    def __init__(self) -> None:
        self._usable: set[str] = set()
        self._unusable: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def note_usable(self, role: str) -> None:
        """An answer of the role can be used, or a part of it."""
        self._usable.add(role)

    def note_unusable(self, role: str, answer: Answer, max_tokens: int, reason: str) -> None:
        """An answer of the role cannot be used, for this reason.

        Raises:
            UserError: neither can any other of the role, and there are `MIN_ANSWERS` of them.
        """
        if role in self._usable:
            return
        counts = self._unusable[role]
        counts[describe_unusable(answer, max_tokens)] += 1
        if counts.total() < MIN_ANSWERS:
            return
        shown = {"cut off": f"cut off at max_tokens ({max_tokens})"}
        parts = [f"{count} {shown.get(kind, kind)}" for kind, count in counts.most_common()]
        total = counts.total()
        what = f"{total} of {total} answers cannot be used: {', '.join(parts)}; of the last one: {reason}"
        raise UserError(what, where=f"llm.{role}", fix=_FIXES[counts.most_common(1)[0][0]].format(role=role))


def describe_unusable(answer: Answer, max_tokens: int) -> str:
    """What is wrong with an unusable answer as a whole: `refused`, `cut off`, `empty` or `unreadable`."""
    if answer.refusal:
        return "refused"
    if answer.is_cut_off(max_tokens):
        return "cut off"
    return "unreadable" if answer.text.strip() else "empty"
