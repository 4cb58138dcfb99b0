"""Studies of SRA as tables and figures: planted replies, known orders, and nobody to judge."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from esc_lab.report import sra_report
from esc_lab.sra.sample import MeasuredReply, ReplySample

TEMPLATES = ("standard", "c1_hf", "c3_hl", "c5_hf")


def planted(level, *, judged=True, control=0.01):
    """Replies of ten dialogues whose log SRA is the level of their template, give or take what is common to a turn."""
    draw = np.random.default_rng(0)
    return [
        MeasuredReply(
            template, f"d{dialogue}", turn, "Question", math.exp(level[template] + draw.normal(0, 0.05)), control, 1.5,
            bool(draw.random() < 0.1 - 0.1 * level[template]) if judged else None,
            phrase=("plain text reply", "Simple Prose")[turn % 4 // 2], place=("before", "after")[dialogue % 2],
        )
        for template in TEMPLATES
        for dialogue in range(10)
        for turn in (1, 3, 5, 9)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("order", "published"),
    [(("c1_hf", "c3_hl", "c5_hf", "standard"), True), (("standard", "c3_hl", "c5_hf", "c1_hf"), False)],
)
def test_templates_in_order(tmp_path, capsys, order, published):
    level = {template: -5.0 - number for number, template in enumerate(order)}
    report = sra_report.templates(ReplySample(planted(level), 50, 1), tmp_path)
    line = next(line for line in report.lines if "mean log SRA" in line)
    assert [word.partition("_")[0] for word in order] == [part.split()[-2] for part in line.split(";")[0].split(" > ")]
    assert line.endswith("; the published order") == published
    assert report.metrics["c1_hf/log_sra"] == pytest.approx(level["c1_hf"], abs=0.05)
    assert report.metrics["c1_hf/sham_net"] == pytest.approx(level["c1_hf"] - math.log(0.01), abs=0.05)
    assert json.loads(json.dumps(report.results))["runs"][0]["n"] == 40
    assert all(path.exists() and path.with_suffix(".svg").exists() for path in report.figures)
    printed = capsys.readouterr().out
    assert report.notes
    for note in report.notes:  # once each, beside the first table that has the column
        assert " ".join(printed.split()).count(f"- {note}") == report.markdown.count(f"- {note}") == 1
    for heading, (columns, rows) in report.tables.items():
        assert heading.split(":")[0] in printed.replace("\n", " ")
        assert f"## {heading}" in report.markdown
        assert all(len(row) == len(columns) for row in rows)


def test_nobody_judged(tmp_path):
    report = sra_report.templates(ReplySample(planted(dict.fromkeys(TEMPLATES, -6.0), judged=False), 20, 1), tmp_path)
    assert any("Nobody judged adherence" in line for line in report.lines)
    assert {path.stem for path in report.figures} == {"log_sra_by_depth", "sham_net_by_depth"}
    assert not any("adherence" in name for name in report.metrics)


def test_without_controls_the_net_is_unknown(tmp_path):
    replies = planted(dict.fromkeys(TEMPLATES, -6.0), control=math.nan)
    report = sra_report.templates(ReplySample(replies, 20, 1), tmp_path)
    (_, rows) = next(iter(report.tables.values()))
    assert all(row[3] == "-" for row in rows)
    assert not any("sham-net" in line for line in report.lines)


def test_heads_that_have_all_the_attention(tmp_path):
    level = dict.fromkeys(TEMPLATES, -6.0)
    replies = planted(level, judged=False)
    attention = np.full((len(replies), 3, 4), 1e-4, dtype=np.float32)
    attention[:, 1, 2] = 0.1
    report = sra_report.heads(replies, attention, tmp_path, seed=1)
    assert report.metrics["heads/share_of_1"] == pytest.approx(0.1 / (0.1 + 11e-4), rel=1e-4)
    assert np.argmax(report.results["sra"]) == 6


def test_levels_come_with_their_phrases_and_contrasts_with_their_pairs(tmp_path):
    level = {template: -5.0 - number for number, template in enumerate(TEMPLATES)}
    report = sra_report.templates(ReplySample(planted(level), 50, 1), tmp_path)
    _, rows = report.tables["Sham-net by the control: compare runs, not a level with 0"]
    assert [row[0] for row in rows] == [*TEMPLATES]
    assert all(row[2] == "2" and "(plain text reply)" in row[4] + row[5] for row in rows)
    assert report.metrics["c1_hf/sham_net_spread"] < 0.05  # all phrases are alike here
    contrasts = report.results["contrasts"]
    assert [(row["first"], row["second"], row["pairs"]) for row in contrasts] == [
        ("standard", t, 40) for t in TEMPLATES[1:]
    ]
    assert [row["sham_net"]["value"] for row in contrasts] == pytest.approx([-1, -2, -3], abs=0.05)
