"""Figures: files, labels, determinism, missing values, and labels that leave points and one another free."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import style

from esc_lab.errors import UserError
from esc_lab.report.figures import STYLE, Point, curves, draw_figure, head_map
from esc_lab.report.scatter import overlap, place_labels, scatter
from esc_lab.statistics.intervals import Interval

NAN = math.nan
# Published accuracy and mean log-SRA of eight configurations of Llama-2-7b-chat (arXiv 2402.10453): some nearly equal.
PUBLISHED = {
    "standard": (-7.294, 0.144),
    "c5_hf": (-6.802, 0.178),
    "c5_hl": (-6.781, 0.202),
    "c3_hf": (-6.394, 0.294),
    "c3_hl": (-6.504, 0.295),
    "c1_hl": (-6.164, 0.715),
    "c1_hf": (-6.112, 0.765),
    "fine-tuned": (-6.126, 0.933),
}


def spot(x: float, y: float, wide: float = 0.1, high: float = 0.06) -> tuple[Interval, Interval]:
    return Interval(x, x - wide, x + wide), Interval(y, y - high, y + high)


def line(start: float, slope: float, turns: int = 6) -> list[Point]:
    values = [start + slope * turn for turn in range(turns)]
    return [Point(turn, Interval(y, y - 0.1, y + 0.1), 10 + turn) for turn, y in enumerate(values)]


def draw_all(directory):
    """One figure of each kind, with names that matplotlib or XML could take for something else."""
    names = ["_standard", "c1_hf $x^2$", "a < b & c", *(f"run {i}" for i in range(5))]
    labels = {"x_label": "turn depth (turns)", "y_label": "SRA"}
    lines = {name: line(i, 0.1 * i) for i, name in enumerate(names)}
    spots = {name: spot(i, i % 3) for i, name in enumerate(names)}
    heads = np.arange(12.0).reshape(4, 3)
    drawn = [
        draw_figure(directory / "curves.1", curves, lines, **labels),
        draw_figure(directory / "scatter", scatter, spots, note="r 0.7", **labels),
        draw_figure(directory / "map", head_map, heads, title="map $1", colour_label="SRA (mean)"),
    ]
    return [file for png in drawn for file in (png, png.with_suffix(".svg"))]


def texts(path) -> list[str]:
    return [element.text for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_files_and_the_texts_in_them(tmp_path):
    files = draw_all(tmp_path)
    assert [file.name for file in files] == [
        *("curves.1.png", "curves.1.svg", "scatter.png", "scatter.svg", "map.png", "map.svg")
    ]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files[::2])
    found = [texts(file) for file in files[1::2]]
    assert {"_standard", "c1_hf $x^2$", "a < b & c", "run 4", "turn depth (turns)", "SRA"} <= set(found[0])
    assert {"_standard", "c1_hf $x^2$", "a < b & c", "run 4", "turn depth (turns)", "SRA", "r 0.7"} <= set(found[1])
    assert {"map $1", "SRA (mean)", "layer", "head"} <= set(found[2])


def test_same_bytes_whatever_the_users_settings(tmp_path):
    before = [file.read_bytes() for file in draw_all(tmp_path)]
    with matplotlib.rc_context(
        {"font.size": 20, "axes.grid": True, "savefig.facecolor": "black", "svg.fonttype": "path"}
    ):
        mine = dict(matplotlib.rcParams)
        assert [file.read_bytes() for file in draw_all(tmp_path)] == before
        assert dict(matplotlib.rcParams) == mine


def test_neither_pyplot_nor_torch_is_imported():
    code = "import sys, esc_lab.report.figures; sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_value_is_a_gap_and_a_missing_interval_no_band(tmp_path):
    points = line(1, 0.1, 7)
    points[2] = Point(2, Interval(NAN, 0, 9), 0)  # an interval without a value is not drawn either
    points[4] = points[4]._replace(y=Interval(points[4].y.value, NAN, NAN))
    figure = curves({"run": points[::-1]}, x_label="x", y_label="y")
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), range(7))
    assert np.flatnonzero(np.isnan(axes.lines[0].get_ydata())).tolist() == [2]
    band = np.concatenate([path.vertices for path in axes.collections[1].get_paths()])
    assert set(band[:, 0]) == {0, 1, 3, 5, 6}
    # The third point's interval has no neighbour to make a band with.
    bars = [path.vertices for path in axes.collections[2].get_paths()]
    np.testing.assert_allclose(bars, [[[3, 1.2], [3, 1.4]]])
    assert axes.get_ylim()[1] < 2
    assert figure.legends[0].get_title().get_text() == "marker area grows with n: 10 to 16"
    missing = {"all missing": [Point(1, Interval(NAN, NAN, NAN), 0)], "none": []}
    draw_figure(tmp_path / "empty", curves, missing, x_label="x", y_label="y")
    assert {"all missing", "none", "no values"} <= set(texts(tmp_path / "empty.svg"))


def test_equal_n_is_said_once():
    figure = curves({"run": [Point(x, Interval(1, 0, 2), 40) for x in range(3)]}, x_label="x", y_label="y")
    assert figure.legends[0].get_title().get_text() == "n = 40 at every point"


def test_points_without_a_value_are_named_and_bars_may_be_missing(tmp_path):
    points = {
        "a": spot(0, 0),
        "gone": (Interval(NAN, NAN, NAN), Interval(1, 0, 2)),
        "b": (Interval(1, NAN, NAN), Interval(1, 0.5, 1.5)),
    }
    draw_figure(tmp_path / "s", scatter, points, x_label="x", y_label="y", note="Pearson 1.00")
    found = texts(tmp_path / "s.svg")
    assert {"a", "b", "Pearson 1.00", "not drawn: gone"} <= set(found)
    assert "gone" not in found
    with pytest.raises(ValueError, match="no point"):
        scatter({"gone": points["gone"]}, x_label="x", y_label="y")


def test_heads_without_a_value_are_grey_and_differences_are_centred_on_zero():
    values = np.array([[0.1, NAN], [-0.4, math.inf]])
    figure = head_map(values, title="", colour_label="", diverging=True)
    image = figure.axes[0].images[0]
    colours = image.to_rgba(image.get_array())
    grey = matplotlib.colors.to_rgba("#9a9a9a")
    np.testing.assert_allclose(colours[:, 1], [grey, grey])
    assert image.get_clim() == (-0.4, 0.4)
    assert colours[0, 0][0] > colours[0, 0][2]  # above zero red, below blue
    assert colours[1, 0][0] < colours[1, 0][2]
    assert figure.axes[0].get_ylim() == (1.5, -0.5)  # layer 0 on top
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["no value"]
    assert head_map(np.full((2, 2), NAN), title="", colour_label="").axes[0].images[0].get_clim() == (0, 1)
    assert not head_map(np.zeros((2, 2)), title="", colour_label="", diverging=True).legends


def hard_cases():
    close = {f"c{k}_{order}": spot(0.5 + 0.004 * i, 0.5 + 0.003 * j) for i, k in enumerate((1, 3, 5)) for j, order in
             enumerate(("hf", "hl"))}  # fmt: skip
    two = {f"{model} {name}": spot(x + shift, y) for model, shift in (("Llama-2", 0), ("Llama-3", 0.02))
           for name, (x, y) in PUBLISHED.items()}  # fmt: skip
    return {"published": {name: spot(*xy) for name, xy in PUBLISHED.items()}, "sixteen in pairs": two, "cluster": close}


@pytest.mark.parametrize("case", ["published", "sixteen in pairs", "cluster"])
def test_labels_leave_points_and_one_another_free(case):
    points = hard_cases()[case]
    with style.context(STYLE, after_reset=True):
        figure = scatter(points, x_label="mean log-SRA", y_label="accuracy", note="Pearson 0.94 [0.60, 0.98]")
        figure.canvas.draw()
    axes = figure.axes[0]
    renderer = figure.canvas.get_renderer()
    labels = [text.get_window_extent(renderer) for text in figure.texts]
    note = axes.texts[0].get_window_extent(renderer)
    markers = axes.transData.transform([(x.value, y.value) for x, y in points.values()])
    assert [text.get_text() for text in figure.texts] == list(points)
    for one, other in itertools.combinations([*labels, note], 2):
        assert not one.overlaps(other)
    for label in [*labels, note]:
        for x, y in markers:
            assert not label.padded(4).contains(x, y)
    for label in labels:
        assert axes.bbox.x0 <= label.x0 and label.x1 <= axes.bbox.x1  # noqa: PT018
        assert axes.bbox.y0 <= label.y0 and label.y1 <= axes.bbox.y1  # noqa: PT018


def test_labels_stay_beside_their_points_where_there_is_room():
    points = {name: spot(*xy, 0.02, 0.02) for name, xy in PUBLISHED.items()}
    with style.context(STYLE, after_reset=True):
        figure = scatter(points, x_label="x", y_label="y")
    markers = figure.axes[0].transData.transform([(x.value, y.value) for x, y in points.values()])
    for text, marker in zip(figure.texts, markers, strict=True):
        box = text.get_window_extent()
        nearest = np.clip(marker, box.min, box.max)
        assert np.hypot(*(marker - nearest)) < 20, text.get_text()
    assert not figure.artists  # so no line leads to any


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(80, 520), st.integers(80, 320)), min_size=1, max_size=7))
def test_seven_labels_are_always_placed_apart(anchors):
    """Even on one spot, given a frame with room for them."""
    points = np.array(anchors, float)
    sizes = np.full((len(points), 2), (60.0, 18.0))
    solid = np.concatenate([points - 5, points + 5], 1)
    frame = np.array([0.0, 0.0, 600.0, 400.0])
    centres = place_labels(points, sizes, solid, np.empty((0, 4)), frame)
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], 1)
    shared = overlap(boxes, boxes)
    np.fill_diagonal(shared, 0)
    assert not shared.any()
    assert not overlap(boxes, solid).any()
    np.testing.assert_allclose(overlap(boxes, frame[None])[:, 0], 60 * 18)


def test_overlap_against_counted_pixels():
    boxes = np.array([[0, 0, 4, 3], [2, 1, 6, 5], [9, 9, 10, 10], [NAN] * 4])

    def pixels(box):
        if np.isnan(box).any():
            return set()
        left, bottom, right, top = box.astype(int)
        return {(x, y) for x in range(left, right) for y in range(bottom, top)}

    expected = [[len(pixels(one) & pixels(other)) for other in boxes] for one in boxes]
    np.testing.assert_array_equal(overlap(boxes, boxes), expected)


def test_what_cannot_be_drawn_or_written(tmp_path):
    with pytest.raises(ValueError, match="no series"):
        curves({}, x_label="x", y_label="y")
    with pytest.raises(ValueError, match="layers, heads"):
        head_map(np.zeros(3), title="", colour_label="")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        draw_figure(tmp_path / "file" / "m", head_map, np.zeros((1, 1)), title="", colour_label="")
    (tmp_path / "d.png").mkdir()
    with pytest.raises(UserError, match=r"cannot write.*"):
        draw_figure(tmp_path / "d", head_map, np.zeros((1, 1)), title="", colour_label="")
    assert not list(tmp_path.glob(".*"))
