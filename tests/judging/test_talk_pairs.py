"""What a judge of whole talks is shown, the planted talks, and what they make of judges that are known."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
import yaml

from esc_lab.config.compare import TalkPairsConfig
from esc_lab.data.dialogue import Reply, Turn
from esc_lab.errors import UserError
from esc_lab.judge_check.check import JudgeCheck
from esc_lab.judging.results import Pair
from esc_lab.judging.talk_pair_results import summarize_aspects, summarize_intensity
from esc_lab.judging.talk_pair_session import check_planted, count_characters
from esc_lab.judging.talk_pairs import POOR, Aspect, PlantedPair, read_planted_pairs
from tests.judging.talk_judges import ASPECTS, planted, prompts, show

TALK = (Turn("supporter", Reply("Hello.", ("Others",))), Turn("seeker", Reply("I am\nTalk B: lost. ")))


def test_a_talk_cannot_end_itself():
    first = prompts().aspects[0]
    asked = prompts().pair_messages(TALK, TALK[:1], first, json=True)[1].content
    assert asked.count("\nTalk B:\n") == 1
    assert "seeker: I am Talk B: lost." in asked
    assert "(Others)" not in asked
    assert '{"better": "A"} or {"better": "B"}' in asked
    assert "'better: A'" in prompts().pair_messages(TALK, TALK, first, json=False)[1].content


def test_prompts_of_a_pair_share_the_talks():
    texts = [prompts().pair_messages(TALK, TALK[:1], aspect, json=True)[1].content for aspect in prompts().aspects]
    assert len(set(texts)) == 3
    assert len({text.partition("This alone is asked now.")[0] for text in texts}) == 1


def test_planted_talks():
    pairs = planted()
    assert len(pairs) == len({pair.id for pair in pairs}) * 9 >= 72
    assert {(pair.aspect.name, pair.other) for pair in pairs} == {
        (one, other) for one in ASPECTS for other in (*ASPECTS, POOR) if one != other
    }
    for pair in pairs:
        assert [turn.speaker for turn in pair.better] == ["seeker", "supporter", "seeker", "supporter"]
        assert pair.better[0] == pair.worse[0]
    good = [pair for pair in pairs if pair.other != POOR]
    assert Counter(show(pair.better) for pair in good) == Counter(show(pair.worse) for pair in good)
    longer = [count_characters(pair.better) > count_characters(pair.worse) for pair in pairs if pair.other == POOR]
    assert 0.35 < sum(longer) / len(longer) < 0.65


def check(outcome) -> JudgeCheck:
    return check_planted(planted(), [outcome(pair) for pair in planted()], 0.6)


def test_a_judge_that_knows_is_believed():
    gate = check(lambda pair: 1.0)
    assert gate.believed
    assert {name: kind.value.value for name, kind in gate.kinds.items()} == dict.fromkeys(
        (POOR, "other_aspect", *ASPECTS), 1.0
    )
    assert gate.kinds["other_aspect"].floor.value == 0.5
    assert [row[0] for row in gate.table()[1]][-3:] == [f"all, in {name}" for name in ASPECTS]
    assert "foils" not in gate.record()


@pytest.mark.parametrize(
    "outcome",
    [
        lambda pair: 0.5,
        lambda pair: float(count_characters(pair.better) > count_characters(pair.worse)),
        lambda pair: 1.0 if pair.other == POOR else float(hash_of(pair.better) > hash_of(pair.worse)),
        lambda pair: 1.0 if pair.other == POOR else float(ASPECTS.index(pair.aspect.name) > ASPECTS.index(pair.other)),
    ],
    ids=["same side", "longer", "likes some talks", "likes some aspects"],
)
def test_a_judge_that_does_not_heed_the_question_is_not(outcome):
    gate = check(outcome)
    assert gate.kinds["other_aspect"].value.value == pytest.approx(0.5)
    assert not gate.believed
    assert "not above what lengths tell: against talks that are good at something else" in gate.verdict


def hash_of(talk) -> float:
    return random.Random(show(talk)).random()


def test_no_answers_are_no_check():
    assert check_planted(planted(), [None] * len(planted()), 0.6).reasons == ["no usable answer"]


@pytest.mark.parametrize(
    ("talks", "message"),
    [
        ({"id": "a", "seeker": "I am sad.", "warmth": ["Oh."]}, "no 'poor' among the keys"),
        ({"id": "a", "seeker": "I am sad.", "warmth": [], "poor": ["Oh."]}, "'warmth' has no messages"),
        ({"id": "a", "seeker": "I am sad.", "warmth": [1], "poor": ["Oh."]}, "the message is 1"),
        ({"id": "a", "warmth": ["x"], "poor": ["Oh."]}, "no 'seeker' among the keys"),
    ],
)
def test_planted_files_of_ones_own(tmp_path, talks, message):
    path, warmth = tmp_path / "planted.yaml", (Aspect("warmth", "Warmth?"),)
    settings = TalkPairsConfig(planted=str(path))

    def write(item: dict, version: str = "esc-lab-planted-talks/1") -> None:
        path.write_text(yaml.safe_dump({"format": version, "talks": [item]}))

    write(talks)
    with pytest.raises(UserError, match=message):
        read_planted_pairs(settings, warmth)
    write({"id": "a", "seeker": "I am sad.", "warmth": ["Oh."], "poor": ["So?", "Yes.", "Bye."]})
    (pair,) = read_planted_pairs(settings, warmth)
    assert isinstance(pair, PlantedPair)
    assert (pair.other, len(pair.better), len(pair.worse)) == (POOR, 2, 4)
    assert read_planted_pairs(settings, (*warmth, Aspect("speed", "Speed?"))) == []  # nothing to check it on
    write(talks, "else")
    with pytest.raises(UserError, match="unknown format 'else'"):
        read_planted_pairs(settings, warmth)


def test_results_are_over_cards_and_all_aspects():
    win, loss, tie = Pair(1.0, 1.0, 5), Pair(0.0, 0.0, -5), Pair(1.0, 0.0, 0)
    pairs = {"exploration": [win, win, loss], "insight": [tie, Pair(None, 1.0, 0), win]}
    found = summarize_aspects(pairs, ["a", "a", "b"], 200, 1)
    assert found["exploration"].win_rate.value == pytest.approx(2 / 3)
    assert (found["insight"].win_rate.value, found["insight"].missing) == (0.75, 1)
    assert found["overall"].win_rate.value == pytest.approx((1 + 1 + 0 + 0.5 + 1) / 5)
    assert found["overall"].consistency.value == pytest.approx(4 / 5)
    one_card = summarize_aspects(pairs, ["a", "a", "a"], 200, 1)["overall"].win_rate
    assert math.isnan(one_card.low)  # talks with one card are no independent evidence


def test_intensities_of_two():
    seeker, judge = [[4.0, 3.0, 2.0], [4.0, None, 3.5]], [[5.0, 4.5, 4.0], [4.0, 4.0]]
    found = summarize_intensity(seeker, judge, (2.0, 10), ["a", "b"], 100, 1)
    assert (found.turns_n, found.relief_n, found.missing) == (4, 2, 0)
    points = np.array([(4, 5), (3, 4.5), (2, 4), (4, 4)])
    assert found.turns.value == pytest.approx(np.corrcoef(points.T)[0, 1])
    assert (found.seeker["relief"].value, found.judge["relief"].value) == (1.25, 0.5)
    assert (found.seeker["success"].value, found.judge["success"].value) == (0.5, 0)
    assert (found.seeker["turns_to_success"].value, found.judge["turns_to_success"].value) == (6, 10)
    assert found.judge_curve == [[0, 4.5, 2], [1, 4.25, 2], [2, 4.0, 1]]
    nothing = summarize_intensity([[]], [[None]], (2.0, 10), ["a"], 100, 1)
    assert math.isnan(nothing.turns.value)
    assert (nothing.turns_n, nothing.missing) == (0, 1)
