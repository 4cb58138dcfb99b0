"""The W&B workspace that is described in code: what it shows, and how it is sent or refused."""

from __future__ import annotations

import json
import sys

import pytest

from esc_lab.errors import UserError
from esc_lab.metrics.records import METRICS
from esc_lab.runs import layout
from esc_lab.stages import dashboard
from esc_lab.tracking.dashboard import CHARTS, QUESTIONS, build_report, build_workspace, describe
from tests.tracking.test_run import configured, evaluated, logged, write_json

SCORES = ["strategy/Q", "strategy/B", "strategy/Q_W", "generated/Q", "text/perplexity", "text/rouge_l"]
CHOICE, PAIRS, ATTENTION, SEARCH, TALKS, _ = (question.title for question in QUESTIONS)


@pytest.fixture
def described():
    made = describe(build_workspace("team", "esc-lab", "mine", parameters=["model.name", "seed"], group="study"))
    sections = made["spec"]["section"]["panelBankConfig"]["sections"]
    return made, {section["name"]: section["panels"] for section in sections}


def of_kind(panels, kind):
    return [panel["config"] for panel in panels if panel["viewType"] == kind]


def test_scores_and_bars(described):
    made, panels = described
    assert (made["entity"], made["project"], made["displayName"]) == ("team", "esc-lab", "mine")
    glance = panels["At a glance"]
    assert [one["metrics"] for one in of_kind(glance, "Scalar Chart")] == [["strategy/Q"], ["strategy/B"]]
    assert len(of_kind(glance, "Run Comparer")) == 1
    bars = of_kind(panels[CHOICE], "Bar Chart")
    assert [one["metrics"][0] for one in bars] == SCORES
    assert {one["groupBy"] for one in bars} == {"model_method.value"}
    (runs,) = made["spec"]["section"]["runSets"]
    (only,) = runs["filters"]["filters"]
    assert (only["key"]["name"], only["value"]) == ("group", "study")


def test_settings_by_their_flat_names(described):
    (parallel,) = of_kind(described[1]["What do Q and B depend on?"], "Parallel Coordinates Plot")
    assert [column["accessor"] for column in parallel["columns"]] == [
        "config:model.name.value", "config:seed.value", "summary:strategy/Q", "summary:strategy/B",
    ]  # fmt: skip
    assert [column.get("inverted", False) for column in parallel["columns"]] == [False, False, False, True]


def test_claims_have_a_point_a_run(described):
    """Q against B; margins against Q; attention against adherence."""
    points = {
        title: [(one["xAxis"], one["yAxis"]) for one in of_kind(panels, "Scatter Plot")]
        for title, panels in described[1].items()
    }
    assert points[CHOICE] == [("summary:strategy/B", "summary:strategy/Q")]
    assert points[PAIRS] == [("summary:preference/margin", "summary:strategy/Q")]
    assert points[ATTENTION][0] == ("summary:sra/log_sra", "summary:adherence/accuracy")


def test_curves_are_over_their_own_steps(described):
    lines = {
        one["metrics"][0]: one["xAxis"]
        for panels in described[1].values()
        for one in of_kind(panels, "Run History Line Plot")
    }
    assert lines["train/margin"] == lines["val/loss"] == "trainer/global_step"
    assert {lines[f"progress/{name}"] for name in ("pairs", "mean_q", "relief", "strategy/Q")} == {"progress/iteration"}


def test_metrics_are_known():
    named = [name for q in QUESTIONS for name in (*q.bars, *(axis for both in q.scatter for axis in both))]
    assert [name for name in named if name not in METRICS and not name.startswith("search/")] == []
    assert {chart for q in QUESTIONS for chart in q.charts} == set(CHARTS)


def test_charts_are_those_that_runs_log(described, tmp_path):
    run = logged(evaluated(tmp_path / "run"))
    talks = configured(tmp_path / "talks", "stage=converse")
    write_json(tmp_path / "talks" / "metrics.json", {})
    write_json(tmp_path / "talks" / "measures.json", {"intensity": [[0, 4.0, 3]]})
    runs = [run, logged(talks)]
    assert set(CHARTS) <= {chart for one in runs for chart in one.charts}
    assert run.config["model_method"] == "tiny-llama base"
    charts = [chart for panels in described[1].values() for chart in of_kind(panels, "Vega2")]
    assert len(charts) == len(CHARTS)
    for chart in charts:
        fields = chart["userQuery"]["queryFields"][0]["fields"]
        (key,) = (one["args"][0]["value"] for one in fields if one["name"] == "summaryTable")
        (of,) = (one for one in runs if key in one.summary)
        assert set(chart["fieldSettings"].values()) <= set(of.table(key)["columns"])


def test_a_report_has_a_grid_for_each_question_and_links_its_runs():
    links = [
        ("base (evaluate)", "https://w.b/team/esc-lab/runs/1"),
        ("SFT (evaluate)", "https://w.b/team/esc-lab/runs/2"),
    ]
    made = describe(build_report("team", "esc-lab", "mine", group="study", links=links))
    blocks = made["spec"]["blocks"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    assert len(grids) == len(QUESTIONS)
    for grid in grids:
        (runs,) = grid["runSets"]
        assert "study" in json.dumps(runs["filters"])
        assert grid["panelBankSectionConfig"]["panels"]
    titles = [block["children"][0]["text"] for block in blocks if block["type"] == "heading"]
    assert titles == ["The runs", *(question.title for question in QUESTIONS)]
    assert all(address in json.dumps(blocks) for _, address in links)


def test_the_stage_describes_both_offline(tmp_path):
    cfg = configured(tmp_path / "run", "stage=dashboard")
    assert dashboard.run(cfg)["dashboard/panels"] > 10
    written = json.loads((tmp_path / "run" / layout.DASHBOARD).read_text())
    assert written["project"] == "esc-lab"
    assert json.loads((tmp_path / "run" / layout.DASHBOARD_REPORT).read_text())["spec"]["blocks"]
    cfg = configured(tmp_path / "alone", "stage=dashboard", "dashboard.report=false")
    dashboard.run(cfg)
    assert not (tmp_path / "alone" / layout.DASHBOARD_REPORT).exists()


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"logger.entity: whose project is it\? Fix: add logger.entity="):
        dashboard.run(configured(tmp_path / "run", "stage=dashboard", "logger.mode=online"))
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UserError, match=r"wandb-workspaces is not installed. Fix: pip install 'esc-lab\[dashboard\]'"):
        build_workspace("team", "esc-lab", "mine", parameters=[])
