"""Figures of a comparison: what they name, shares, how many methods fit, and curves of a logger's file."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from esc_lab.data.strategies import load_inventory
from esc_lab.report.comparison_figures import read_curve
from esc_lab.report.figures import confusion_matrices, draw_figure, preference_bars, training_curves
from esc_lab.statistics.intervals import Interval

NAMES = load_inventory("esconv").names


def texts(path) -> str:
    found = ElementTree.parse(path.with_suffix(".svg")).iter("{http://www.w3.org/2000/svg}text")
    return " ".join("".join(element.itertext()) for element in found)


def intervals(*values: float) -> list[Interval]:
    return [Interval(value, value - 0.1, value + 0.1) for value in values]


def test_figures_name_what_they_show(tmp_path):
    bars = {"base": intervals(*range(8)), "CSO $x_1$ <b>": intervals(*range(8, 0, -1))}
    drawn = texts(draw_figure(tmp_path / "bars", preference_bars, bars, NAMES, title="m: preference"))
    assert all(
        word in drawn for word in ("base", "CSO $x_1$ <b>", "Question", "m: preference", "preference (1 = none)")
    )
    counts = np.random.default_rng(0).integers(0, 9, size=(9, 8))
    drawn = texts(
        draw_figure(tmp_path / "c", confusion_matrices, {"base": counts, "CSO": counts[::-1]}, NAMES, title="t")
    )
    assert all(word in drawn for word in ("base", "CSO", "Self-disclosure", "(unparsable)", "gold", "predicted"))
    steps = np.arange(30.0)
    kinds = {"SFT": {"SFT": [(steps, 3 - steps / 30)]}, "CSO": {"CSO": [(steps, steps), (steps[::2], steps[::2])]}}
    drawn = texts(draw_figure(tmp_path / "t", training_curves, kinds, y_label="loss", title="m: training"))
    assert all(word in drawn for word in ("SFT", "CSO", "loss", "optimizer step", "m: training"))


def test_shares_are_of_the_gold_strategy(tmp_path):
    counts = np.zeros((4, 3))
    counts[0] = 1, 3, 0  # the third is never gold
    counts[1] = 1, 1, 0
    drawn = texts(draw_figure(tmp_path / "c", confusion_matrices, {"m": counts}, ["a", "b", "c"], title="")).split()
    assert sorted(word for word in drawn if word in ("25", "50", "75")) == ["25", "50", "50", "75"]
    assert "(unparsable)" not in drawn


@pytest.mark.parametrize("number", [0, 9])
def test_too_many_or_no_methods(tmp_path, number):
    names = [str(one) for one in range(number)]
    with pytest.raises(ValueError, match="from 1 to 8"):
        preference_bars({name: intervals(1) for name in names}, ["a"], title="")
    kinds = {"SFT": {name: [(np.arange(2.0), np.arange(2.0))] for name in names}}
    with pytest.raises(ValueError, match="from 1 to 8"):
        training_curves(kinds, y_label="", title="")
    with pytest.raises(ValueError, match="no confusion counts"):
        confusion_matrices({}, ["a"], title="")


def test_a_curve_from_a_loggers_file(tmp_path):
    path = tmp_path / "metrics.csv"
    assert read_curve(path, "train/loss") is None
    path.write_text("epoch,step,train/loss,val/loss\n0,0,3.0,\n0,1,2.0,\n0,1,,2.5\n0,1,1.5,\n")
    steps, values = read_curve(path, "train/loss")
    assert (steps.tolist(), values.tolist()) == ([0, 1], [3, 1.5])  # step 1 was taken again
    assert read_curve(path, "val/loss")[1].tolist() == [2.5]
    assert read_curve(path, "other") is None
