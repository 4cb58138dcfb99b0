"""Planted talks: what ships, and which judges of whole talks they let through."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from esc_lab.config.files import read_option
from esc_lab.errors import UserError
from esc_lab.judge_check.measures import MIN_DIALOGUES
from esc_lab.judge_check.planted import PlantedPair, TalkCheck, check_talks, read_planted
from esc_lab.judge_check.planted_files import find_planted

PLANTED = {name: read_planted(find_planted(name)) for name in ("axes", "safety")}
NAMES = {name: [question["name"] for question in read_option("rubric", name)["questions"]] for name in PLANTED}


def check(
    rubric: str, worth: Callable[[PlantedPair, bool, str], float | None], *, yes_no: bool | None = None
) -> TalkCheck:
    """The check of a judge that knows the worth of a pair's good or bad talk by a question."""
    pairs, names = PLANTED[rubric], NAMES[rubric]
    told = {talk: (pair, talk == pair.good) for pair in pairs for talk in (pair.good, pair.bad)}

    async def score(talk):
        values = {name: worth(*told[talk], name) for name in names}
        return None if None in values.values() else values

    return asyncio.run(check_talks(score, pairs, names, yes_no=rubric == "safety" if yes_no is None else yes_no))


def said(pair: PlantedPair, good: bool) -> str:
    return " ".join(turn.reply.text for turn in (pair.good if good else pair.bad) if turn.speaker == "supporter")


@pytest.mark.parametrize("rubric", PLANTED)
def test_what_ships_covers_every_question(rubric):
    pairs = PLANTED[rubric]
    assert len({pair.name for pair in pairs}) == len(pairs)
    assert len({turn for pair in pairs for turn in (pair.good, pair.bad)}) == 2 * len(pairs)
    for name in NAMES[rubric]:
        assert sum(name in pair.worse for pair in pairs) >= MIN_DIALOGUES
    for pair in pairs:
        assert {*pair.worse, *pair.passes} <= {*NAMES[rubric]}
        assert not {*pair.worse} & {*pair.passes}
        assert pair.worse


def test_planted_help_is_local_emergency_services_alone():
    for pair in PLANTED["safety"]:
        for text in (said(pair, True), said(pair, False)):
            assert not any(character.isdigit() for character in text)
            assert text.lower().count("emergency") == text.lower().count("local emergency services")


@pytest.mark.parametrize("rubric", PLANTED)
def test_a_judge_that_knows_is_believed(rubric):
    found = check(rubric, lambda pair, good, name: float(good or name not in pair.worse))
    assert found.believed
    assert all(asked.value.value == 1 > asked.value.low > 0.5 for asked in found.questions.values())
    assert found.verdict == "judge of talks: believed"


@pytest.mark.parametrize("rubric", PLANTED)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_judge_of_length_is_not_believed_in_any_question(rubric, sign):
    found = check(rubric, lambda pair, good, name: sign * len(said(pair, good)), yes_no=False)
    assert found.not_believed == NAMES[rubric]


@pytest.mark.parametrize("rubric", PLANTED)
def test_a_coin_is_seldom_believed(rubric):
    believed = 0
    for seed in range(20):
        draw = random.Random(seed)
        found = check(rubric, lambda pair, good, name, draw=draw: draw.random())
        assert not found.believed
        believed += len(NAMES[rubric]) - len(found.not_believed)
    assert believed <= 0.1 * 20 * len(NAMES[rubric])


def test_a_judge_that_only_knows_good_from_bad_is_not_believed():
    """The halo: every question is answered alike."""
    found = check("safety", lambda pair, good, name: float(good))
    assert found.not_believed == NAMES["safety"]
    assert all(asked.value.value == 1 and asked.apart.value == 0.5 for asked in found.questions.values())
    assert check("axes", lambda pair, good, name: float(good)).not_believed == NAMES["axes"][:-1]  # but overall


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("rubric", PLANTED)
def test_a_judge_that_likes_some_bad_talks_more_than_others_is_not_believed(rubric, noise):
    """A halo of degrees tells some talks that are bad otherwise from bad ones, and all questions tell the same ones."""
    for seed in range(10):
        draw = random.Random(seed)
        kinds = {pair.worse: draw.random() for pair in PLANTED[rubric]}  # what it likes of bad talks

        def like(pair, good, name, draw=draw, kinds=kinds):
            return (1.0 if good else 0.8 * kinds[pair.worse]) + draw.gauss(0, noise)

        found = check(rubric, like, yes_no=False)
        believed = {*NAMES[rubric]} - {*found.not_believed, "overall"}
        assert len(believed) <= (0 if noise == 0 else 1)


@pytest.mark.parametrize("rubric", PLANTED)
def test_a_halo_in_a_single_question(rubric):
    """It knows all others, and answers this one by what it thinks of the talk in all."""
    for halo in [name for name in NAMES[rubric] if name != "overall"]:

        def worth(pair, good, name, halo=halo):
            others = {*NAMES[rubric]} - {halo}
            passed = 1.0 if good else 1 - len(others & {*pair.worse}) / len(others)
            return passed if name == halo else float(good or name not in pair.worse)

        assert halo in check(rubric, worth).not_believed


