"""Measures of whole talks, from the talks alone: how they end, what the supporter writes, what it does to the emotion.

A measure of a talk is a number, or missing where the talk has nothing to measure it on; a set of talks has the mean
over those that have it. The greeting is no reply. docs/arena.md says what the measures mean and what they do not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from esc_lab.data.dialogue import Dialogue, Turn
from esc_lab.evaluation.arena.talk import ENDS
from esc_lab.metrics.text import split_words

RUN_WORDS = 4  # in a row, that count as said before
QUESTION_MARKS = "?\uff1f\u061f"  # the full-width and the Arabic one, too


def measure_talk(talk: Dialogue, *, success: float, max_turns: int) -> dict[str, float]:
    """The measures of a talk that stage `converse` left.

    Args:
        success: highest intensity at which the talk has succeeded.
        max_turns: supporter turns at which talks end; a talk without success counts as having taken so many.

    Returns:
        `turns` (of the supporter); `supporter_words`, `seeker_words` (of a message); `repeated` and `echoed`, the
        shares of the supporter's runs of four words that it, or the seeker, has said before; `asks`, the share of its
        replies with a question; `labelled`, the share with a strategy; `strategies` (different ones);
        `strategy_repeats`, the share of its strategies that the turn before had too; `ended_by_seeker`; and, where the
        intensity is known at first, `intensity_start`, `intensity_end`, `relief`, `success` and `turns_to_success`.
    """
    replies, seeker = _split(talk)
    texts = [turn.reply.text for turn in replies]
    labels = [turn.reply.strategies[0] if turn.reply.strategies else None for turn in replies]
    pairs = _pairs(labels)
    known = {
        "turns": float(len(replies)),
        "supporter_words": _mean(len(_words(text)) for text in texts),
        "seeker_words": _mean(len(_words(turn.reply.text)) for turn in seeker),
        **_said_before(talk.turns[1:]),
        "asks": _mean(any(mark in text for mark in QUESTION_MARKS) for text in texts),
        "labelled": _mean(label is not None for label in labels),
        "strategies": float(len({*labels} - {None})) if any(labels) else None,
        "strategy_repeats": _mean(before == after for before, after in pairs),
        "ended_by_seeker": float(talk.meta["ends"] == "seeker"),
        **measure_emotion(talk.meta["intensity"], success=success, max_turns=max_turns),
    }
    return {name: value for name, value in known.items() if value is not None}


def measure_talks(talks: Sequence[Dialogue], *, success: float, max_turns: int) -> dict[str, float]:
    """`talks`, their number; means of their measures, shares of their ends (`ends/...`) and of their strategies
    (`strategy/...`), and of these `strategy_entropy` and `transition_entropy`, in bits: how evenly strategies are
    used, and how little the strategy of a turn says about that of the next one.
    """
    measured = [measure_talk(talk, success=success, max_turns=max_turns) for talk in talks]
    names = dict.fromkeys(name for measures in measured for name in measures)
    metrics = {"talks": float(len(talks))}
    metrics |= {name: fmean(each[name] for each in measured if name in each) for name in names}
    ends = Counter(talk.meta["ends"] for talk in talks)
    metrics |= {f"ends/{end}": ends[end] / len(talks) for end in ENDS}
    counts, following = count_strategies(talks)
    if total := counts.total():
        metrics |= {f"strategy/{name}": count / total for name, count in sorted(counts.items())}
        metrics["strategy_entropy"] = entropy(counts.values())
    if moves := sum(map(Counter.total, following.values())):
        metrics["transition_entropy"] = (
            sum(each.total() * entropy(each.values()) for each in following.values()) / moves
        )
    return metrics


def describe_talks(talks: Sequence[Dialogue], *, success: float, max_turns: int) -> dict[str, Any]:
    """What `measures.json` holds: the measures of each talk, transitions between strategies, and mean intensities
    after the opening and after each turn, with the number of talks that they are of.
    """
    _, following = count_strategies(talks)
    return {
        "success": success,
        "max_turns": max_turns,
        "talks": {talk.tree_id: measure_talk(talk, success=success, max_turns=max_turns) for talk in talks},
        "transitions": {name: dict(sorted(each.items())) for name, each in sorted(following.items())},
        "intensity": average_intensities([talk.meta["intensity"] for talk in talks]),
    }


def average_intensities(intensities: Iterable[Sequence[float | None]]) -> list[list[float]]:
    """After the opening and after each turn: the turn's number, the mean intensity, and of how many talks it is."""
    by_turn: dict[int, list[float]] = {}
    for intensity in intensities:
        for turn, value in enumerate(intensity):
            by_turn.setdefault(turn, []).extend([] if value is None else [value])
    return [[turn, fmean(values), len(values)] for turn, values in sorted(by_turn.items()) if values]


