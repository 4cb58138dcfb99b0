"""A continuation as training data: the supporter's words without what is no part of them, or why it is none."""

from __future__ import annotations

import re
from collections.abc import Sequence

from esc_lab.data.strategies import Inventory
from esc_lab.metrics.text import copied_share, repeated_share
from esc_lab.scorers.adherence import bare_reply
from esc_lab.search.requests import Answer
from esc_lab.search.role_answers import UnusableError, clean_message, ends_with_sentence

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
    answer: Answer,
    known: Sequence[str],
    inventory: Inventory,
    *,
    max_tokens: int,
    max_copied: float,
    told: Sequence[str] = (),
) -> tuple[str, frozenset[str]]:
    """The reply of an answer, without role prefixes and anything that names its strategy.

    Args:
        known: texts that its prompt shows: what it answers, and examples.
        max_tokens: at which an answer is cut off: its last sentence is left out where it is not whole.
        max_copied: most of its runs of four words that these texts, or the reply before them, may hold.
        told: what its prompt says of the strategy. Nor may the reply hold more than that share of any of these texts:
            one that recites a definition and goes on is no example of the strategy.

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
    if copied_share(reply, [*known, *told]) > max_copied:
        raise UnusableError("it copies what its prompt shows", kind="copy")
    if any(copied_share(text, [reply]) > max_copied for text in told):
        raise UnusableError("it recites what its prompt says of the strategy", kind="copy")
    if repeated_share(reply) > max_copied:
        raise UnusableError("it repeats itself", kind="repetition")
    return reply, removed
