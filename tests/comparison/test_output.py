"""The files and the figures of a comparison."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from esc_lab.comparison.drawings import read_curve
from esc_lab.comparison.figures import confusion_matrices, preference_bars, training_curves
from esc_lab.comparison.output import compare
from esc_lab.data.strategies import load_inventory
from esc_lab.statistics.intervals import Interval
from tests.comparison.synthetic import predictions, write_evaluation, write_training

NAMES = load_inventory("esconv").names


def texts(path) -> str:
    found = ElementTree.parse(path.with_suffix(".svg")).iter("{http://www.w3.org/2000/svg}text")
    return " ".join("".join(element.itertext()) for element in found)


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


def test_everything_is_written(directories, tmp_path, capsys):
    found = compare(directories, out=tmp_path, draws=200)
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
    assert "Paired permutation test, two-sided, 200 swaps of dialogues. Q is the primary metric" in output
    assert found.metrics["tiny SFT training (cso)/val/loss"] == 2.5


def test_json_holds_what_a_page_needs(directories, tmp_path):
    found = compare(directories, out=tmp_path, draws=200, metrics=["strategy/Q", "strategy/accuracy"], baseline="base")
    text = (tmp_path / "comparison.json").read_text()
    assert "NaN" not in text
    content = json.loads(text)
    assert content["test_set"]["decisions"] == 120
    assert [column["metric"] for column in content["columns"]] == ["strategy/Q", "strategy/accuracy"]
    cells = {cell["name"]: cell for cell in content["cells"]}
    sft = cells["tiny SFT (cso)"]
    assert sft["metrics"]["strategy/Q"]["values"] == list(found.estimates["tiny SFT (cso)", "strategy/Q"].values)
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
from pathlib import Path
from esc_lab.comparison.output import compare
compare([Path(one) for one in sys.argv[2:]], out=Path(sys.argv[1]), draws=50)
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(directories[0]), str(directories[2])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# --- figures


def intervals(*values: float) -> list[Interval]:
    return [Interval(value, value - 0.1, value + 0.1) for value in values]


def test_figures_name_what_they_show(tmp_path):
    bars = {"base": intervals(*range(8)), "CSO $x_1$ <b>": intervals(*range(8, 0, -1))}
    drawn = texts(preference_bars(bars, NAMES, tmp_path / "bars", title="m: preference")[0])
    assert all(
        word in drawn for word in ("base", "CSO $x_1$ <b>", "Question", "m: preference", "preference (1 = none)")
    )
    counts = np.random.default_rng(0).integers(0, 9, size=(9, 8))
    drawn = texts(confusion_matrices({"base": counts, "CSO": counts[::-1]}, NAMES, tmp_path / "c", title="t")[0])
    assert all(word in drawn for word in ("base", "CSO", "Self-disclosure", "(unparsable)", "gold", "predicted"))
    steps = np.arange(30.0)
    kinds = {"SFT": {"SFT": [(steps, 3 - steps / 30)]}, "CSO": {"CSO": [(steps, steps), (steps[::2], steps[::2])]}}
    drawn = texts(training_curves(kinds, tmp_path / "t", y_label="loss", title="m: training")[0])
    assert all(word in drawn for word in ("SFT", "CSO", "loss", "optimizer step", "m: training"))


def test_shares_are_of_the_gold_strategy(tmp_path):
    counts = np.zeros((4, 3))
    counts[0] = 1, 3, 0  # the third is never gold
    counts[1] = 1, 1, 0
    drawn = texts(confusion_matrices({"m": counts}, ["a", "b", "c"], tmp_path / "c", title="")[0]).split()
    assert sorted(word for word in drawn if word in ("25", "50", "75")) == ["25", "50", "50", "75"]
    assert "(unparsable)" not in drawn


@pytest.mark.parametrize("number", [0, 9])
def test_too_many_or_no_methods(tmp_path, number):
    names = [str(one) for one in range(number)]
    with pytest.raises(ValueError, match="from 1 to 8"):
        preference_bars({name: intervals(1) for name in names}, ["a"], tmp_path / "bars", title="")
    kinds = {"SFT": {name: [(np.arange(2.0), np.arange(2.0))] for name in names}}
    with pytest.raises(ValueError, match="from 1 to 8"):
        training_curves(kinds, tmp_path / "t", y_label="", title="")
    with pytest.raises(ValueError, match="no confusion counts"):
        confusion_matrices({}, ["a"], tmp_path / "c", title="")


def test_a_curve_from_a_loggers_file(tmp_path):
    path = tmp_path / "metrics.csv"
    assert read_curve(path, "train/loss") is None
    path.write_text("epoch,step,train/loss,val/loss\n0,0,3.0,\n0,1,2.0,\n0,1,,2.5\n0,1,1.5,\n")
    steps, values = read_curve(path, "train/loss")
    assert (steps.tolist(), values.tolist()) == ([0, 1], [3, 1.5])  # step 1 was taken again
    assert read_curve(path, "val/loss")[1].tolist() == [2.5]
    assert read_curve(path, "other") is None
