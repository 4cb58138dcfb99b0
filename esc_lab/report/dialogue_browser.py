"""What a page shows of the decisions of several runs, made small: texts once, shares of probability in thousandths."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from esc_lab.comparison.result import ComparisonResult
from esc_lab.comparison.runs import Run
from esc_lab.data.corpora import read_dialogues
from esc_lab.data.dialogue import Dialogue, Turn
from esc_lab.data.strategies import build_inventory
from esc_lab.metrics.predictions import Prediction, read_predictions
from esc_lab.report.page import short_labels
from esc_lab.report.reproduction import run_names, tree_pages
from esc_lab.runs.layout import DIALOGUES

MOST_RUNS = 12  # side by side
MOST_CHARACTERS = 7_000_000

_Key = tuple[str, int]


def browser_data(comparison: ComparisonResult, directory: Path) -> dict[str, Any] | None:
    """The decisions of the test set with what each run did there, as JSON types; None without predictions.

    If there are more runs than fit beside one another, it is the first seed of each cell, as far as they fit.

    Args:
        comparison: of runs with predictions.
        directory: where the page is to lie; links are relative to it.

    Returns:
        `strategies` and `codes`; `texts`, to which numbers called reply point; `dialogues` in their order; `decisions`
        as [dialogue, turn, gold strategies, reply]; `runs` with a column for each thing that some row has (see
        `_Rows`); `left_out`, the names of runs that are not shown; `context`, whether the dialogues' turns are known.

    Raises:
        UserError: a `dialogues.jsonl` cannot be read.
    """
    runs, left_out = choose_runs(comparison, lambda run: run.predictions is not None)
    if comparison.test is None or not runs:
        return None
    strategies, names = comparison.test.strategies, run_names(comparison.cells)
    decisions = _Decisions(strategies)
    shown: list[dict[str, Any]] = []
    size = 0
    for run in runs:
        if shown and size * (len(shown) + 1) / len(shown) > MOST_CHARACTERS:
            left_out.append(names[run.directory])
            continue
        columns = decisions.add(run, directory)
        cell = next(cell for cell in comparison.cells if run in cell.runs)
        shown.append({"name": names[run.directory], "model": cell.model, "cell": cell.name, **columns})
        size += len(json.dumps(columns, separators=(",", ":")))
    known = _read_dialogues(runs, {dialogue for dialogue, _ in decisions.decisions})
    trees = {page.stem: link(page, directory) for page in tree_pages(runs)}  # by the dialogue that each was grown from
    return {
        "strategies": list(strategies),
        "codes": short_labels(strategies),
        **decisions.describe(known, trees),
        "runs": shown,
        "left_out": left_out,
        "context": bool(known),
    }


def choose_runs(comparison: ComparisonResult, has: Callable[[Run], bool]) -> tuple[list[Run], list[str]]:
    """The runs to show, of those that have what is shown, and the names of the others."""
    runs = [run for run in comparison.runs if has(run)]
    if len(runs) <= MOST_RUNS:
        return runs, []
    firsts = [next((run for run in cell.runs if has(run)), None) for cell in comparison.cells]
    kept = [run for run in firsts if run][:MOST_RUNS]
    names = run_names(comparison.cells)
    return kept, [names[run.directory] for run in runs if run not in kept]


class _Decisions:
    """Decisions and texts that the runs share.

    A run's columns have a value for each of its rows (several of a decision where several prompts or samples were
    evaluated): `decision` (number), `shares` (thousandths, by strategy), `chosen`, `prompted`, `written`, `judged`
    (numbers of strategies; `written` is -1 where the reply names none), `reply` (number of a text), `cut` (at
    the token limit), `adheres`, `sra`,
    `sample` and `map` (an attention heat map); null where there is none, and without columns of nothing else.
    """

    def __init__(self, strategies: Sequence[str]) -> None:
        self.numbers = {name: number for number, name in enumerate(strategies)}
        self.texts: dict[str, int] = {}
        self.decisions: dict[_Key, int] = {}
        self.rows: list[list[Any]] = []
        self.about: dict[str, tuple[str, str]] = {}

    def add(self, run: Run, directory: Path) -> dict[str, list[Any]]:
        assert run.predictions is not None
        maps = _heat_maps(run, directory)
        columns: dict[str, list[Any]] = {}
        for prediction in read_predictions(run.predictions):
            for name, value in self._row(prediction, maps).items():
                columns.setdefault(name, []).append(value)
        return {name: values for name, values in columns.items() if any(value is not None for value in values)}

    def _row(self, p: Prediction, maps: Mapping[tuple[str, int, str | None], str]) -> dict[str, Any]:
        key = (p.dialogue, p.turn)
        if key not in self.decisions:
            self.decisions[key] = len(self.rows)
            self.rows.append([*key, [self.numbers[name] for name in p.gold], self._text(p.gold_reply)])
            self.about[p.dialogue] = (p.problem, p.emotion)
        known = all(map(math.isfinite, p.distribution.values()))  # not those of a model that has diverged
        shares = p.distribution if known else {}
        sra = next(iter(p.sra.values()))["sra"] if p.sra else math.nan
        return {
            "decision": self.decisions[key],
            "shares": [round(1000 * shares.get(name, 0)) for name in self.numbers] if shares else None,
            "chosen": self.numbers.get(p.chosen or "") if shares else None,
            "prompted": self.numbers.get(p.prompted or ""),
            "written": self.numbers.get(str(p.strategy), -1) if p.reply is not None and p.prompted is None else None,
            "judged": self.numbers.get(p.judged or ""),
            "reply": None if p.reply is None else self._text(p.reply),
            "cut": p.cut_off or None,
            "adheres": p.adheres,
            "sra": float(f"{sra:.3g}") if math.isfinite(sra) else None,
            "sample": p.sample or None,
            "map": maps.get((*key, p.followed)) if p.sra else None,
        }

    def _text(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))

    def describe(self, known: Mapping[str, Dialogue], trees: Mapping[str, str]) -> dict[str, Any]:
        order = {name: number for number, name in enumerate(self.about)}
        dialogues = []
        for name, (problem, emotion) in self.about.items():
            dialogue = known.get(name)
            turns = [self._turn(turn) for turn in dialogue.turns] if dialogue else []
            about = {"id": name, "problem": problem, "emotion": emotion, "turns": turns}
            tree = trees.get(name) or (trees.get(str(dialogue.meta.get("seed_dialogue"))) if dialogue else None)
            dialogues.append({**about, "situation": dialogue.situation if dialogue else "", "tree": tree})
        decisions = [[order[dialogue], turn, gold, reply] for dialogue, turn, gold, reply in self.rows]
        return {"dialogues": dialogues, "decisions": decisions, "texts": [*self.texts]}

    def _turn(self, turn: Turn) -> list[Any]:
        """[0 for the seeker or 1, text or its number where a decision has it too, strategies]"""
        reply = turn.reply
        strategies = [self.numbers[name] for name in reply.strategies if name in self.numbers]
        return [int(turn.speaker == "supporter"), self.texts.get(reply.text, reply.text), strategies]


def _read_dialogues(runs: Sequence[Run], wanted: set[str]) -> dict[str, Dialogue]:
    """The evaluated dialogues, from the first runs that left them."""
    dialogues_by_id: dict[str, Dialogue] = {}
    for run in runs:
        path = run.directory / DIALOGUES
        if path.exists() and not wanted <= dialogues_by_id.keys():
            inventory = build_inventory(run.config["inventory"], where=str(run.directory))
            dialogues = read_dialogues(path, "jsonl", inventory=inventory)
            dialogues_by_id |= {dialogue.id: dialogue for dialogue in dialogues if dialogue.id in wanted}
    return dialogues_by_id


def _heat_maps(run: Run, directory: Path) -> dict[tuple[str, int, str | None], str]:
    """Links to the attention heat maps of a run's first measured replies, by dialogue, turn and strategy.

    They are numbered in the order of the predictions.
    """
    pages = sorted(run.directory.glob("heat_map_*.html"), key=lambda page: int(page.stem.rsplit("_", 1)[1]))
    if not pages or run.predictions is None:
        return {}
    measured = [prediction for prediction in read_predictions(run.predictions) if prediction.sra]
    return {(p.dialogue, p.turn, p.followed): link(page, directory) for p, page in zip(measured, pages, strict=False)}


def linked_pages(browser: Mapping[str, Any]) -> list[str]:
    """The addresses in `browser_data`."""
    trees = [dialogue["tree"] for dialogue in browser["dialogues"]]
    maps = [address for run in browser["runs"] for address in run.get("map", ())]
    return [address for address in (*trees, *maps) if address]


def link(target: Path, directory: Path) -> str:
    """A relative address of a file, for a page that lies in the directory."""
    return quote(os.path.relpath(target, directory).replace(os.sep, "/"))
