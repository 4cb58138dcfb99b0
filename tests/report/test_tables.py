"""Tables: which cells, which are best, and that names cannot break the format."""

from __future__ import annotations

import csv
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from esc_lab.errors import UserError
from esc_lab.report.tables import COLUMNS, Run, compare_runs, print_strategies, read_run, write_comparison

KEYS = [key for key, *_ in COLUMNS]
CONFIG = {
    "stage": "evaluate",
    "checkpoint": None,
    "model": {"name": "tiny"},
    "prompt": {"train": {"template": "cso"}, "eval": {"template": "standard"}, "inference": "direct"},
}


def run_directory(directory, metrics=None, **changes):
    directory.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create({**CONFIG, **changes}), directory / "config.yaml")
    (directory / "metrics.json").write_text(json.dumps({"strategy/Q": 0.5} if metrics is None else metrics))
    return directory


def cells(path) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in path.read_text().splitlines()]


# --- reading runs


def test_names_say_model_method_and_prompt(tmp_path):
    sft = run_directory(tmp_path / "sft", {"val/loss": 1.0}, stage="sft")
    (sft / "adapter").mkdir()
    names = {
        "tiny base (standard)": {},
        "tiny SFT (standard)": {"checkpoint": str(sft)},
        "tiny SFT cot (standard)": {
            "checkpoint": str(sft / "adapter"),
            "prompt": {**CONFIG["prompt"], "inference": "cot"},
        },
        "tiny elsewhere (standard)": {"checkpoint": str(tmp_path / "gone" / "elsewhere")},
    }
    for number, (name, changes) in enumerate(names.items()):
        directory = run_directory(tmp_path / f"run{number}", **changes)
        assert read_run(directory) == Run(name, {"strategy/Q": 0.5})
    assert read_run(sft).name == "tiny SFT training (cso)"


def test_directories_that_are_no_run(tmp_path):
    good = run_directory(tmp_path / "good")
    for name, text in (("config.yaml", "a: [b"), ("config.yaml", "{}"), ("config.yaml", "stage: evaluate"),
                       ("metrics.json", "{"), ("metrics.json", "[]"), ("metrics.json", '{"a": 1}')):  # fmt: skip
        before = (good / name).read_text()
        (good / name).write_text(text)
        with pytest.raises(UserError, match=r"good: .* Fix: name run directories"):
            read_run(good)
        (good / name).write_text(before)
    (good / "config.yaml").unlink()
    for directory in (good, tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="no finished run"):
            read_run(directory)


@given(st.lists(st.sampled_from(["a", "a #2", "b"]), min_size=1, max_size=6))
def test_no_run_is_lost_to_an_equal_name(names):
    runs = [Run(name, {"strategy/Q": float(number)}) for number, name in enumerate(names)]
    table = compare_runs(runs)
    assert list(table.values()) == [run.metrics for run in runs]


# --- the comparison


def test_cells_and_best_values(tmp_path, capsys):
    table = {
        "first": {"strategy/Q": 0.12345, "strategy/B": 0.5, "strategy/n": 130.0, "text/perplexity": 12.0},
        "second": {"strategy/Q": 0.2, "strategy/B": 0.4, "strategy/n": 130.0, "text/perplexity": 15.0},
        "third": {"strategy/Q": 0.2, "strategy/B": math.nan, "extra/metric": 7.0},
    }
    write_comparison(table, tmp_path)
    assert cells(tmp_path / "comparison.md") == [
        ["run", "Q", "B", "n", "ppl"],
        ["---", "---:", "---:", "---:", "---:"],
        ["first", "0.123", "0.500", "130", "**12.00**"],
        ["second", "**0.200**", "**0.400**", "130", "15.00"],
        ["third", "**0.200**", "nan", "-", "-"],
    ]
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == list(table)
    assert rows[0] == {"run": "first", "strategy/Q": "0.12345", "strategy/B": "0.5", "strategy/n": "130.0",
                       "text/perplexity": "12.0", "extra/metric": ""}  # fmt: skip
    assert rows[2]["extra/metric"] == "7.0"
    output = capsys.readouterr().out
    assert "0.123" in output
    assert "**" not in output


def test_no_best_where_all_look_the_same(tmp_path):
    write_comparison({"a": {"strategy/Q": 0.50001}, "b": {"strategy/Q": 0.50002}}, tmp_path)
    assert [row[1] for row in cells(tmp_path / "comparison.md")[2:]] == ["0.500", "0.500"]
    write_comparison({"alone": {"strategy/Q": 0.5}}, tmp_path)
    assert cells(tmp_path / "comparison.md")[2] == ["alone", "0.500"]


def test_names_cannot_break_the_table(tmp_path, capsys):
    name = 'a|b, [bold]c[/] "d"'
    write_comparison({name: {"strategy/Q": 0.5}}, tmp_path)
    assert '| a\\|b, [bold]c[/] "d" | 0.500 |' in (tmp_path / "comparison.md").read_text()
    with (tmp_path / "comparison.csv").open() as file:
        assert [row["run"] for row in csv.DictReader(file)] == [name]
    assert "[bold]c[/]" in capsys.readouterr().out


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.dictionaries(st.sampled_from(KEYS), st.floats(0, 2))))
def test_every_value_is_in_the_csv(tmp_path_factory, table):
    directory = tmp_path_factory.mktemp("table")
    write_comparison(table, directory)
    with (directory / "comparison.csv").open() as file:
        found = {
            row.pop("run"): {key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)
        }
    assert found == table


def test_strategies(capsys):
    row = {"strategy": "Question", "precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 4.0, "predicted": 2.0,
           "preference": 1.25}  # fmt: skip
    metrics = {"Q": 0.2, "Q_W": 0.3, "B": 0.9, "B_guard": 1.0, "n": 13.0, "classes_predicted": 3.0, "unparsable": 0.5}
    print_strategies("tiny [4bit]: strategy", [row], {f"g/{key}": value for key, value in metrics.items()}, "g")
    output = " ".join(capsys.readouterr().out.split())
    assert "tiny [4bit]: strategy" in output
    assert "Question │ 0.500 │ 0.250 │ 0.333 │ 4 │ 2 │ 1.25" in output
    assert "Q 0.200 Q_W 0.300 B 0.900 (guard acted) n 13 classes predicted 3 unparsable 50.0%" in output
