"""The paper's table in three forms: what is in its cells, what is best, and that names cannot break it."""

from __future__ import annotations

import csv
import math
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from esc_lab.comparison.estimates import Difference, Estimate
from esc_lab.comparison.files import write_long_table, write_wide_table
from esc_lab.comparison.formats import escape_latex, format_latex, format_markdown, print_table
from esc_lab.comparison.result import ComparisonResult
from esc_lab.comparison.runs import Cell, read_runs
from esc_lab.comparison.table import tabulate
from esc_lab.metrics.records import find_metric
from esc_lab.statistics.intervals import Interval
from tests.comparison.synthetic import settings, write_run

NAN = math.nan
UNKNOWN = Interval(NAN, NAN, NAN)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    write_run(directory, settings("evaluate"), {"strategy/Q": 0.25, "strategy/n": 72.0, "extra": 1.0})
    return read_runs([directory])[0][0]


@pytest.fixture(scope="module")
def cell(run):
    return lambda model, method, seeds=1, template="cso": Cell(model, method, template, (run,) * seeds)


def estimate(value, margin=NAN, difference=None, p=NAN):
    bounds = Interval(value, value - margin, value + margin)
    found = (
        None
        if difference is None
        else Difference("m base (cso)", Interval(difference, difference - 0.1, difference + 0.1), p, p, False)
    )
    return Estimate((value,), bounds, 72, ("dialogues",), difference=found)


@pytest.fixture(scope="module")
def example(cell):
    cells = [cell("m", "base"), cell("m", "CSO", 3), cell("other", "base")]
    found = {
        ("m base (cso)", "strategy/Q"): estimate(0.2, 0.021),
        ("m CSO (cso)", "strategy/Q"): estimate(0.3, 0.034, 0.1, 0.0002),
        ("other base (cso)", "strategy/Q"): estimate(0.9, 0.01),
        ("m base (cso)", "strategy/B"): estimate(1.0, 0.1),
        ("m CSO (cso)", "strategy/B"): estimate(0.8, 0.1, -0.2, 0.04),
        ("m base (cso)", "strategy/n"): estimate(72.0, 1.0),
        ("m CSO (cso)", "strategy/n"): estimate(72.0, 1.0),
        ("m base (cso)", "sra/log_sra"): estimate(-6.5),
        ("m CSO (cso)", "sra/log_sra"): estimate(-6.25),
    }
    columns = list(map(find_metric, ["strategy/Q", "strategy/B", "strategy/n", "sra/log_sra"]))
    return tabulate(cells, columns, found, ["A note with 5 % & p < 0.05."])


