"""The judges of the searches on whose data the compared runs were trained, and whether they are to be believed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from esc_lab.comparison.runs import Cell
from esc_lab.runs.layout import JUDGE_CHECK
from esc_lab.runs.lineage import find_searches

MARK = "\u2021"  # beside results of data whose judge is not believed


@dataclass(frozen=True)
class SearchJudge:
    """A search, and the verdict on its judge.

    Attributes:
        believed: None if that was not measured.
        verdict: what was, in words.
    """

    search: Path
    believed: bool | None
    verdict: str


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
        return SearchJudge(search, bool(record["believed"]), f"{record['verdict']}{models and f' ({models})'}")
    except FileNotFoundError:
        return SearchJudge(search, None, "its judge was not checked")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return SearchJudge(search, None, f"the check of its judge cannot be read ({type(error).__name__} {error})")


def describe_search_judges(judges: Mapping[str, Sequence[SearchJudge]]) -> list[str]:
    """A sentence for each search: which runs its data trained, and the verdict on its judge."""
    cells: dict[Path, tuple[SearchJudge, list[str]]] = {}
    for name, of_cell in judges.items():
        for judge in of_cell:
            cells.setdefault(judge.search.resolve(), (judge, []))[1].append(name)
    sentences = []
    for judge, names in cells.values():
        mark = "" if judge.believed else f"{MARK} "
        sentences.append(f"{mark}{', '.join(names)}: trained on data of the search {judge.search}; {judge.verdict}.")
    return sentences
