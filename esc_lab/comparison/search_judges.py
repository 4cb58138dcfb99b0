"""The judges of the searches on whose data the compared runs were trained, and whether they are to be believed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esc_lab.artifacts import READ_ERRORS
from esc_lab.comparison.runs import Cell
from esc_lab.judge_check.cases import FOREIGN
from esc_lab.runs.layout import JUDGE_CHECK
from esc_lab.runs.lineage import find_searches
from esc_lab.statistics.intervals import Interval

MARK = "\u2021"  # beside results of data whose judge is not believed


@dataclass(frozen=True)
class SearchJudge:
    """A search, and the verdict on its judge.

    Attributes:
        believed: None if that was not measured.
        verdict: what was, in words.
        short: what it reached against replies of other dialogues, and its model, where that is known.
    """

    search: Path
    believed: bool | None
    verdict: str
    short: str = ""


def find_search_judges(cells: Sequence[Cell]) -> dict[str, list[SearchJudge]]:
    """By cell, those that have any."""
    judges = {
        cell.name: {
            search.resolve(): read_search_judge(search)
            for run in cell.runs
            for search in find_searches(run.directory)[0]
        }
        for cell in cells
    }
    return {name: list(by_search.values()) for name, by_search in judges.items() if by_search}


def read_search_judge(search: Path) -> SearchJudge:
    """What a search left of the check of its judge. Searches of older versions left none."""
    try:
        record = json.loads((search / JUDGE_CHECK).read_text(encoding="utf-8"))
        models = ", ".join(map(str, record["models"]))
        verdict = f"{record['verdict']}{models and f' ({models})'}"
        short = ", ".join(filter(None, [models, _reached(record)]))
        return SearchJudge(search, bool(record["believed"]), verdict, short)
    except FileNotFoundError:
        return SearchJudge(search, None, "its judge was not checked")
    except READ_ERRORS as error:
        return SearchJudge(search, None, f"the check of its judge cannot be read ({type(error).__name__} {error})")


def _reached(record: Mapping[str, Any]) -> str:
    """`AUC 0.62 [0.51, 0.73]`; nothing if the record does not say."""
    try:
        low, value, high = (float(record["kinds"][FOREIGN]["value"][end]) for end in ("low", "value", "high"))
    except (KeyError, TypeError, ValueError):
        return ""
    return f"AUC {Interval(value, low, high).text(2)}"


def list_search_judges(judges: Mapping[str, Sequence[SearchJudge]], names: Mapping[str, str]) -> list[str]:
    """A short line for each search; `names` are those of the cells."""
    lines = []
    for judge, cells in _by_search(judges):
        belief = {True: "is believed", False: "is not believed", None: "was not checked"}[judge.believed]
        trained = ", ".join(names[cell] for cell in cells)
        short = f" ({judge.short})" if judge.short else ""
        lines.append(f"{_mark(judge)}{trained}: trained on data whose judge {belief}{short}.")
    return lines


def _by_search(judges: Mapping[str, Sequence[SearchJudge]]) -> list[tuple[SearchJudge, list[str]]]:
    cells: dict[Path, tuple[SearchJudge, list[str]]] = {}
    for name, of_cell in judges.items():
        for judge in of_cell:
            cells.setdefault(judge.search.resolve(), (judge, []))[1].append(name)
    return [*cells.values()]


def _mark(judge: SearchJudge) -> str:
    return "" if judge.believed else f"{MARK} "


def describe_search_judges(judges: Mapping[str, Sequence[SearchJudge]]) -> list[str]:
    """A sentence for each search: which runs its data trained, and the verdict on its judge."""
    sentences = []
    for judge, names in _by_search(judges):
        mark = _mark(judge)
        sentences.append(f"{mark}{', '.join(names)}: trained on data of the search {judge.search}; {judge.verdict}.")
    return sentences
