"""A continuation as training data: the supporter's words without what is no part of them, or why it is none."""

from __future__ import annotations

import re
from collections.abc import Sequence

from esc_lab.data.strategies import Inventory
from esc_lab.scorers.adherence import bare_reply
from esc_lab.search.requests import Answer
from esc_lab.search.role_answers import UnusableError, clean_message, ends_with_sentence

RUN_WORDS = 4  # in a row, of reply and history, that count as copied
# What is taken off a reply that is used, and what a reply is not used for.
REMOVED = ("role_prefix", "label", "further_turns", "unfinished_sentence")
UNUSABLE = ("refused", "empty", "cut_off", "copy", "repetition", "other_side", "meta")
# What no supporter says to a seeker, and models do that were shown who is who.
_ABOUT = re.compile(
    r"\b(?:the|this) (?:seeker|supporter)\b|\bthe conversation so far\b"
    r"|\A\W*(?:sure\W+)?here(?:'s|\u2019s| is) (?:a|an|the|one|my) (?:\w+ ){0,3}(?:response|reply|message|version)\b",
    re.IGNORECASE,
)


def read_continuation(
    answer: Answer, known: Sequence[str], inventory: Inventory, *, max_tokens: int, max_copied: float
) -> tuple[str, frozenset[str]]:
    """The reply of an answer, without role prefixes and anything that names its strategy.

    Args:
        known: texts that its prompt shows: what it answers, and examples.
        max_tokens: at which an answer is cut off: its last sentence is left out where it is not whole.
        max_copied: most of its runs of four words that these texts, or the reply before them, may hold.

    Returns:
        The reply, and what was taken off it, of `REMOVED`.

    Raises:
        UnusableError: it cannot be used; its `kind` is one of `UNUSABLE`.
    """
    if answer.refusal:
        raise UnusableError("the model refused", kind="refused")
    cut_off = answer.is_cut_off(max_tokens)
    try:
        said, removed = clean_message(answer.text, "supporter", inventory, cut_off=cut_off)
    except UnusableError as error:
        raise UnusableError(str(error), kind=error.kind or ("cut_off" if cut_off else "empty")) from error
    reply = bare_reply(said, inventory)
    if reply.split() != said.split():
        removed |= {"label"}
    if not re.search(r"\w", reply):
        raise UnusableError("there is nothing but a label in it", kind="empty")
    if cut_off and "further_turns" not in removed and not ends_with_sentence(reply):
        raise UnusableError(f"no sentence of it comes to its end within {max_tokens} tokens", kind="cut_off")
    if _ABOUT.search(reply):
        raise UnusableError("it is about its task or the roles, and no message to the seeker", kind="meta")
    if copied_share(reply, known) > max_copied:
        raise UnusableError("it copies what its prompt shows", kind="copy")
    if repeated_share(reply) > max_copied:
        raise UnusableError("it repeats itself", kind="repetition")
    return reply, removed


def copied_share(reply: str, known: Sequence[str]) -> float:
    """Share of the runs of four words of a reply that are in some known text, whatever case and punctuation.

    A shorter reply is copied (1) if it is all that one of these texts says.

    >>> copied_share("I feel so alone today, and you?", ["I feel so alone today."])
    0.5
    """
    words, texts = _words(reply), [_words(text) for text in known]
    if len(words) < RUN_WORDS:
        return float(words in texts)
    there = {run for text in texts for run in _runs(text)}
    runs = _runs(words)
    return sum(run in there for run in runs) / len(runs)


def repeated_share(reply: str) -> float:
    """Share of the runs of four words of a reply that it has said before.

    >>> repeated_share("I am not okay. I am not okay.")
    0.2
    """
    runs = _runs(_words(reply))
    return (len(runs) - len(set(runs))) / len(runs) if runs else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.replace("\u2019", "'").replace("'", "").lower())


def _runs(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + RUN_WORDS]) for start in range(len(words) - RUN_WORDS + 1)]
