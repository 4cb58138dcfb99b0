"""The W&B workspace that is described in code: what it shows, and how it is sent or refused."""

from __future__ import annotations

import json
import sys

import pytest

from esc_lab.errors import UserError
from esc_lab.metrics.records import METRICS
from esc_lab.stages import dashboard
from esc_lab.tracking.dashboard import CHARTS, build_workspace, describe_workspace
from tests.tracking.test_run import configured, evaluated, logged

SHOWN = [METRICS[name] for name in dashboard.SCORES]


@pytest.fixture
def described():
    made = describe_workspace(
        build_workspace("team", "esc-lab", "mine", parameters=["model.name", "seed"], scores=SHOWN, group="study")
    )
    sections = made["spec"]["section"]["panelBankConfig"]["sections"]
    return made, {section["name"]: section["panels"] for section in sections}


def of_kind(panels, kind):
    return [panel["config"] for panel in panels if panel["viewType"] == kind]


def test_scores_and_bars(described):
    made, panels = described
    assert (made["entity"], made["project"], made["displayName"]) == ("team", "esc-lab", "mine")
    comparison = panels["Comparison"]
    assert [one["metrics"] for one in of_kind(comparison, "Scalar Chart")] == [["strategy/Q"], ["strategy/B"]]
    bars = of_kind(comparison, "Bar Chart")
    assert [one["metrics"][0] for one in bars] == list(dashboard.SCORES)
    assert {one["groupBy"] for one in bars} == {"model_method.value"}
    assert len(of_kind(comparison, "Run Comparer")) == 1
    (runs,) = made["spec"]["section"]["runSets"]
    (only,) = runs["filters"]["filters"]
    assert (only["key"]["name"], only["value"]) == ("group", "study")


def test_settings_by_their_flat_names(described):
    (parallel,) = of_kind(described[1]["Sweeps"], "Parallel Coordinates Plot")
    assert [column["accessor"] for column in parallel["columns"]] == [
        "config:model.name.value", "config:seed.value", "summary:strategy/Q", "summary:strategy/B",
    ]  # fmt: skip
    assert [column.get("inverted", False) for column in parallel["columns"]] == [False, False, False, True]


def test_charts_are_those_that_runs_log(described, tmp_path):
    run = logged(evaluated(tmp_path / "run"))
    assert set(CHARTS) <= set(run.charts)
    assert run.config["model_method"] == "tiny-llama base"
    charts = of_kind(described[1]["Strategies and attention"], "Vega2")
    assert len(charts) == len(CHARTS)
    for chart in charts:
        fields = chart["userQuery"]["queryFields"][0]["fields"]
        (key,) = (one["args"][0]["value"] for one in fields if one["name"] == "summaryTable")
        assert set(chart["fieldSettings"].values()) <= set(run.table(key)["columns"])


def test_the_stage_describes_it_offline(tmp_path):
    cfg = configured(tmp_path / "run", "stage=dashboard")
    assert dashboard.run(cfg)["dashboard/panels"] > 10
    written = json.loads((tmp_path / "run" / "dashboard.json").read_text())
    assert written["project"] == "esc-lab"


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"logger.entity: whose project is it\? Fix: add logger.entity="):
        dashboard.run(configured(tmp_path / "run", "stage=dashboard", "logger.mode=online"))
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(UserError, match=r"wandb-workspaces is not installed. Fix: pip install 'esc-lab\[dashboard\]'"):
        build_workspace("team", "esc-lab", "mine", parameters=[], scores=SHOWN)
