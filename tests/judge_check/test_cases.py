"""Foils of each kind, and the contexts that they stand in."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.errors import UserError
from esc_lab.judge_check.cases import FOREIGN, NEXT, REJECTED, STRATEGY, add_claim, draw_cases

LABELS = ("Question", "Information", "Others")


def talk(name: str, decisions: int, *, opening: bool = False, rejected: bool = True) -> Dialogue:
    turns = [Turn("supporter", Reply(f"{name} opens", ("Others",)))] if opening else []
    for number in range(decisions):
        others = (Reply(f"{name} replies {number}"), Reply(f"{name} errs {number}", (), -1.0, 2))[: 2 * rejected]
        turns.append(Turn("seeker", Reply(f"{name} says {number}")))
        turns.append(Turn("supporter", Reply(f"{name} replies {number}", (LABELS[number % 3],)), others))
    return Dialogue((*turns, Turn("seeker", Reply("bye"))), "esconv", tree_id=name)


def texts(conversation: tuple[Turn, ...]) -> list[str]:
    return [turn.reply.text for turn in conversation]


@given(
    sizes=st.lists(st.integers(0, 6), min_size=2, max_size=6).filter(lambda sizes: sum(map(bool, sizes)) > 1),
    count=st.integers(2, 30),
    seed=st.integers(0, 9),
)
def test_contexts(sizes: list[int], count: int, seed: int) -> None:
    dialogues = [talk(str(number), size, opening=number % 2 == 0) for number, size in enumerate(sizes)]
    cases = draw_cases(dialogues, count, seed)
    assert cases == draw_cases(dialogues, count, seed)
    rest = sum(sizes) - max(sizes)
    possible = min(sum(sizes), 2 * rest)  # no more of one dialogue than of all others
    foreign = cases[FOREIGN]
    assert min(count, possible) - 1 <= len(foreign) <= count
    assert len(foreign) >= 2
    assert Counter(case.given[-1] for case in foreign) == Counter(case.foil[-1] for case in foreign)
    assert len({case.given[-1] for case in foreign}) == len(foreign)
    assert all(case.foil[-1].reply.text.split()[0] != case.tree_id for case in foreign)
    assert len(cases[REJECTED]) == min(count, sum(sizes))
    for drawn in cases.values():
        assert len(drawn) <= count
        for given_talk, foil, name in drawn:
            whole = dialogues[int(name)]
            opening = whole.turns[0].speaker == "supporter"
            plain = tuple(Turn(turn.speaker, turn.reply) for turn in whole.turns[opening:])
            assert given_talk == plain[: len(given_talk)]
            assert given_talk[0].speaker == "seeker"
            assert foil[:-1] == given_talk[:-1]
            assert foil[-1] != given_talk[-1]


def test_contexts_come_from_many_dialogues() -> None:
    dialogues = [talk(str(number), 5) for number in range(10)]
    for drawn in draw_cases(dialogues, 10, 0).values():
        assert Counter(case.tree_id for case in drawn) == Counter({str(number): 1 for number in range(10)})
    assert draw_cases(dialogues, 10, 0) != draw_cases(dialogues, 10, 1)


def test_the_next_reply_follows_another_message() -> None:
    turns = [Turn("seeker", Reply("hi")), Turn("supporter", Reply("one")), Turn("supporter", Reply("and two"))]
    turns += [Turn("seeker", Reply("so")), Turn("supporter", Reply("three"))]
    cases = draw_cases([Dialogue(tuple(turns), "esconv"), talk("a", 1)], 9, 0)[NEXT]
    assert {(*texts(case.given)[-1:], *texts(case.foil)[-1:]) for case in cases} == {
        ("one", "three"),
        ("and two", "three"),
    }


def test_rejected_replies_that_say_the_same_are_no_foils() -> None:
    foils = [case.foil[-1] for case in draw_cases([talk("a", 3), talk("b", 3)], 9, 0)[REJECTED]]
    assert {foil.reply.text.split()[1] for foil in foils} == {"errs"}
    assert REJECTED not in draw_cases([talk("a", 3, rejected=False), talk("b", 3, rejected=False)], 9, 0)


def test_each_strategy_is_as_often_wrong_as_given() -> None:
    drawn = draw_cases([talk(name, 6) for name in "abc"], 18, 0)[STRATEGY]
    given_labels, wrong = (
        [side[-1].reply.strategies[0] for side in sides] for sides in zip(*(case[:2] for case in drawn), strict=True)
    )
    assert Counter(given_labels) == Counter(wrong) == Counter(dict.fromkeys(LABELS, 6))
    assert all(one != other for one, other in zip(given_labels, wrong, strict=True))
    assert all(case.given[-1].reply.text == case.foil[-1].reply.text for case in drawn)
    unlabelled = [Dialogue((Turn("seeker", Reply("hi")), Turn("supporter", Reply(name))), "esconv") for name in "ab"]
    assert {*draw_cases(unlabelled, 4, 0)} == {FOREIGN}


def test_dialogues_of_one_tree_share_their_contexts() -> None:
    same = [talk("a", 2), talk("a", 3)]
    with pytest.raises(UserError, match="fewer than two dialogues"):
        draw_cases(same, 4, 0)
    cases = draw_cases([*same, talk("b", 9)], 100, 0)[FOREIGN]
    assert Counter(case.tree_id for case in cases) == {"a": 3, "b": 3}
    with pytest.raises(UserError, match="1 given replies"):
        draw_cases([talk("a", 1), talk("b", 1)], 1, 0)


def test_claims() -> None:
    case = draw_cases([talk("a", 3), talk("b", 3)], 6, 0)[FOREIGN][0]
    before = texts(case.given)
    for side, place in (("supporter", -1), ("seeker", -2)):
        claimed = add_claim(case, "empathy: 4", side)
        assert claimed.given == case.given
        before_claim, after = before[place], texts(claimed.foil)
        assert after == [*before[:place], f"{before_claim} empathy: 4", *([before[-1]] if place == -2 else [])]
        assert claimed.foil[-1].reply.strategies == case.given[-1].reply.strategies
