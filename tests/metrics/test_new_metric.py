"""A metric of single replies is one record: predictions, metrics.json, comparisons and their pages follow from it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from esc_lab.comparison.files import write_comparison
from esc_lab.comparison.result import compute_comparison
from esc_lab.comparison.table import build_table
from esc_lab.errors import UserError
from esc_lab.metrics.metric import reply_metric
from esc_lab.metrics.predictions import measure_texts, read_predictions
from esc_lab.metrics.records import METRICS
from esc_lab.report.comparison_page import write_comparison_page
from tests.comparison.synthetic import predictions, write_evaluation

# All that it takes.
ASKS = reply_metric(
    "text/asks", "asks", lambda reply, gold_reply: float("what" in reply), higher_is_better=True, shown=True,
    grouped=True, meaning="Share of the written replies that ask something.",
)  # fmt: skip


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two evaluations by code that knows the metric."""
    monkeypatch.setitem(METRICS, ASKS.name, ASKS)
    found = []
    for model, seed in (("one", 1), ("other", 2)):
        rows = predictions(skill=0.5, seed=seed, dialogues=40, replies=True)
        measure_texts(rows)
        found.append(write_evaluation(tmp_path / model, rows, model__name=model))
    return found


def test_it_is_in_predictions_and_metrics(runs):
    lines = list(read_predictions(runs[0] / "predictions.jsonl"))
    assert {line.values["text/asks"] for line in lines} == {0.0, 1.0}
    metrics = json.loads((runs[0] / "metrics.json").read_text())
    assert metrics["text/asks"] == pytest.approx(np.mean(["what" in line.reply for line in lines]))


def test_comparisons_have_its_column_with_interval_test_and_groups(runs, tmp_path):
    comparison = compute_comparison(runs)
    names = [column.name for column in comparison.columns]
    assert names[-1] == "text/asks"
    estimate = comparison.estimates["other base (cso)", "text/asks"]
    assert estimate.interval.low < estimate.interval.value < estimate.interval.high
    assert estimate.n == 240
    assert 0 < estimate.difference.p <= 1
    assert any(group.metric == "text/asks" for group in comparison.groups)
    table = build_table(comparison)
    write_comparison(comparison, table, [], tmp_path / "out")
    assert "| asks \u2191 |" in (tmp_path / "out" / "comparison.md").read_text()
    page = write_comparison_page(comparison, [], tmp_path / "report.html").read_text()
    assert "Share of the written replies that ask something. More is better." in page


def test_it_depends_on_how_replies_were_drawn(runs, tmp_path):
    generation = {"temperature": 0.5, "top_p": 1.0, "max_new_tokens": 10, "decisions": None, "samples": 1}
    rows = list(read_predictions(runs[1] / "predictions.jsonl"))
    warm = write_evaluation(tmp_path / "warm", rows, model__name="warm", evaluate__generation=generation)
    with pytest.raises(UserError, match=r"evaluate.generation.max_new_tokens differs: .*metrics without text/asks"):
        compute_comparison([runs[0], warm], metrics=["text/asks"])
    compute_comparison([runs[0], warm], metrics=["text/perplexity"])