def cells_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[one.strip() for one in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_markdown(example):
    text = format_markdown(example)
    assert cells_of(text) == [
        ["run", "seeds", "Q \u2191", "B \u2193", "n", "log SRA"],
        ["---", "---:", "---:", "---:", "---:", "---:"],
        ["m base (cso)", "1", "0.200 \u00b1 0.021", "1.000 \u00b1 0.100", "72", "-6.50"],
        ["m CSO (cso)", "3", "**0.300** \u00b1 0.034", "**0.800** \u00b1 0.100", "72", "-6.25"],
        ["other base (cso)", "1", "0.900 \u00b1 0.010", "-", "-", "-"],
        ["run", "minus", "Q \u2191", "B \u2193"],
        ["---", "---", "---:", "---:"],
        ["m CSO (cso)", "m base (cso)", r"+0.100\*\*\* [+0.000, +0.200] p < 0.001",
         r"-0.200\* [-0.300, -0.100] p = 0.040"],
    ]  # fmt: skip
    assert "\n\n- A note with 5 % & p < 0.05.\n\n" in text


def test_latex(example):
    text = format_latex(example, "Models & methods")
    assert r"\caption{Models \& methods}" in text
    assert r" & seeds & Q $\uparrow$ & B $\downarrow$ & n & log SRA \\" in text
    assert r"\multicolumn{6}{l}{\textit{m}} \\" in text
    values = r"\textbf{0.300} {\scriptsize$\pm$0.034} & \textbf{0.800} {\scriptsize$\pm$0.100} & 72 & $-$6.25"
    assert rf"\quad CSO & 3 & {values} \\" in text
    assert r" &  & {\scriptsize$+0.100^{***}$} & {\scriptsize$-0.200^{*}$} &  &  \\" in text
    assert r"A note with 5 \% \& p $<$ 0.05." in text
    check_latex(text)


def check_latex(text: str) -> None:
    """Braces and environments close, and every row has as many columns as its tabular."""
    bare = re.sub(r"\\[\\{}&%$#_]", lambda found: "@" if found[0] != "\\\\" else "\\\\", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    open_ones = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", bare):
        if kind == "begin":
            open_ones.append(name)
        else:
            assert open_ones.pop() == name
    assert open_ones == []
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", bare, re.S):
        for command in ("toprule", "midrule", "bottomrule"):
            assert f"\\{command}" in body
        for row in [line for line in body.splitlines() if line.endswith("\\\\")]:
            spanned = sum(int(number) - 1 for number in re.findall(r"\\multicolumn\{(\d+)\}", row))
            assert row.count("&") + 1 + spanned == len(columns), row


def test_intervals_beside_their_value_and_guards(cell):
    """B grows as decisions get fewer: its interval is printed as low and high; a guard's value has a dagger."""
    one = cell("m", "base")
    found = {(one.name, "strategy/B"): Estimate((1.2,), Interval(1.2, 0.7, 1.1), 600, ("dialogues",), guarded=True)}
    table = tabulate([one], [find_metric("strategy/B")], found, [])
    assert "1.200\u2020 [0.700, 1.100]" in format_markdown(table)
    assert "1.200\u2020 [0.700, 1.100]" in "\n".join(printed(table, 120))
    latex = format_latex(table, "B")
    assert r"1.200$^\dagger$ {\scriptsize[0.700, 1.100]}" in latex
    check_latex(latex)


def test_latex_splits_wide_tables(cell):
    metrics = [f"metric_{number}" for number in range(12)]
    cells = [cell("m", "base"), cell("m", "CSO")]
    found = {(one.name, metric): estimate(0.5) for one in cells for metric in metrics}
    text = format_latex(tabulate(cells, list(map(find_metric, metrics)), found, []), "wide")
    assert text.count(r"\begin{tabular}") == 3
    assert all(rf"metric\_{number}" in text for number in range(12))
    check_latex(text)


@given(st.text(st.sampled_from("a1 &%$#_{}~^\\<>\u00b1\u2191|*"), max_size=12))
def test_any_text_in_latex(text):
    check_latex(f"\\begin{{tabular}}{{l}}\\toprule\\midrule\n{escape_latex(text)} \\\\\n\\bottomrule\\end{{tabular}}")


def printed(table, width: int) -> list[str]:
    console = Console(width=width, record=True, file=None, quiet=False, legacy_windows=False)
    with console.capture() as capture:
        print_table(table, console)
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [80, 120, 160])
def test_terminal_tables_fit_and_are_complete(cell, width):
    metrics = ["strategy/Q", "strategy/B", *(f"metric/{number}" for number in range(9))]
    cells = [cell("model", method, 3) for method in ("base", "CSO random negatives objective.beta=0.5")]
    found = {(one.name, metric): estimate(0.123, 0.045, -0.01, 0.001) for one in cells for metric in metrics}
    lines = printed(tabulate(cells, list(map(find_metric, metrics)), found, ["A note."]), width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert text.count("0.123 \u00b10.045") == text.count("-0.010**") == 2 * len(metrics)
    assert all(metric in text for metric in metrics[2:])
    assert "\u2026" not in text  # nothing was cut off
    assert ("part 1 of" in text) == (width < 200)
    assert lines[-1] == "- A note."


def test_names_cannot_break_a_table(cell):
    name = "a|b [bold]c[/] \\ _d_"
    one = cell(name, "base")
    found = {(one.name, "strategy/Q"): estimate(0.5)}
    table = tabulate([one], list(map(find_metric, ["strategy/Q"])), found, [])
    assert cells_of(format_markdown(table))[2][0] == r"a\|b [bold]c[/] \\ \_d\_ base (cso)"
    assert name in "\n".join(printed(table, 120))
    check_latex(format_latex(table, name))


def test_templates_are_shown_where_they_differ(cell):
    cells = [cell("m", "base"), cell("m", "base", template="c1_hf")]
    found = {(one.name, "strategy/Q"): estimate(0.5) for one in cells}
    table = tabulate(cells, list(map(find_metric, ["strategy/Q"])), found, [])
    assert [table.label(one) for one in cells] == ["base (cso)", "base (c1_hf)"]
    assert tabulate(cells[:1], list(map(find_metric, ["strategy/Q"])), found, []).label(cells[0]) == "base"


def test_no_best_where_all_look_the_same_or_nothing_is_better(cell):
    cells = [cell("m", "base"), cell("m", "SFT"), cell("other", "base")]
    values = {"strategy/Q": (0.50001, 0.50002, 0.9), "sra/log_sra": (-6, -5, -4), "strategy/B": (NAN, 0.5, 0.2)}
    found = {
        (one.name, metric): estimate(value)
        for metric, row in values.items()
        for one, value in zip(cells, row, strict=True)
    }
    table = tabulate(cells, list(map(find_metric, [*values])), found, [])
    assert not any(entry.best for _, entries in table.rows for entry in entries)


def test_long_and_wide_tables_hold_every_metric(run, tmp_path, caplog):
    cells = [Cell("tiny", "base", "cso", (run,)), Cell("tiny", "x,y", "cso", (run,))]
    (run.directory / "predictions.jsonl").touch()
    comparison = ComparisonResult(cells, [], {}, {}, None, SimpleNamespace(identity="abc"), [], [], {}, [])
    caplog.set_level("INFO")
    write_long_table(comparison, tmp_path / "runs")
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["metric"], float(row["value"]), row["n"]) for row in rows] == [
        (name, metric, value, n)
        for name in ("tiny base (cso)", "tiny x,y (cso)")
        for metric, value, n in (("extra", 1.0, ""), ("strategy/Q", 0.25, "72"), ("strategy/n", 72.0, "72"))
    ]
    assert {
        (row["model"], row["method"], row["template"], row["seed"], row["stage"], row["test_set"]) for row in rows
    } == {("tiny", "base", "cso", "1", "evaluate", "abc")}
    missing = "runs.parquet was not written: `pip install 'esc-lab[parquet]'`"
    assert (tmp_path / "runs.parquet").exists() == (missing not in caplog.text)
    write_wide_table(comparison, tmp_path / "comparison.csv")
    with (tmp_path / "comparison.csv").open() as file:
        assert list(csv.DictReader(file))[1] == {
            "run": "tiny x,y (cso)", "seed": "1", "extra": "1.0", "strategy/Q": "0.25", "strategy/n": "72.0",
        }  # fmt: skip
