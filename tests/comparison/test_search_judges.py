"""The verdict on a search's judge beside every result of data that it made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esc_lab.comparison.formats import format_latex, format_markdown
from esc_lab.comparison.record import build_record
from esc_lab.comparison.result import compute_comparison
from esc_lab.comparison.search_judges import read_search_judge
from esc_lab.comparison.table import build_table
from tests.comparison.synthetic import predictions, settings, write_evaluation, write_run

VERDICT = "rubric judge: NOT believed, AUC 0.52 [0.41, 0.63] against replies of other dialogues"


def search(directory: Path, **check: object) -> Path:
    write_run(directory, settings("search"), {})
    if check:
        (directory / "judge_check.json").write_text(json.dumps({"models": ["tiny"], "verdict": VERDICT, **check}))
    return directory


def compared(root: Path, *searches: Path):
    """The base model, and a training on the data of each search."""
    runs = [write_evaluation(root / "base", predictions(skill=0.4, seed=0))]
    for number, made in enumerate(searches):
        training = settings("cso", data__path=str(made / "esc_pro"), mcts__c=float(number), objective__beta=number)
        cso = write_run(root / f"cso{number}", training, {"val/loss": 1.0})
        rows = predictions(skill=0.5, seed=number + 1)
        runs.append(write_evaluation(root / f"evaluated{number}", rows, checkpoint=str(cso)))
    return compute_comparison(runs)


def test_results_are_marked_unless_the_judge_is_believed(tmp_path):
    found = compared(
        tmp_path,
        search(tmp_path / "doubted", believed=False),
        search(tmp_path / "unchecked"),
        search(tmp_path / "believed", believed=True, verdict="rubric judge: believed, AUC 0.9"),
    )
    table = build_table(found)
    base, *cells = found.cells
    assert [table.mark(cell) for cell in found.cells] == ["", "\u2021", "\u2021", ""]
    assert base.name not in found.search_judges
    assert table.label(cells[0]).endswith("\u2021")
    markdown = format_markdown(table)
    for cell, end in zip(
        cells, (f"{VERDICT} (tiny).", "its judge was not checked.", "believed, AUC 0.9 (tiny)."), strict=True
    ):
        (judge,) = found.search_judges[cell.name]
        mark = "" if judge.believed else "\u2021 "
        assert f"- {mark}{cell.name}: trained on data of the search {judge.search}; " in markdown
        assert f"{judge.search}; {judge.verdict}." in markdown
        assert f"{judge.verdict}.".endswith(end)
        assert f"| {cell.name}{mark.strip()} |" in markdown
    assert r"$^\ddagger$" in format_latex(table, "caption")
    records = {cell["name"]: cell["search_judges"] for cell in build_record(found, [], [])["cells"]}
    assert [judge["believed"] for judges in records.values() for judge in judges] == [False, None, True]


def test_one_search_of_several_cells_is_told_once(tmp_path):
    made = search(tmp_path / "search", believed=False)
    table = build_table(compared(tmp_path, made, made))
    (note,) = [note for note in table.details if str(made) in note]
    assert note.count("tiny CSO") == 2
    (line,) = [note for note in table.notes if "trained on data" in note]
    assert line.startswith("\u2021 ")
    assert line.count("CSO") == 2
    assert line.endswith(": trained on data whose judge is not believed (tiny).")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"believed": true}'])
def test_a_broken_check_is_no_verdict(tmp_path, text):
    (tmp_path / "judge_check.json").write_text(text)
    judge = read_search_judge(tmp_path)
    assert judge.believed is None
    assert judge.verdict.startswith("the check of its judge cannot be read")
