"""ESConv (Liu et al. 2021): the raw `ESConv.json` and the one-dialogue-a-line files of the published split.

Raw turns are `{speaker: seeker | supporter, annotation: {strategy?, feedback?}, content}`, those of the split
`{speaker: usr | sys, strategy?, text}`; `FailedESConv.json` of the same authors says `speaker` and `listener`. The
seeker's answers in `survey_score` are the dialogue's survey. They and everything else that a record holds go to `meta`
under the corpus' own keys, annotations of single turns to `meta["turn_annotations"]` by the turn's index (from 0, as
text). `tree_id` is a hash of situation and messages.
"""

from __future__ import annotations

from typing import Any

from esc_lab.data.corpora.reading import Reading, seed_id
from esc_lab.data.corpora.records import Record
from esc_lab.data.dialogue import Dialogue, Reply, Speaker, Survey, Turn
from esc_lab.data.fields import items, optional, require
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError

_SPEAKERS: dict[str, Speaker] = {
    "usr": "seeker",
    "seeker": "seeker",
    "speaker": "seeker",
    "sys": "supporter",
    "supporter": "supporter",
    "listener": "supporter",
}
_ANSWERS = {
    "initial_intensity": "initial_emotion_intensity",
    "final_intensity": "final_emotion_intensity",
    "empathy": "empathy",
    "relevance": "relevance",
}
_FIELDS = {"dialog", "situation", "emotion_type", "problem_type"}


def read_dialogue(record: Record, reading: Reading) -> Dialogue:
    """The dialogue of a record; turns without text are dropped and counted.

    Raises:
        UserError: the record or turn is not of this format.
    """
    data, where = record.data, record.where
    inventory = reading.inventory(None, where)
    turns: list[Turn] = []
    annotations: dict[str, dict[str, Any]] = {}
    for item, place in items(require(data, "dialog", list, where), dict, "turn", where):
        turn, rest = _turn(item, inventory, reading, place)
        if not turn.reply.text:
            reading.report.empty_turns_dropped += 1
            continue
        if rest:
            annotations[str(len(turns))] = rest
        turns.append(turn)
    situation, emotion, problem = (
        (optional(data, key, str, where) or "").strip() for key in ("situation", "emotion_type", "problem_type")
    )
    meta = {key: value for key, value in data.items() if key not in _FIELDS}
    return reading.dialogue(
        turns,
        inventory,
        where,
        tree_id=seed_id(situation, *(turn.reply.text for turn in turns)),
        situation=situation,
        emotion=emotion,
        problem=problem,
        meta=meta | ({"turn_annotations": annotations} if annotations else {}),
        survey=_survey(data.get("survey_score"), reading),
    )


def _survey(scores: object, reading: Reading) -> Survey | None:
    """The seeker's answers, which the corpus writes as texts; unreadable ones are counted and stay in `meta` only."""
    seeker = scores.get("seeker") if isinstance(scores, dict) else None
    scored = seeker if isinstance(seeker, dict) else {}
    given = {name: scored[key] for name, key in _ANSWERS.items() if scored.get(key) not in (None, "")}
    answers = {name: int(str(value)) for name, value in given.items() if str(value) in ("1", "2", "3", "4", "5")}
    reading.report.survey_answers_unreadable += len(given) - len(answers)
    return Survey(**answers) if answers else None


def _turn(data: dict[str, Any], inventory: Inventory, reading: Reading, where: str) -> tuple[Turn, dict[str, Any]]:
    """The turn, and its annotations other than the supporter's strategy."""
    name = require(data, "speaker", str, where)
    if name not in _SPEAKERS:
        raise UserError(f"unknown speaker '{name}'", where=where, fix=f"use one of {', '.join(_SPEAKERS)}")
    speaker = _SPEAKERS[name]
    key = "text" if "text" in data else "content"
    text = reading.text(require(data, key, str, where), where)
    rest = {name: value for name, value in data.items() if name not in ("speaker", "annotation", key)}
    rest |= optional(data, "annotation", dict, where) or {}
    strategies: tuple[str, ...] = ()
    if speaker == "supporter":
        strategies = reading.labels([optional(rest, "strategy", str, where) or ""], inventory, where)
        rest.pop("strategy", None)
    return Turn(speaker, Reply(text, strategies)), rest
