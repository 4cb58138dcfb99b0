"""Texts of others neither steer a terminal, nor become formulas or markup."""

from __future__ import annotations

import csv
import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from esc_lab import terminal
from esc_lab.comparison.files import _csv
from esc_lab.errors import UserError
from esc_lab.terminal import (
    Countdown,
    PlainFormatter,
    StepCountdown,
    escape,
    escape_markdown,
    explain_once,
    find_numbers,
    print_table,
    show_controls,
    to_cell,
)
from tests import tables
from tests.conftest import ROOT

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egone\x7f\r"


@given(st.text())
def test_no_control_character_is_left(text):
    shown = show_controls(text)
    assert not any((ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 for c in shown)
    assert show_controls(shown) == shown
    assert shown.count("\n") == text.count("\n")


def test_errors_logs_and_tables_show_what_a_terminal_would_obey(capsys):
    shown = []
    try:
        raise UserError(f"no such model {HOSTILE}", where=HOSTILE, fix=HOSTILE)
    except UserError as error:
        record = logging.LogRecord(
            "run", logging.ERROR, "", 0, "the endpoint says %s", (HOSTILE,), (UserError, error, None)
        )
    shown.append(PlainFormatter("%(message)s").format(record))
    print_table(HOSTILE, (HOSTILE, "b"), [(HOSTILE, HOSTILE)], caption=HOSTILE, notes=[HOSTILE, "b"])
    shown.append(capsys.readouterr().out)
    for text in shown:
        assert "gone" in text
        assert not set(text) & set("\x1b\x07\x9b\u202e\x7f\r")


def test_markup_of_rich_is_text():
    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    screen.print(escape("[red]a[/red] \x1b[31mb"), highlight=False)
    assert screen.file.getvalue() == "[red]a[/red] \\x1b[31mb\n"


@pytest.mark.parametrize(
    "cell", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", " =1", "\t=1", "'=1", '"=1', "\r=1", "-"]
)
def test_formulas_are_text(cell):
    (row,) = csv.reader(io.StringIO(_csv([[cell]])))
    assert row[0].startswith(("'", "\\"))
    assert cell.strip("\r") in row[0]


@pytest.mark.parametrize("value", ["-1.5", "+3", "1e-3", "-inf", "run-1", "a=b", "", -1.5, 3, None])
def test_numbers_and_plain_texts_stay(value):
    assert to_cell(value) == value


def test_markdown_of_others_is_text():
    said = "# a\n* b | <script>x</script> [c](http://d.e) ![f](www.g.h) `i` **j** ~~k~~ max_tokens _l_ \x1b[m"
    escaped = escape_markdown(said)
    assert "\n" not in escaped
    assert "\x1b" not in escaped
    assert "max_tokens" in escaped
    for markup in ("<script>", "[c]", "http://", "www.", "**j", "~~k", " _l_", " | ", "`i`"):
        assert markup not in escaped
    assert escaped.replace("\\", "") == " ".join(show_controls(said).split()).replace("\\", "")


def test_tables_whose_columns_are_not_told_are_found(capsys):
    terminal.print_table("ends", ("strategy", "gold"), [("Question", "1")], notes=["gold: of the corpus"])
    terminal.print_table("rows", ("", ""), [("pairs", "2"), ("replies that nobody has judged", "3")])
    assert "replies that nobody" in capsys.readouterr().out
    assert tables.find_unexplained(tables.printed) == ["rows: pairs"]
    terminal.print_table("more", ("", "r (dialogues)"), [], notes=["A pair: two replies.", "r: correlation."])
    assert tables.find_unexplained(tables.printed) == []


def test_what_columns_mean_is_said_once_in_a_run(capsys):
    def show(title: str) -> str:
        print_table(title, ("a", "b"), [("x", "1")], notes=["b: 1 of 2"], meanings=["a: rows", "b: counts"])
        return capsys.readouterr().out

    assert "a: rows" in show("outside")
    with explain_once():
        assert "a: rows" in show("first")
        with explain_once():  # a run in it
            again = show("second")
    assert "a: rows" not in again
    assert again.endswith("- b: 1 of 2\n- columns: as said above.\n")
    assert "a: rows" in show("next run")


def test_marked_rows_and_columns_of_numbers():
    assert find_numbers([("1", "2 of 3", "a1"), ("x", "-", "")], 3) == [False, True, False]


def test_tables_are_drawn_where_they_are_looked_after():
    """By `print_table`; comparisons tell their metrics, the table of jobs has a test of its own."""
    package = ROOT / "esc_lab"
    drawing = {str(file.relative_to(package)) for file in package.rglob("*.py") if "rich.table" in file.read_text()}
    assert drawing == {"terminal.py", "comparison/formats.py", "cli/multirun.py"}


def test_seconds_left_are_those_of_the_rest_at_the_same_pace(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    fresh, resumed = Countdown(), Countdown(done=6)
    now[0] = 120.0
    assert fresh.left(1, 20) == ""  # too early to say
    assert fresh.left(4, 20) == ", about 80 s left"
    assert resumed.left(8, 20) == ", about 2 min left"
    assert resumed.left(6, 20) == ""
    assert fresh.left(20, 20) == ""


def test_seconds_of_steps_are_those_of_their_kind():
    countdown = StepCountdown()
    assert countdown.left(["evaluate", "sft"]) == ""
    countdown.add("evaluate", 20)
    countdown.add("evaluate", 40)
    assert countdown.left(["search", "evaluate"]) == ", about 60 s left"  # a search as long as the average
    countdown.add("sft", 90)
    assert countdown.left(["search", "evaluate", "sft"]) == ", about 3 min left"  # 60 + 30 + 90


def test_what_joblib_says_of_its_jobs_in_words(caplog):
    logger = logging.getLogger("launcher of jobs")
    logger.addFilter(terminal.LaunchWords())
    caplog.set_level("INFO")
    for pace, jobs in ((2, 4), (1, 1), (-1, 3)):
        logger.info(f"Joblib.Parallel(n_jobs={pace},backend=loky,prefer=processes) is launching {jobs} jobs")
    logger.info("Launching jobs")
    assert caplog.messages == [
        "4 jobs, 2 at a time",
        "1 job, one after the other",
        "3 jobs, side by side",
        "Launching jobs",
    ]
