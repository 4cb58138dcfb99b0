"""What is said of a reward model: of scores with known truth, by kind, with controls, calibrated, and by strategy."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from esc_lab.data.corpora import read_dialogues, sample_path
from esc_lab.data.dialogue import Reply, Turn, merge_turns
from esc_lab.evaluation.reward_check import (
    calibrate,
    center_strategies,
    check_reward,
    draw_rated,
    score_cases,
    score_strategies,
)
from esc_lab.judge_check.cases import OWN, STRATEGY, draw_cases
from esc_lab.scorers.reward_model import Calibration

DIALOGUES = [merge_turns(dialogue, "set") for dialogue in read_dialogues(sample_path())[:40]]
GIVEN = {
    (dialogue.turns[index - 1].reply.text, dialogue.turns[index].reply.text)
    for dialogue in DIALOGUES
    for index in dialogue.decisions()
}


def check(score, own_replies=None, count=60):
    def scores(conversations):
        return np.array([score(talk) for talk in conversations], dtype=np.float64)

    return check_reward(score_cases(scores, DIALOGUES, count, 1, own_replies), DIALOGUES, 1)


def knows(talk) -> float:
    """Far up for given replies, with a little of the text in it."""
    return 8.0 * ((talk[-2].reply.text, talk[-1].reply.text) in GIVEN) + len(talk[-1].reply.text) % 7 / 10


def test_one_that_knows():
    found = check(knows)
    metrics = found.metrics()
    for kind in ("other_dialogue", "same_dialogue", "rejected"):
        assert metrics[f"{kind}/auc"] == metrics[f"{kind}/similar_length_auc"] == 1
        assert metrics[f"{kind}/ece"] < 0.01
        assert 0 < metrics[f"{kind}/similar_length_contexts"] < metrics[f"{kind}/contexts"]
    assert metrics["same_dialogue/above_low"] > 0
    assert metrics["believed"] == 1
    shares = [row["same_dialogue"] for row in found.strategies.values() if "same_dialogue" in row]
    assert {share for share, _ in shares} == {1.0}
    assert sum(pairs for _, pairs in shares) == metrics["same_dialogue/contexts"]


def test_one_of_length_or_place_is_its_own_control():
    by_length = check(lambda talk: len(talk[-1].reply.text.split())).metrics()
    for kind in ("other_dialogue", "same_dialogue", "rejected"):
        assert by_length[f"{kind}/auc"] == pytest.approx(by_length[f"{kind}/length_auc"])
    place = {
        dialogue.turns[turn].reply.text: turn / len(dialogue.turns)
        for dialogue in DIALOGUES
        for turn in dialogue.decisions()
    }
    by_place = check(lambda talk: place.get(talk[-1].reply.text, 0)).metrics()
    for kind in ("other_dialogue", "same_dialogue"):
        assert by_place[f"{kind}/auc"] == pytest.approx(by_place[f"{kind}/place_auc"], abs=0.02)
    assert by_place["same_dialogue/place_auc"] < 0.5  # foils come later
    assert by_place["rejected/place_auc"] == 0.5


def test_own_replies_are_a_kind_of_their_own():
    written = [
        type(dialogue)(
            tuple(Turn(turn.speaker, turn.reply, (Reply("As a model I cannot say."),) * (turn.speaker == "supporter"))
                  for turn in dialogue.turns), dialogue.inventory, tree_id=dialogue.tree_id,
        )
        for dialogue in DIALOGUES
    ]  # fmt: skip
    found = check(lambda talk: float("model" not in talk[-1].reply.text), written)
    assert found.metrics()[f"{OWN}/auc"] == 1
    assert OWN not in check(knows).metrics()
    found.show("Own replies")


def test_ratings_are_a_kind_of_their_own():
    """The better one is that of the higher value, whoever was given; close values are nothing to be right about."""
    values = {"Good.": 0.9, "Bad.": 0.1, "As good.": 0.85}
    rated = [
        replace(
            dialogue, turns=tuple(
                replace(turn, reply=replace(turn.reply, value=0.5),
                        rejected=tuple(Reply(text, value=value) for text, value in values.items()))
                if turn.speaker == "supporter" else turn for turn in dialogue.turns
            ),
        )
        for dialogue in DIALOGUES
    ]  # fmt: skip
    cases = draw_rated(rated, 30, 1, 0.1)
    assert len(cases) == 30
    value = lambda talk: values.get(talk[-1].reply.text, 0.5)  # noqa: E731
    assert all(value(case.given) > value(case.foil) + 0.1 for case in cases)
    assert len({case.given[:-1] for case in cases}) == 30
    assert len({case.tree_id for case in cases}) > 5
    assert draw_rated(DIALOGUES, 30, 1, 0.1) == []
    right = lambda talks: np.array([value(talk) for talk in talks])  # noqa: E731
    found = check_reward(score_cases(right, DIALOGUES, 40, 1, rated=cases), DIALOGUES, 1)
    assert found.metrics()["rated/auc"] > 0.95  # better ones of a turn are no better than worse ones of another
    assert found.metrics()["rated/contexts"] == 30
    found.show("Ratings")
    scored = score_cases(right, DIALOGUES, 40, 1, rated=cases)
    only = {"rated": scored["rated"]}
    assert calibrate(scored, {"rated": 1.0}) == calibrate(only, {"rated": 1.0})


def test_calibration_of_scores_that_are_right_in_probability():
    chance = np.random.default_rng(0)
    cases = score_cases(lambda talks: chance.normal(5, 1, len(talks)), DIALOGUES, 40, 1)
    truth = 2.5
    drawn = {}
    for kind, rows in cases.items():
        gaps = chance.normal(0, 6, len(rows))
        signs = np.where(chance.random(len(rows)) < 1 / (1 + np.exp(-gaps / truth)), 1, -1)
        drawn[kind] = [
            row._replace(given=5 + gap / 2, foil=5 - gap / 2) for row, gap in zip(rows, gaps * signs, strict=True)
        ]
    shares = {"other_dialogue": 1.0, "same_dialogue": 1.0, "rated": 1.0, "own_reply": 0.0}
    drawn["wrong_strategy"] = [row._replace(given=0, foil=1) for row in drawn["wrong_strategy"]]
    found = calibrate(drawn, shares)
    assert found.center == pytest.approx(5)
    assert found.temperature == pytest.approx(truth, rel=0.5)
    only = {"wrong_strategy": drawn["wrong_strategy"]}
    assert calibrate(only, shares).center == 0.5
    assert calibrate({}, shares) == Calibration()


def test_strategies_alone():
    """They are scored without words; their centers are means over all decisions, whatever was given there."""

    def scores(talks):
        assert all(not talk[-1].reply.text for talk in talks)
        return np.array([{"Question": 2.0, "Others": -1.0}.get(talk[-1].reply.strategies[0], 0.0) + len(talk) / 100
                         for talk in talks])  # fmt: skip

    names = ("Others", "Question")
    centers = center_strategies(scores, DIALOGUES[:3], names)
    place = np.mean([turn + 1 for dialogue in DIALOGUES[:3] for turn in dialogue.decisions()]) / 100
    assert centers == {"Others": pytest.approx(place - 1), "Question": pytest.approx(place + 2)}
    cases = draw_cases(DIALOGUES, 20, 1)[STRATEGY]
    for scored in score_strategies(scores, cases):
        assert scored.given - scored.foil == pytest.approx(
            np.subtract(*(scores([(*talk[:-1], Turn("supporter", Reply("", talk[-1].reply.strategies)))])[0]
                          for talk in scored.case[:2]))
        )  # fmt: skip


def test_record_and_tables(capsys):
    found = check(knows)
    found.show("A reward model")
    shown = capsys.readouterr().out
    assert "A reward model" in shown
    assert "Pairs ordered rightly, by strategy" in shown
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record["gate"]["believed"]
    assert record["controls"]["same_dialogue"]["error"] < 0.01
    assert record["strategies"]["Question"]["same_dialogue"]["share"] == 1
