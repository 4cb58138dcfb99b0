"""What a page shows of the whole talks of several runs: card by card, the runs side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from esc_lab.comparison.result import ComparisonResult
from esc_lab.data.dialogue import Dialogue
from esc_lab.evaluation.arena.read_talks import Talks
from esc_lab.metrics.prediction_table import Key
from esc_lab.metrics.talks import TALKS
from esc_lab.report.dialogue_browser import MOST_CHARACTERS, choose_runs, link
from esc_lab.report.page import short_labels
from esc_lab.report.reproduction import run_names
from esc_lab.runs.layout import JOURNAL_SUFFIX
from esc_lab.runs.layout import TALKS as JOURNALS

_TOLD = ("relief", "success", "turns_to_success")  # measures of a talk that stand below it


def talks_data(comparison: ComparisonResult, directory: Path) -> dict[str, Any] | None:
    """The talks as JSON types; None without any.

    If there are more runs than fit beside one another, it is the first seed of each cell, as far as they fit.

    Args:
        directory: where the page is to lie; links are relative to it.

    Returns:
        `strategies` and `codes`; `talks`, what is known of each (`card`, `talk`, `situation` and so on); `texts`, to
        which numbers point; `runs` with their `talks` in the same order (see `_describe`); `success` and `max_turns`;
        `left_out`, the names of runs that are not shown.
    """
    runs, left_out = choose_runs(comparison, lambda run: run.of_talks)
    if not runs or comparison.test is None:
        return None
    names, first = run_names(comparison.cells), comparison.talks[runs[0].directory]
    rows = {key: row for row, key in enumerate(comparison.test.keys)}  # of all runs
    texts: dict[str, int] = {}
    shown: list[dict[str, Any]] = []
    size = 0
    for run in runs:
        known = len(texts)
        talks, folder = comparison.talks[run.directory], run.directory / JOURNALS
        own = [_describe(talks, key, rows[key], texts) for key in first.dialogues]
        size += len(json.dumps(own)) + sum(map(len, [*texts][known:]))
        if shown and size > MOST_CHARACTERS:
            left_out.append(names[run.directory])
            for text in [*texts][known:]:
                del texts[text]
            continue
        journals = link(folder, directory) if any(folder.glob(f"*{JOURNAL_SUFFIX}")) else None
        shown.append({"name": names[run.directory], "talks": own, "journals": journals})
    return {
        "strategies": list(comparison.test.strategies),
        "codes": short_labels(comparison.test.strategies),
        "talks": [_introduce(*talk) for talk in first.dialogues.items()],
        "texts": [*texts],
        "runs": shown,
        "success": first.success,
        "max_turns": first.max_turns,
        "left_out": left_out,
    }


def _introduce(key: Key, talk: Dialogue) -> dict[str, Any]:
    about = {"situation": talk.situation, "problem": talk.problem, "emotion": talk.emotion}
    return {"card": key[0], "talk": key[1], **about, "hard": talk.meta.get("hard", "")}


def _describe(talks: Talks, key: Key, row: int, texts: dict[str, int]) -> dict[str, Any]:
    """A talk: `turns` as [0 for the seeker or 1, number of the text, number of the strategy or -1], `ends`, `intensity`
    after the opening and after each turn of the supporter (null where it is not known), and some measures.
    """
    talk = talks.dialogues[key]
    numbers = {name: number for number, name in enumerate(talks.table.test.strategies)}
    turns = [
        [
            int(turn.speaker == "supporter"),
            texts.setdefault(turn.reply.text, len(texts)),
            next((numbers[name] for name in turn.reply.strategies if name in numbers), -1),
        ]
        for turn in talk.turns
    ]
    values = {name: float(talks.table.column(f"{TALKS}{name}")[row]) for name in _TOLD}
    measures = {name: value for name, value in values.items() if math.isfinite(value)}
    return {"turns": turns, "ends": talk.meta["ends"], "intensity": talk.meta["intensity"], **measures}
