"""Probabilities of a question's options from the alternatives to the tokens of an answer, which endpoints serve.

They are those of a model that is loaded here: that it goes on with this option after the lead, and not with a longer
one. Alternatives beyond those that are served (20) count as none.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from esc_lab.search.requests import Answer, Question, Request, TopLogProbs

# Of an option that is not among the alternatives; JSON has no infinite number.
_LEAST = 1e-9
# A beginning of several options is asked about if so much of all that was seen goes to it.
_WORTH_A_CALL = 0.01
_BEFORE = " \t\r\n\"'*_(["


async def answer_questions(
    send: Callable[[Request], Awaitable[Answer]], request: Request, *, continues: bool
) -> Answer:
    """The answer to a request with questions, each asked by itself, and so written down and paid for by itself.

    Args:
        continues: the endpoint goes on with a lead, so that it can be asked what follows a beginning of several options
            (`1` of 1 and 10) that it has not written.

    Returns:
        `log_probs` of each question; empty for one where none of the options can be seen.

    Raises:
        UserError: the first error; calls that are under way then are waited for, as they are paid for.
    """

    unseen: list[Answer] = []

    async def ask(question: Question) -> tuple[float, ...]:
        answer = await send(replace(request, questions=(question,)))
        masses, several = read_options(answer.top_logprobs, question.options, question.lead)
        seen = sum(masses) + sum(several.values())
        if not seen:
            unseen.append(answer)
            return ()
        for start in [start for start, mass in several.items() if continues and mass > _WORTH_A_CALL * seen]:
            further = await send(replace(request, questions=(replace(question, lead=question.lead + start),)))
            shares = _share(*read_options(further.top_logprobs, question.options, start=start), question.options)
            if sum(shares) > 0:
                mass = several.pop(start) / sum(shares)
                masses = [own + mass * share for own, share in zip(masses, shares, strict=True)]
        masses = _share(masses, several, question.options)
        return tuple(math.log(max(own / seen, _LEAST)) for own in masses)

    rows = await asyncio.gather(*map(ask, request.questions), return_exceptions=True)
    for row in rows:
        if isinstance(row, BaseException):
            raise row
    log_probs = tuple(row for row in rows if not isinstance(row, BaseException))
    return replace(unseen[-1] if unseen else Answer(), log_probs=log_probs)


def read_options(
    tokens: TopLogProbs, options: Sequence[str], lead: str = "", *, start: str = ""
) -> tuple[list[float], dict[str, float]]:
    """The probability of each option, and of each beginning that several options have, after which nothing was served.

    What was written is one path through the tree of tokens; at each of its tokens the alternatives are where others
    leave it, with the probability of what was written up to there times their own. An option that others go on from has
    what none of these follows.

    Args:
        tokens: of the answer, from its first.
        lead: the answer may repeat it first.
        start: what the options begin with was given before the answer.
    """
    names = [option.casefold() for option in options]
    before = "".join(set(_BEFORE).difference(*names))
    masses, several = [0.0] * len(names), dict[str, float]()

    def find(text: str) -> tuple[str, list[int]]:
        """What was written of an option, and the options that it is or can become."""
        read = (start + text if start else text.lstrip(before)).casefold()
        coming = [number for number, name in enumerate(names) if read and name.startswith(read)]
        ended = [number for number, name in enumerate(names) if read.startswith(name) and _ends(read[len(name) :])]
        return read, coming or ended

    def add(mass: float, text: str) -> None:
        read, coming = find(text)
        if len(coming) == 1:
            masses[coming[0]] += mass
        elif coming:
            several[read] = several.get(read, 0.0) + mass

    rows, text = _skip_lead(tokens, lead)
    reached = 1.0
    for (token, log_prob), *others in rows:
        read, _ = find(text)
        whole = names.index(read) if read in names else None
        rest = reached
        for other, other_log_prob in ((token, log_prob), *others):
            mass = reached * math.exp(other_log_prob)
            if whole is None or set(find(text + other)[1]) - {whole}:
                rest -= mass
                if other != token:
                    add(mass, text + other)
        if whole is not None:
            masses[whole] += max(rest, 0.0)
        text, reached = text + token, reached * math.exp(log_prob)
        read, coming = find(text)
        if whole is not None and not set(coming) - {whole}:
            return masses, several
        if read and len(coming) < 2:
            break
    add(reached, text)
    return masses, several


def _ends(rest: str) -> bool:
    """Whether an option ends where this follows it, as `7` does in `7.` and not in `70`."""
    return not rest[:1].isalnum()


def _skip_lead(tokens: TopLogProbs, lead: str) -> tuple[TopLogProbs, str]:
    """The tokens after a lead that an answer repeats, and what of its last token follows the lead."""
    wanted, text = lead.strip().casefold(), ""
    for number, ((token, _), *_others) in enumerate(tokens, 1):
        text = (text + token).lstrip()
        if len(text) >= len(wanted):
            repeats = wanted and text.casefold().startswith(wanted)
            return (tokens[number:], text[len(wanted) :]) if repeats else (tokens, "")
    return tokens, ""


def _share(shares: list[float], several: dict[str, float], options: Sequence[str]) -> list[float]:
    """The shares, with those of beginnings: of the option that one is, else even among those that it can become."""
    shares, names = [*shares], [option.casefold() for option in options]
    for start, mass in several.items():
        begun = [number for number, name in enumerate(names) if name == start]
        begun = begun or [number for number, name in enumerate(names) if name.startswith(start)]
        for number in begun:
            shares[number] += mass / len(begun)
    return shares
