"""Judges and people on the same replies: compared with the same other people, on the question that both answered."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from esc_lab.artifacts import file_fingerprint
from esc_lab.errors import UserError
from esc_lab.judging.survey_answers import Rating
from esc_lab.judging.survey_items import SurveyItem, SurveyReply
from esc_lab.judging.survey_judge import JudgedItems, compare_judge, read_judged_items
from tests.judging.surveys import composed, make_survey, write_templates


def make_ratings(raters: int, items: int = 40) -> list[Rating]:
    """Of pairs whose worth all raters see with noise; every fourth pair has one rater alone."""
    drawn = np.random.default_rng(4)
    replies = (SurveyReply("a", "standard", "A"), SurveyReply("b", "standard", "B"))
    ratings = []
    for number in range(items):
        item = SurveyItem(f"item_{number:02d}", f"d{number // 2}", f"d{number // 2}", 1, None, replies)
        worth = drawn.normal()
        for rater in range(raters if number % 4 else 1):
            value = int(np.clip(round(worth + drawn.normal()), -4, 4))
            ratings.append(Rating(f"rater_{rater}", item, "helpfulness", value, value))
    return ratings


def agree(one: float, other: float) -> float:
    return 1 - abs(np.sign(one) - np.sign(other)) / 2


@pytest.mark.parametrize("raters", [2, 3, 4])
def test_judge_and_people_are_compared_with_the_same_others(raters):
    ratings = make_ratings(raters)
    judged = JudgedItems({f"item_{number:02d}": number % 3 - 1.0 for number in range(5, 40)}, {}, "help", None)
    judge, people = [], []
    for left_out in ratings:
        others = [r.value for r in ratings if r.item == left_out.item and r is not left_out]
        if others and left_out.item.name in judged.preference:
            judge.append(agree(judged.preference[left_out.item.name], np.mean(others)))
            people.append(agree(left_out.value, np.mean(others)))
    found = compare_judge("helpfulness", ratings, judged, composed().survey, 1)
    assert (found.others.value, found.people.value) == pytest.approx((np.mean(judge), np.mean(people)))
    assert found.others.low < found.others.value < found.others.high
    assert found.pairs == 35  # those of one rater too


def test_beside_one_rater_a_judge_has_no_others():
    ratings, judged = make_ratings(1), JudgedItems({"item_00": 1.0, "item_01": -1.0}, {}, "help", None)
    found = compare_judge("helpfulness", ratings, judged, composed().survey, 1)
    assert found.agreement.value == np.mean([agree(r.value, judged.preference[r.item.name]) for r in ratings[:2]])
    assert math.isnan(found.others.value)
    assert math.isnan(found.people.value)


@pytest.mark.parametrize(
    ("asked", "strategy", "questions", "compared"),
    [
        ("adherence", True, ("adherence", "helpfulness"), {"adherence"}),
        ("help", True, ("adherence", "helpfulness"), {"helpfulness"}),
        (None, True, ("adherence", "helpfulness"), {"helpfulness"}),  # before judges were asked about adherence
        ("adherence", True, ("warmth", "helpfulness"), {"warmth", "helpfulness"}),
        ("adherence", False, ("adherence", "helpfulness"), set()),  # to another strategy than people were told
    ],
)
def test_a_judge_stands_beside_the_question_that_it_was_asked(tmp_path, asked, strategy, questions, compared):
    runs = write_templates(tmp_path, ("standard", "c1_hf"))
    shown = ", ".join(f"{{name: {name}, text: a, low: b, high: c}}" for name in questions)
    key = make_survey(tmp_path / "made", runs, f"survey.form.questions=[{shown}]", "survey.items=6")
    named = {"standard": runs[0], "c1_hf": runs[1]}
    record = {"runs": [{"label": name, "predictions": file_fingerprint(path / "predictions.jsonl")}
                       for name, path in named.items()]}  # fmt: skip
    lines = []
    for item in key.items.values():
        reply, other = sorted(item.replies, key=lambda each: each.template)
        place = {"kind": "pairwise", "dialogue": item.dialogue, "turn": item.turn, "run": "c1_hf", "outcome": 1.0}
        place |= {"reply": reply.text, "baseline": "standard", "baseline_reply": other.text}
        lines.append(place | {"strategy": item.strategy if strategy else "Another one"})
    (tmp_path / "judge.json").write_text(json.dumps(record | ({"question": asked} if asked else {})))
    (tmp_path / "judgements.jsonl").write_text("\n".join(map(json.dumps, lines)))
    if not compared:
        with pytest.raises(UserError, match="it judged none of the survey's replies"):
            read_judged_items(tmp_path, key)
        return
    judged = read_judged_items(tmp_path, key)
    assert judged.asked == (asked or "help")
    found = {}
    for name in questions:
        ratings = [Rating(rater, item, name, 1, 1) for item in key.items.values() for rater in "xy"]
        found[name] = compare_judge(name, ratings, judged, composed().survey, 1)
    assert {name for name, each in found.items() if each.pairs} == compared
    assert all(math.isnan(found[name].people.value) == (name not in compared) for name in questions)