def count_strategies(talks: Iterable[Dialogue]) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """How often each strategy was used, and after each of them which followed in the supporter's next turn."""
    counts: Counter[str] = Counter()
    following: dict[str, Counter[str]] = {}
    for talk in talks:
        labels = [turn.reply.strategies[0] if turn.reply.strategies else None for turn in _split(talk)[0]]
        counts.update(label for label in labels if label is not None)
        for before, after in _pairs(labels):
            following.setdefault(before, Counter())[after] += 1
    return counts, following


def entropy(counts: Iterable[int]) -> float:
    """Shannon entropy of counts, in bits.

    >>> entropy([2, 1, 1]), entropy([4])
    (1.5, 0.0)
    """
    kept = [count for count in counts if count]
    total = sum(kept)
    return sum(count / total * math.log2(total / count) for count in kept)


def _split(talk: Dialogue) -> tuple[list[Turn], list[Turn]]:
    """The supporter's replies and the seeker's messages."""
    replies = [turn for turn in talk.turns[1:] if turn.speaker == "supporter"]
    return replies, [turn for turn in talk.turns if turn.speaker == "seeker"]


def _words(text: str) -> list[str]:
    return [word for word in split_words(text) if word[0].isalnum()]


def _pairs(labels: Sequence[str | None]) -> list[tuple[str, str]]:
    return [(a, b) for a, b in pairwise(labels) if a is not None and b is not None]


def _said_before(turns: Sequence[Turn]) -> dict[str, float | None]:
    """Shares of the runs of four words of the supporter's replies that it, or the seeker, has said before."""
    said: dict[str, set[tuple[str, ...]]] = {"supporter": set(), "seeker": set()}
    runs = 0
    counts = {"repeated": 0, "echoed": 0}
    for turn in turns:
        words = _words(turn.reply.text)
        for start in range(len(words) - RUN_WORDS + 1):
            run = tuple(words[start : start + RUN_WORDS])
            if turn.speaker == "supporter":
                runs += 1
                counts["repeated"] += run in said["supporter"]
                counts["echoed"] += run in said["seeker"]
            said[turn.speaker].add(run)
    return {name: count / runs if runs else None for name, count in counts.items()}


def measure_emotion(intensity: Sequence[float | None], *, success: float, max_turns: int) -> dict[str, float]:
    """What the supporter's turns did to the intensity of the emotion; nothing where its first one is not known.

    A supporter after none of whose turns it is known (it says nothing, or ends the talk at once) did nothing, as far as
    anybody can tell. That is no missing value: a supporter would look the better the more of its talks it gives up.

    Args:
        intensity: after the seeker's first message, and after each turn of the supporter; None where it is not known.
        success, max_turns: see `measure_talk`.
    """
    start, after = intensity[0] if intensity else None, intensity[1:]
    told = [(turn, value) for turn, value in enumerate(after, start=1) if value is not None]
    if start is None:
        return {}
    end = told[-1][1] if told else start
    reached = next((turn for turn, value in told if value <= success), None)
    return {
        "intensity_start": start,
        "intensity_end": end,
        "relief": start - end,
        "success": float(reached is not None),
        "turns_to_success": float(reached or max_turns),
    }


def _mean(values: Iterable[float]) -> float | None:
    found = [*values]
    return fmean(found) if found else None