def test_a_judge_that_gets_less_right_than_is_asked():
    """By chance it is not, and yet below the limit."""
    pairs, names = PLANTED["axes"] * 40, NAMES["axes"][-1:]
    told = [(talk, good) for pair in pairs for talk, good in ((pair.good, True), (pair.bad, False))]
    draw = random.Random(1)
    worth = iter([{names[0]: draw.gauss(0.25 * good, 1)} for _, good in told])

    async def score(talk):
        return next(worth)

    found = asyncio.run(check_talks(score, pairs, names, yes_no=False))
    value = found.questions[names[0]].value
    assert 0.5 < value.low < value.value < 0.6
    assert not found.believed
    assert "it takes 0.6 and intervals above 0.5" in found.verdict
    worth = iter([{names[0]: draw.gauss(0.25 * good, 1)} for _, good in told])
    assert asyncio.run(check_talks(score, pairs, names, yes_no=False, min_auc=0.5)).believed


def test_a_judge_that_passes_everything_is_not_believed():
    """It ranks rightly, and yet says yes to all: the share of talks told rightly is one half."""
    found = check("safety", lambda pair, good, name: 0.6 + 0.4 * (good or name not in pair.worse))
    assert found.not_believed == NAMES["safety"]
    assert all(asked.value.value == 0.5 for asked in found.questions.values())


@pytest.mark.parametrize("rubric", PLANTED)
def test_values_and_intervals_against_brute_force(rubric):
    """AUC or accuracy from all pairs of talks, and Student's interval of the jackknife's pseudo-values."""
    draw, yes_no = random.Random(5), rubric == "safety"
    drawn: dict = {}

    def worth(pair, good, name):
        level = 0.7 if good or name not in pair.worse else 0.35
        return drawn.setdefault((pair.name, good, name), min(1.0, max(0.0, draw.gauss(level, 0.25))))

    found = check(rubric, worth)
    for name in NAMES[rubric]:
        asked = [pair.name for pair in PLANTED[rubric] if name in pair.worse]
        good, bad = ([drawn[pair, side, name] for pair in asked] for side in (True, False))

        def measure(kept, good=good, bad=bad):
            if yes_no:
                return np.mean([[good[i] > 0.5, bad[i] <= 0.5] for i in kept])
            return np.mean([(good[i] > bad[j]) + 0.5 * (good[i] == bad[j]) for i in kept for j in kept])

        n = len(asked)
        whole = measure(range(n))
        pseudo = np.array([n * whole - (n - 1) * measure([k for k in range(n) if k != i]) for i in range(n)])
        reach = student.ppf(0.975, n - 1) * pseudo.std(ddof=1) / math.sqrt(n)
        value = found.questions[name].value
        assert value.value == pytest.approx(whole)
        assert value.low == pytest.approx(max(0.0, min(pseudo.mean() - reach, 0.025 ** (1 / n))), abs=0.02)
        assert found.questions[name].pairs == n


def test_talks_without_an_answer_and_questions_with_few():
    def worth(pair: PlantedPair, good: bool, name: str) -> float | None:
        return None if pair.name in lost else float(good or name not in pair.worse)

    by_stays = {pair.name for pair in PLANTED["safety"] if "stays" in pair.worse}
    lost = {"sent_away", "the_letters"}
    assert check("safety", worth).questions["stays"].pairs == len(by_stays) - 2
    lost = by_stays - {"put_online", "reasons"}
    found = check("safety", worth)
    assert "stays" in found.not_believed
    assert "stays 1.00 [0.00, 1.00] of 2 pairs, it takes 6" in found.verdict
    lost = {pair.name for pair in PLANTED["safety"]}
    none = check("safety", worth)
    assert not none.believed
    assert none.record()["questions"]["asks"]["value"]["value"] is None
    assert "asks/low" not in none.metrics()


GOOD = """
format: esc-lab-planted/1
pairs:
  - {name: one, seeker: [a, b], good: [c, d], bad: [e, f], worse: [asks]}
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("/1", "/2"), "unknown format 'esc-lab-planted/2'. Fix: write format: esc-lab-planted/1"),
        (("bad: [e, f], ", ""), "pair 1 (one): no 'bad' among the keys"),
        (("[c, d]", "[c]"), "2 messages of the seeker, 1 good replies and 2 bad ones"),
        (("[a, b]", "[1, b]"), "pair 1 (one), seeker 1: the seeker is 1. Fix: make it a text"),
        (("worse", "wors"), "unknown key 'wors'; did you mean 'worse'?"),
        (("pairs:", "pairs: ["), "not YAML"),
        ((GOOD, "- 3"), "the file is [3]. Fix: make it an object"),
    ],
    ids=lambda value: value[0][:20] if isinstance(value, tuple) else "",
)
def test_broken_files(tmp_path, change, message):
    path = tmp_path / "planted.yaml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(UserError) as refused:
        read_planted(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_of_the_users_own(tmp_path):
    path = tmp_path / "planted.yaml"
    path.write_text(GOOD)
    (pair,) = read_planted(find_planted(str(path)))
    assert [turn.reply.text for turn in pair.bad] == ["a", "e", "b", "f"]
    with pytest.raises(UserError, match=r"nowhere: cannot be read: .* Fix: check planted of the rubric"):
        read_planted(find_planted("nowhere"))
    assert find_planted("safety").parent == Path(__file__).parents[2] / "esc_lab" / "judge_check"
