"""Runs as one file: compared again elsewhere they come to the same, and nothing of the corpus is in it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from esc_lab.comparison.result import compute_comparison
from esc_lab.comparison.share import share_runs
from esc_lab.errors import UserError
from tests.comparison.synthetic import predictions, settings, write_evaluation, write_run, write_training


def write_pipeline(root: Path) -> Path:
    """A pipeline as its stage leaves it: base and SFT evaluated, CSO on the pairs of a search."""
    write_run(root, settings("pipeline"), {"seconds": 1.0})
    write_run(root / "search", settings("search", llm={"name": "local", "judge": {"checkpoint": None}}), {"calls": 1.0})
    write_training(root / "sft", "sft")
    pairs = str(root / "search" / "esc_pro")
    write_training(root / "cso", "cso", init_from=str(root / "sft"), data__path=pairs)
    write_evaluation(root / "evaluate_base", predictions(skill=0.1, seed=1, replies=True))
    for number, name in enumerate(("sft", "cso"), 2):
        rows = predictions(skill=0.2 * number, seed=number, replies=True)
        write_evaluation(root / f"evaluate_{name}", rows, checkpoint=str(root / name))
    return root


def values(comparison):
    return {key: value for key, value in comparison.metrics.items() if "seconds" not in key}


def test_shared_runs_compare_as_before(tmp_path):
    pipeline = write_pipeline(tmp_path / "here" / "0_seed=1")
    before = compute_comparison([pipeline])
    share_runs(before.runs, tmp_path / "runs.zip")
    with zipfile.ZipFile(tmp_path / "runs.zip") as archive:
        archive.extractall(tmp_path / "there")
    after = compute_comparison([tmp_path / "there" / "0_seed=1"])
    assert [cell.method for cell in after.cells] == [cell.method for cell in before.cells] == ["base", "SFT", "CSO"]
    assert values(after) == values(before)
    assert any(name.endswith("text/rouge_l") for name in values(after))
    assert any("search.seeds" in run.method.settings for run in after.runs), "the search behind CSO is told"


def test_no_text_of_the_corpus_and_no_place_is_in_it(tmp_path):
    pipeline = write_pipeline(tmp_path / "here" / "0_seed=1")
    (pipeline / "evaluate_sft" / "dialogues.jsonl").write_text("a dialogue")
    runs = compute_comparison([pipeline]).runs
    share_runs(runs, tmp_path / "runs.zip")
    share_runs(runs, tmp_path / "again.zip")
    assert (tmp_path / "runs.zip").read_bytes() == (tmp_path / "again.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "runs.zip") as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    assert not [name for name, text in texts.items() if str(tmp_path) in text or name.endswith("dialogues.jsonl")]
    rows = texts["0_seed=1/evaluate_sft/predictions.jsonl"].splitlines()
    assert rows
    assert all('"gold_reply": ""' in row and '"raw": null' in row for row in rows)


def test_trainings_have_nothing_to_share(tmp_path):
    pipeline = write_pipeline(tmp_path / "0_seed=1")
    runs = compute_comparison([pipeline / "evaluate_sft", pipeline / "sft"]).runs
    with pytest.raises(UserError, match="no predictions to share"):
        share_runs(runs, tmp_path / "runs.zip")
    assert not (tmp_path / "runs.zip").exists()
