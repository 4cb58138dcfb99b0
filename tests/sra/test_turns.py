"""Attention and adherence turn by turn: places in talks, means by hand, and a planted trend."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.sra.sample import MeasuredReply, ReplySample
from esc_lab.sra.turns import fit_trends, place_in_talks, summarize_turns


def reply(run: str, card: str, talk: int, turn: int, log_sra: float, adheres: bool | None = None) -> MeasuredReply:
    return MeasuredReply(run, card, turn, "Question", math.exp(log_sra), 0.5, 1.0, adheres, sample=talk)


def plant(slope: float, lengths: dict[str, int], level: dict[str, float], run: str = "one") -> list[MeasuredReply]:
    """Talks whose log SRA changes by `slope` a turn; cards differ in their length and level."""
    return [
        reply(run, card, 0, turn, level[card] + slope * turn)
        for card, length in lengths.items()
        for turn in range(1, length + 1)
    ]


def test_places_in_talks():
    """The greeting is no turn; a talk may end with either side."""
    turns = [Turn("supporter", Reply("Hello."))]
    for text in "abc":
        turns += [Turn("seeker", Reply(text)), Turn("supporter", Reply(text.upper(), ("Question",)))]
    talks = [
        Dialogue(tuple(turns[:length]), "esconv", tree_id=f"x-{number}", meta={"card": "x", "talk": number})
        for number, length in enumerate((7, 6))
    ]
    measured = [reply("one", talk.id, 0, index, -1.0) for talk in talks for index in (2, 4, 6)][:5]
    placed = place_in_talks(measured, talks)
    assert [(each.dialogue, each.sample, each.turn) for each in placed] == [
        ("x", 0, 1), ("x", 0, 2), ("x", 0, 3), ("x", 1, 1), ("x", 1, 2),
    ]  # fmt: skip
    assert [replace(each, dialogue="", turn=0, sample=0) for each in placed] == [
        replace(each, dialogue="", turn=0, sample=0) for each in measured
    ]


def test_means_of_turns():
    replies = [
        reply("late", "x", 0, 2, -1.0, True), reply("late", "y", 0, 2, -3.0, False), reply("early", "x", 0, 1, -2.0),
        reply("late", "x", 0, 1, -5.0, True), reply("late", "x", 1, 2, -2.0, True),
    ]  # fmt: skip
    found = summarize_turns(ReplySample(replies, draws=50))
    assert [(each.run, each.turn, each.n) for each in found] == [("late", 1, 1), ("late", 2, 3), ("early", 1, 1)]
    assert found[1].log_sra.value == pytest.approx(-2.0)
    assert found[1].adherence.value == pytest.approx(2 / 3)
    assert found[1].log_sra.low <= -2.0 <= found[1].log_sra.high
    assert math.isnan(found[0].log_sra.low)  # of one card
    assert math.isnan(found[2].adherence.value)


def test_a_planted_trend_is_found_although_talks_end_early():
    """Cards with much attention have short talks: means by turn fall, and no talk changes."""
    lengths, level = {"a": 2, "b": 4, "c": 20}, {"a": 0.0, "b": -1.0, "c": -4.0}
    flat = ReplySample(plant(0.0, lengths, level), draws=200)
    means = [each.log_sra.value for each in summarize_turns(flat)]
    assert means[0] > means[3] > means[19]
    assert fit_trends(flat, "log_sra")["one"].value == pytest.approx(0.0, abs=1e-12)
    sample = ReplySample([*plant(-0.1, lengths, level), *plant(0.05, lengths, level, "two")], draws=200)
    found = fit_trends(sample, "log_sra")
    assert [found[run].value for run in ("one", "two")] == pytest.approx([-0.1, 0.05])
    assert math.isnan(fit_trends(sample, "adherence")["one"].value)


def test_trends_are_those_of_a_regression_with_a_level_for_each_talk():
    draw = np.random.default_rng(3)
    replies = [
        reply("one", f"card{card}", talk, turn, float(draw.normal()), bool(draw.random() < 0.4))
        for card in range(6)
        for talk in range(2)
        for turn in range(1, 3 + int(draw.integers(5)))
    ]
    talks = sorted({(each.dialogue, each.sample) for each in replies})
    design = np.zeros((len(replies), 1 + len(talks)))
    for row, each in enumerate(replies):
        design[row, [0, 1 + talks.index((each.dialogue, each.sample))]] = each.turn, 1
    sample = ReplySample(replies, draws=300)
    for name in ("log_sra", "adherence"):
        expected = np.linalg.lstsq(design, sample.values[name], rcond=None)[0][0]
        found = fit_trends(sample, name)["one"]
        assert found.value == pytest.approx(expected, abs=1e-9)
        assert found.low < expected < found.high
    one_card = ReplySample([each for each in replies if each.dialogue == "card1"], draws=50)
    assert math.isnan(fit_trends(one_card, "log_sra")["one"].low)
