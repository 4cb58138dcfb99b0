"""Stage `compare`: the files it leaves."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from esc_lab.config import Config
from esc_lab.config.compare import CompareConfig
from esc_lab.data.strategies import load_inventory
from esc_lab.stages.compare import run
from tests.comparison.synthetic import predictions, write_evaluation, write_training

NAMES = load_inventory("esconv").names


def settings(out, directories, **asked) -> Config:
    compare = CompareConfig([*map(str, directories)], **asked)
    return Config(stage="compare", run_dir=str(out), compare=compare)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    training = write_training(root / "sft", "sft", curve=True)
    return [
        write_evaluation(root / "base", predictions(skill=0.1, seed=1, dialogues=20, replies=True)),
        write_evaluation(
            root / "of_sft", predictions(skill=0.5, seed=1, dialogues=20, replies=True), checkpoint=str(training)
        ),
        training,
    ]


def test_everything_is_written(directories, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")  # several processes draw
    metrics = run(settings(tmp_path, directories))
    assert {path.name for path in tmp_path.iterdir()} >= {
        "comparison.md", "comparison.tex", "comparison.json", "comparison.csv", "runs.csv", "figures",
    }  # fmt: skip
    figures = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert figures == {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    assert {"preference_tiny", "confusion_tiny", "training_tiny", "q_against_b", "depth_strategy_q_tiny"} <= figures
    markdown = (tmp_path / "comparison.md").read_text()
    rows = [line.split("|")[1].strip() for line in markdown.split("\n\n")[0].splitlines()]
    assert rows == ["run", "---", "tiny base (cso)", "tiny SFT (cso)", "tiny SFT training (cso)"]
    assert "## Differences" in markdown
    assert "## Q by problem, with 95 % intervals (decisions)" in markdown
    assert "![preference tiny](figures/preference_tiny.png)" in markdown
    output = capsys.readouterr().out
    assert "comparison" in output
    said = " ".join(output.split())
    assert "(corrected, but that of Q). - One training each: says nothing of the method." in said
    assert "\n- Tests are two-sided and by the same estimate as the interval of the difference. " in markdown
    assert "By chance: Q 0." in said
    assert metrics["tiny SFT training (cso)/val/loss"] == 2.5


def test_json_holds_what_a_page_needs(directories, tmp_path):
    run(settings(tmp_path, directories, metrics=["strategy/Q", "strategy/accuracy"], baseline="base"))
    text = (tmp_path / "comparison.json").read_text()
    assert "NaN" not in text
    content = json.loads(text)
    assert content["test_set"]["decisions"] == 120
    assert [column["metric"] for column in content["columns"]] == ["strategy/Q", "strategy/accuracy"]
    cells = {cell["name"]: cell for cell in content["cells"]}
    sft = cells["tiny SFT (cso)"]
    recorded = json.loads((directories[1] / "metrics.json").read_text())
    assert sft["metrics"]["strategy/Q"]["values"] == [recorded["strategy/Q"]]
    assert sft["metrics"]["strategy/Q"]["difference"]["primary"]
    assert sft["runs"][0]["training"] == str(directories[2])
    assert [row["strategy"] for row in sft["strategies"]["rows"]] == list(NAMES)
    assert np.array(sft["strategies"]["confusion"]).sum() == 120
    assert cells["tiny SFT training (cso)"]["strategies"] is None
    assert {group["kind"] for group in content["groups"]} == {"problem", "emotion", "depth"}
    assert content["figures"]
    assert content["notes"]


def test_no_torch_is_imported(directories, tmp_path):
    code = """
import sys
from esc_lab.config import Config
from esc_lab.config.compare import CompareConfig
from esc_lab.stages.compare import run
run(Config(stage="compare", run_dir=sys.argv[1], compare=CompareConfig(runs=sys.argv[2:])))
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(directories[0]), str(directories[2])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
