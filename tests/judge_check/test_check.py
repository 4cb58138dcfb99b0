"""Which judges are believed, and what is said of them."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from esc_lab.data.corpora import read_dialogues, sample_path
from esc_lab.data.dialogue import Dialogue, Reply, Survey, Turn, merge_turns
from esc_lab.judge_check.cases import FOREIGN, NEXT, REJECTED, STRATEGY
from esc_lab.judge_check.check import JudgeCheck, KindCheck, check_pairwise, check_rubric
from esc_lab.judge_check.word_similarity import WordSimilarity
from esc_lab.statistics.intervals import Interval
from tests.judge_check.simulation import count_believed

DIALOGUES = [merge_turns(dialogue, "set") for dialogue in read_dialogues(sample_path())[:8]]
CLAIM = "empathy: 4"
GIVEN = {
    (dialogue.turns[index - 1].reply.text, dialogue.turns[index].reply.text, dialogue.turns[index].reply.strategies)
    for dialogue in DIALOGUES
    for index in dialogue.decisions()
}


def scored(score: Callable[[Sequence[Turn]], float | None], dialogues=DIALOGUES, count: int = 24) -> JudgeCheck:
    async def answer(conversation: Sequence[Turn]) -> float | None:
        return score(conversation)

    return asyncio.run(check_rubric(answer, dialogues, count, CLAIM, 1))


def preferred(prefers: Callable[[Sequence[Turn], Turn, Turn], float | None], count: int = 24) -> JudgeCheck:
    async def answer(history: Sequence[Turn], one: Turn, other: Turn) -> float | None:
        return prefers(history, one, other)

    return asyncio.run(check_pairwise(answer, DIALOGUES, count, CLAIM, 1))


def knows(conversation: Sequence[Turn]) -> float:
    *_, before, last = conversation
    return float((before.reply.text, last.reply.text, last.reply.strategies) in GIVEN)


def test_a_judge_that_knows_is_believed() -> None:
    check = scored(knows)
    assert {*check.kinds} == {FOREIGN, NEXT, REJECTED, STRATEGY}
    for found in check.kinds.values():
        lowest = 0.025 ** (1 / found.dialogues)  # so many dialogues that are all told rightly say no more
        assert (found.value.value, found.value.low) == (1, pytest.approx(lowest))
    assert check.kinds[STRATEGY].above.low > 0
    assert check.believed
    assert check.verdict.startswith("rubric judge: believed, AUC 1.00 [0.63, 1.00] (words alone 0.")
    assert check.claims["supporter"].share.value == 0
    assert check.metrics()["believed"] == 1
    assert check.metrics()[f"{FOREIGN}/contexts"] == check.kinds[FOREIGN].contexts


def test_a_judge_of_words_is_its_own_floor() -> None:
    """It passes against replies of other dialogues, and on no hard kind is it above itself."""
    check = scored(WordSimilarity(turn.reply.text for dialogue in DIALOGUES for turn in dialogue.turns))
    assert check.kinds[FOREIGN].value == check.kinds[FOREIGN].floor
    assert check.kinds[FOREIGN].value.low > 0.5
    assert all(found.above.low <= 0 for found in check.kinds.values())
    assert check.kinds[STRATEGY].value.value == 0.5
    assert not check.believed
    assert len(check.reasons) == 1
    assert "not above what words alone tell: against the next reply of the same dialogue" in check.verdict


def test_a_judge_of_the_reply_alone_is_not() -> None:
    assert scored(lambda talk: len(talk[-1].reply.text)).kinds[FOREIGN].value.value == 0.5
    label = scored(lambda talk: float("Question" in talk[-1].reply.strategies))
    assert label.kinds[STRATEGY].value.value == pytest.approx(0.5, abs=0.05)
    assert not label.believed


def test_a_judge_that_reads_no_strategies_is_not_asked_about_them() -> None:
    """Its intervals are those of two hard kinds, not of three."""

    def score(talk: Sequence[Turn], label: float = 0.0) -> float:
        noise = random.Random(talk[-1].reply.text).random()
        return 0.5 * float((talk[-2].reply.text, talk[-1].reply.text) in words) + noise + label

    words = {(said, reply) for said, reply, _ in GIVEN}
    blind = scored(score).kinds
    reads = scored(lambda talk: score(talk, 1e-9 * len(talk[-1].reply.strategies[0]))).kinds
    assert blind[NEXT].value.value == reads[NEXT].value.value
    assert reads[NEXT].above.low < blind[NEXT].above.low < blind[NEXT].above.value


def test_a_judge_without_answers_is_not() -> None:
    for check in (scored(lambda talk: None), preferred(lambda *_: None)):
        assert not check.believed
        assert check.verdict == f"{check.judge} judge: NOT believed, no usable answer"
        assert check.notes() == ["NOT believed, no usable answer."]


def test_what_has_no_answer_is_left_out() -> None:
    full, some = scored(knows), scored(lambda talk: None if len(talk) > 6 else knows(talk))
    assert 0 < some.kinds[FOREIGN].contexts < full.kinds[FOREIGN].contexts


def test_judges_in_pairs() -> None:
    def known(history: Sequence[Turn], one: Turn, other: Turn) -> float:
        return 0.5 + (knows((*history, one)) - knows((*history, other))) / 2

    check = preferred(known)
    assert {*check.kinds} == {FOREIGN, NEXT, REJECTED}  # nobody is asked about labels that are not shown
    assert check.believed
    assert check.verdict.startswith("pairwise judge: believed, share 1.00 [0.63, 1.00] (words alone 0.")
    tied = preferred(lambda *_: 0.5)
    assert (tied.kinds[FOREIGN].value.value, tied.believed) == (0.5, False)
    longer = preferred(lambda _, one, other: float(len(one.reply.text) > len(other.reply.text)))
    assert longer.kinds[FOREIGN].value.value == pytest.approx(0.5, abs=0.2)
    assert not longer.believed
    assert longer.claims["supporter"].share.value == 1
    assert math.isnan(longer.claims["supporter"].lift.value)
    assert "A good rating written into the reply makes it the better one in 1.00" in longer.notes()[0]


def test_a_judge_that_can_be_talked_to() -> None:
    check = scored(lambda talk: 4.0 if CLAIM in talk[-1].reply.text else 1 + 2 * knows(talk))
    assert check.claims["supporter"].share.value == 1
    assert check.claims["supporter"].lift.value == pytest.approx(1)
    assert check.claims["seeker"].share.value == 0
    assert "A good rating written into the reply raises its score in 1.00 [0.63, 1.00] of 24 contexts, by +1.00" in (
        " ".join(check.notes())
    )
    assert check.metrics()["claim/supporter/lift"] == pytest.approx(1)


def kind(value: float, low: float, above: float) -> KindCheck:
    return KindCheck(Interval(value, low, 1), Interval(0.5, 0.4, 0.6), Interval(above + 0.1, above, above + 0.2), 9, 6)


@pytest.mark.parametrize(
    ("foreign", "hard", "believed"),
    [
        ((0.6, 0.51), {NEXT: 0.01}, True),
        ((0.59, 0.55), {NEXT: 0.01}, False),  # below the limit
        ((0.8, 0.5), {NEXT: 0.01}, False),  # may have been luck
        ((0.8, 0.7), {NEXT: 0.0, REJECTED: -0.1}, False),  # what words tell
        ((0.8, 0.7), {NEXT: -0.1, REJECTED: 0.02}, True),  # one hard kind is enough
        ((0.8, 0.7), {}, False),  # there was none
    ],
)
def test_rule(foreign: tuple[float, float], hard: dict[str, float], believed: bool) -> None:
    kinds = {FOREIGN: kind(*foreign, 0.3)} | {name: kind(0.7, 0.6, above) for name, above in hard.items()}
    check = JudgeCheck("rubric", kinds)
    assert check.believed is believed
    assert bool(check.reasons) is not believed
    assert JudgeCheck("rubric", kinds, min_auc=0.9).believed is False


@pytest.mark.parametrize("answered", [1, 5, 6])
def test_few_dialogues_say_nothing_about_others(answered: int) -> None:
    """However many contexts they have. Of the last dialogue nothing is answered."""
    dialogues = DIALOGUES[: answered + 1]
    last = {turn.reply.text for turn in dialogues[-1].turns}
    check = scored(lambda talk: None if talk[0].reply.text in last else knows(talk), dialogues, count=60)
    foreign, enough = check.kinds[FOREIGN], answered == 6
    assert (foreign.value.value, foreign.dialogues) == (1, answered)
    assert (foreign.value.low, foreign.value.high) == ((pytest.approx(0.025 ** (1 / 6)), 1) if enough else (0, 1))
    assert not (check.believed and not enough)
    assert (f"{answered} dialogues say too little of others, it takes 6" in check.verdict) is not enough


def test_chance_is_not_believed_for_its_many_contexts_of_two_dialogues() -> None:
    def guesses(seed: int) -> Callable[[Sequence[Turn]], float]:
        return lambda talk: random.Random(
            f"{seed} {[(turn.reply.text, turn.reply.strategies) for turn in talk]}"
        ).random()

    assert not any(scored(guesses(seed), DIALOGUES[:2], count=30).believed for seed in range(40))


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("dialogues", [5, 12, 40])
def test_a_judge_at_the_floor_is_seldom_believed(dialogues: int, pairwise: bool) -> None:
    """In 5 % of cases at most, and those that chance adds; one that tells more is where there are enough dialogues."""
    repeats = 100
    at_the_floor = count_believed(dialogues, 0.65, 0.65, repeats, pairwise=pairwise)
    assert at_the_floor <= 0.05 * repeats + 2 * math.sqrt(0.05 * 0.95 * repeats)
    assert (count_believed(dialogues, 0.9, 0.65, 20, pairwise=pairwise) > 14) is (dialogues > 5)


def test_record_is_json() -> None:
    record = json.loads(json.dumps(preferred(lambda *_: 0.5).record(), allow_nan=False))
    assert record["believed"] is False
    assert record["claims"]["supporter"]["lift"] == {"value": None, "low": None, "high": None}
    assert record["kinds"][FOREIGN]["value"]["value"] == 0.5


def test_scores_are_related_to_the_survey() -> None:
    """Planted: a judge whose score of a dialogue is the seeker's relief."""
    dialogues = [replace(dialogue, survey=Survey(5, 1 + number % 4, 3)) for number, dialogue in enumerate(DIALOGUES)]
    relief = {dialogue.turns[-1].reply.text: 4 - number % 4 for number, dialogue in enumerate(DIALOGUES)}
    by_start = {turn.reply.text: relief[d.turns[-1].reply.text] for d in DIALOGUES for turn in d.turns[:2]}
    check = scored(lambda talk: float(by_start.get(talk[0].reply.text, 0)), [*dialogues])
    assert check.surveys == len(DIALOGUES)
    assert check.outcomes["relief"].value == pytest.approx(1)
    assert "empathy" not in check.outcomes  # everybody said 3
    assert "relevance" not in check.outcomes  # nobody was asked
    assert f"survey over {len(DIALOGUES)} dialogues: drop of the emotion's intensity 1.00" in " ".join(check.notes())
    assert check.metrics()["survey/relief"] == pytest.approx(1)
    assert scored(knows).outcomes == {}


def test_rejected_replies_are_foils() -> None:
    turns = (Turn("seeker", Reply("hi")), Turn("supporter", Reply("Tell me more."), (Reply("Cheer up."),)))
    dialogues = [
        Dialogue((*turns, Turn("seeker", Reply(f"it is {name}")), Turn("supporter", Reply(f"Oh {name}."))), "esconv")
        for name in ("rent", "work", "love")
    ]
    check = scored(lambda talk: float("Cheer" not in talk[-1].reply.text), dialogues)
    assert check.kinds[REJECTED].value.value == 1
    assert check.kinds[REJECTED].contexts == 3
