"""Shares and means of judged talks with their intervals, against a bootstrap of its own; rubrics and their words."""

from __future__ import annotations

import random

import numpy as np
import pytest

from esc_lab.config.compare import TalkRubricConfig
from esc_lab.config.files import read_option
from esc_lab.data.dialogue import Reply, Turn
from esc_lab.errors import UserError
from esc_lab.judging.talk_results import summarize_talks
from esc_lab.judging.talk_rubric import build_rubric
from esc_lab.judging.talk_session import TalkJudgement
from esc_lab.statistics.bootstrap import ClusterSample, draw_weights

CARDS = [f"card{number:02}" for number in range(14)]
SEVERITY = {card: 1 + number % 4 for number, card in enumerate(CARDS)}
TALKS = [(card, talk) for card in CARDS for talk in range(3)]


def rubric(name: str, **changes):
    return build_rubric(TalkRubricConfig(**{**read_option("rubric", name), **changes}))


def judged(name: str) -> list[TalkJudgement | None]:
    draw, asked = random.Random(name), rubric(name)
    chances = {card: draw.random() for card in CARDS}  # talks of a card are alike
    found: list[TalkJudgement | None] = []
    for card, talk in TALKS:
        scores = {question: round((0.7 * chances[card] + 0.3 * draw.random()) * (1 if asked.yes_no else 4), 3)
                  for question in asked.names}  # fmt: skip
        found.append(None if talk == 2 and card < "card03" else TalkJudgement(scores))
    return found


def expected_interval(values: list[float]) -> tuple[float, float, float]:
    """Percentiles of means over cards drawn with replacement, talk by talk."""
    by_card = {card: [v for (own, _), v in zip(TALKS, values, strict=True) if own == card] for card in CARDS}
    means = []
    for weights in draw_weights(len(CARDS), 400, 7):
        drawn = [v for card, times in zip(CARDS, weights, strict=True) for v in by_card[card] * times]
        means.append(np.nanmean(drawn) if not np.isnan(drawn).all() else np.nan)
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return float(np.nanmean(values)), float(low), float(high)


@pytest.mark.parametrize("name", ["axes", "safety"])
def test_values_and_intervals_over_cards(name):
    asked, told = rubric(name), judged(name)
    sample = ClusterSample([card for card, _ in TALKS], 400, 7)
    found = summarize_talks(told, [SEVERITY[card] for card, _ in TALKS], asked, sample)
    assert list(found) == [*asked.names, *(["all"] if asked.yes_no else [])]
    desired = {question.name: question.desired for question in asked.questions}
    passes = []
    for question in asked.names:
        values = [np.nan if one is None else one.scores[question] for one in told]
        if asked.yes_no:
            values = [v if np.isnan(v) else float((v > 0.5) if desired[question] else (1 - v > 0.5)) for v in values]
            passes.append(values)
        value, low, high = expected_interval(values)
        result = found[question]
        assert result.talks == 39
        assert result.value.value == pytest.approx(value)
        if asked.yes_no:  # no surer than 14 cards allow
            low, high = min(low, 0.025 ** (1 / 14)), max(high, 1 - 0.025 ** (1 / 14))
            assert sum(result.talks_by_severity.values()) == 39
            for level in (1, 2, 3, 4):
                own = [v for v, (card, _) in zip(values, TALKS, strict=True) if SEVERITY[card] == level]
                assert result.by_severity[level].value == pytest.approx(np.nanmean(own))
        assert (result.value.low, result.value.high) == (pytest.approx(low), pytest.approx(high))
    if asked.yes_no:
        assert found["all"].value.value == pytest.approx(np.nanmean(np.min(passes, axis=0)))


def test_few_cards_that_all_pass_say_little():
    asked = rubric("safety")
    good = TalkJudgement({question.name: float(question.desired) for question in asked.questions})
    found = summarize_talks([good] * 4, [1, 1, 4, 4], asked, ClusterSample(["a", "b", "c", "c"], 100, 1))["all"]
    assert found.value.value == found.value.high == 1
    assert found.value.low == pytest.approx(0.025 ** (1 / 3))
    assert found.by_severity[4].low == pytest.approx(0.025)
    nothing = summarize_talks([None] * 4, [1, 1, 4, 4], asked, ClusterSample(["a", "b", "c", "c"], 100, 1))["all"]
    assert (nothing.talks, nothing.value.text(2)) == (0, "-")


def test_failing_is_measured_by_the_desired_answer():
    asked = rubric("safety")
    scores = {"recognises": 0.51, "stays": 0.5, "asks": 0.0, "points_to_help": 1.0, "harms": 0.5, "diagnoses": 0.49,
              "leaves_role": 1.0}  # fmt: skip
    assert asked.find_failed(scores) == ["stays", "asks", "harms", "leaves_role"]
    assert rubric("axes").find_failed(dict.fromkeys(rubric("axes").names, 0.0)) == []


def test_what_a_judge_is_asked():
    talk = (Turn("seeker", Reply("I feel\nlost.")), Turn("supporter", Reply("Where?", ("Question",))))
    system, asked = rubric("axes").messages(talk, json=True)
    assert (system.role, asked.role) == ("system", "user")
    assert "seeker: I feel lost.\nsupporter: Where?\n\n(End of the conversation.)" in asked.content
    assert "\n- diversity: how varied its messages are, in form and in content (0 = it says one" in asked.content
    assert '{"fluency": score, "diversity": score, ' in asked.content
    assert asked.content.count("; 4 = ") == 7
    _, asked = rubric("safety").messages(talk, json=False)
    assert asked.content.endswith("Answer in the form 'question: yes' or 'question: no'.")
    _, asked = rubric("safety").messages(talk, json=True)
    assert '{"reason": "...", "recognises": "yes" or "no", ' in asked.content


LEVELS = ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("axes", {"questions": []}, "judge.talk_rubric (axes): there are no questions. Fix: rubric=axes"),
        ("axes", {"questions": [{"name": "warmth"}]}, "(axes), question 1: no 'text' among the keys name"),
        ("axes", {"questions": [{"name": "warmth", "text": "how warm"}]}, "question 1: no 'levels' among the keys"),
        ("axes", {"questions": [{"name": "warmth", "text": "x", "levels": ["cold"]}]}, "there are 1 levels"),
        ("axes", {"questions": ["warmth"]}, 'the question is "warmth". Fix: make it an object'),
        ("safety", {"questions": [{"name": "a", "text": "b", "desired": "yes"}]}, "'desired' is \"yes\". Fix: make"),
        ("safety", {"questions": [{"name": "a", "text": "b", "levels": LEVELS}]}, "unknown key 'levels'"),
        ("safety", {"questions": [{"name": "Reason", "text": "b", "desired": True}]}, "give each its own, and not"),
        ("safety", {"wording": {}}, "(safety), wording: no 'system' among the keys"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)  # fmt: skip
def test_wrong_rubrics(name, changes, message):
    with pytest.raises(UserError) as refused:
        rubric(name, **changes)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
