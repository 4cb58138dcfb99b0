"""What a run of stage `converse` left, as comparisons read it: measures of each talk as a table, and the talks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from esc_lab.artifacts import READ_ERRORS, fingerprint
from esc_lab.data.corpora import read_dialogues
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.evaluation.arena.measures import count_strategies
from esc_lab.metrics.prediction_table import NO_GOLD, NOT_ASKED, PAIR_MEASURES, Key, PredictionTable, TestSet
from esc_lab.metrics.talks import TALKS, TALKS_OF_CARDS, USES
from esc_lab.runs.layout import JOURNAL_SUFFIX, TALK_MEASURES, TALKS_FILE
from esc_lab.search.clients.replay import find_recordings
from esc_lab.search.journal import journal_settings, read_journal_config

INTENSITY = "intensity/"  # columns of the table: after the opening (0) and after each turn
# Beginnings of settings in which talks may differ: those of the supporter, and where the seeker's model is served.
_FREE = ("schedule", "prompt.", "roles.supporter.", "roles.seeker.client.base_url")


@dataclass(frozen=True)
class Talks:
    """The talks of a run.

    Attributes:
        table: a row for each talk, `test.keys` being card and number; values are the measures by their names as
            metrics, the uses of each strategy (`uses/NUMBER`), and the intensity after each turn (`intensity/TURN`).
        dialogues: by the same keys, in the order of the run.
        success, max_turns: settings of the measures.
    """

    table: PredictionTable
    dialogues: Mapping[Key, Dialogue]
    success: float
    max_turns: int


def read_talks(directory: Path, inventory: Inventory) -> Talks:
    """The talks in a run directory.

    Raises:
        UserError: there are none, or a file cannot be read.
    """
    path = directory / TALK_MEASURES
    talks = read_dialogues(directory / TALKS_FILE, "jsonl", inventory=inventory)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        by_key = {(str(talk.meta["card"]), int(talk.meta["talk"])): talk for talk in talks}
        columns = {
            key: _list_values(talk, record["talks"][talk.tree_id], inventory.names) for key, talk in by_key.items()
        }
        success, most = float(record["success"]), int(record["max_turns"])
    except READ_ERRORS as error:
        what = f"not the measures of {TALKS_FILE}: {type(error).__name__} {error}"
        fix = "name a finished run of stage=converse; resume=RUN writes its files anew without asking again"
        raise UserError(what, where=str(path), fix=fix) from error
    return Talks(_tabulate(by_key, columns, inventory.names), by_key, success, most)


def read_talk_settings(directory: Path) -> dict[str, dict[str, Any]]:
    """By talk, what its seeker's side and its measures depend on, by dotted name, as its journal's first line says."""
    found = {}
    for path in find_recordings(directory):
        flat = journal_settings(read_journal_config(path) or {})
        kept = {name: value for name, value in flat.items() if not name.startswith(_FREE)}
        found[path.name.removesuffix(JOURNAL_SUFFIX)] = kept
    return found


def _list_values(talk: Dialogue, measures: Mapping[str, float], strategies: Sequence[str]) -> dict[str, float]:
    counts, _ = count_strategies([talk])
    return {
        **{f"{TALKS}{name}": float(value) for name, value in measures.items()},
        **{f"{USES}{number}": float(counts[name]) for number, name in enumerate(strategies)},
        **{f"{INTENSITY}{turn}": value for turn, value in enumerate(talk.meta["intensity"]) if value is not None},
    }


def _tabulate(
    talks: Mapping[Key, Dialogue], columns: Mapping[Key, Mapping[str, float]], strategies: Sequence[str]
) -> PredictionTable:
    keys = sorted(talks)
    cards, cluster = np.unique([card for card, _ in keys], return_inverse=True)
    told = [(talks[key].situation, talks[key].problem, talks[key].emotion) for key in keys]
    test = TestSet(
        identity=fingerprint([[*key, *about] for key, about in zip(keys, told, strict=True)]),
        strategies=tuple(strategies),
        keys=tuple(keys),
        gold=np.zeros((len(keys), len(strategies)), bool),
        first=np.full(len(keys), NO_GOLD),
        cluster=cluster,
        clusters=len(cards),
        dialogues=len(cards),
        turn=np.zeros(len(keys), np.intp),
        problem=np.array([problem for _, problem, _ in told]),
        emotion=np.array([emotion for _, _, emotion in told]),
        kind=TALKS_OF_CARDS,
    )
    names = dict.fromkeys(name for values in columns.values() for name in values)
    no_choice = np.full(len(keys), NOT_ASKED)
    return PredictionTable(
        test=test,
        decision=np.arange(len(keys)),
        sample=np.zeros(len(keys), np.intp),
        prompted=no_choice,
        chosen=no_choice,
        written=no_choice,
        distribution=np.full((len(keys), len(strategies)), math.nan),
        values={name: np.array([columns[key].get(name, math.nan) for key in keys]) for name in names},
        words=np.empty((2, 0), np.int32),
        pairs=np.empty((1 + len(PAIR_MEASURES), 0)),
        sampling={},
        unmeasured={},
    )
