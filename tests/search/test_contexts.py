"""Where dialogues are cut and which strategies are prompted there, against what was asked for."""

from __future__ import annotations

from collections import Counter

import pytest

from esc_lab.config.extend import ExtendConfig
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.search.contexts import draw_contexts
from esc_lab.search.given_replies import draw_given, find_sentences, read_given

SRA = load_inventory("extes_sra")
NAMES = SRA.names


def talk(number: int, turns: int, first: str = "seeker") -> Dialogue:
    sides = ("seeker", "supporter") if first == "seeker" else ("supporter", "seeker")
    said = (Turn(sides[turn % 2], Reply(f"Talk {number}, turn {turn}.")) for turn in range(turns))
    return Dialogue(tuple(said), "extes_sra")


def test_cuts_are_after_the_seeker_within_bounds_and_all_places_alike():
    settings = ExtendConfig(min_turns=5, max_turns=12)
    places = Counter(context.turns for n in range(700) for context in draw_contexts(talk(n, 20), settings, NAMES))
    assert places.total() == 700
    assert set(places) == {5, 7, 9, 11}
    assert all(130 < count < 220 for count in places.values())  # 175 expected, sd 11.5
    opened = [draw_contexts(talk(n, 20, "supporter"), settings, NAMES)[0].turns for n in range(60)]
    assert set(opened) == {6, 8, 10, 12}


def test_short_dialogues_have_fewer_contexts_or_none():
    settings = ExtendConfig(cuts=3)
    counts = [len(draw_contexts(talk(0, turns), settings, NAMES)) for turns in (4, 5, 6, 7, 9, 11)]
    assert counts == [0, 1, 1, 2, 3, 3]
    assert draw_contexts(talk(0, 4, "supporter"), settings, NAMES) == []


def test_more_cuts_and_strategies_add_to_fewer():
    few, more = ExtendConfig(cuts=2, number=3), ExtendConfig(cuts=4, number=6)
    for number in range(10):
        small, large = ({c.turns: set(c.strategies) for c in draw_contexts(talk(number, 30), settings, NAMES)}
                        for settings in (few, more))  # fmt: skip
        assert len(large) == 4
        assert all(own <= large[turns] for turns, own in small.items())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_each_strategy_has_its_share(share):
    settings = ExtendConfig(cuts=3, share=share, unconditional=0.4)
    drawn = [context.strategies for n in range(300) for context in draw_contexts(talk(n, 40), settings, NAMES)]
    named = [[name for name in own if name] for own in drawn]
    assert all(own == sorted(own, key=NAMES.index) and own for own in named)
    counts = Counter(name for own in named for name in own)
    expected = max(share, 1 / len(NAMES))  # one at least
    assert all(abs(counts[name] / 900 - expected) < 0.07 for name in NAMES)
    assert abs(sum(None in own for own in drawn) / 900 - 0.4) < 0.07


def test_a_number_of_strategies_is_drawn_without_repetition():
    settings = ExtendConfig(number=4, unconditional=0.0)
    drawn = [draw_contexts(talk(n, 20), settings, NAMES)[0].strategies for n in range(300)]
    assert all(len(set(own)) == len(own) == 4 for own in drawn)
    counts = Counter(name for own in drawn for name in own)
    assert all(50 < counts[name] < 115 for name in NAMES)  # 80 expected, sd 7.7
    assert draw_contexts(talk(0, 20), ExtendConfig(number=0, unconditional=1.0), NAMES)[0].strategies == (None,)


HOPE, OPTIONS = "I am sure things will get better.", "Have you tried to write to him?"


def supported(*replies: str) -> Dialogue:
    turns = [turn for reply in replies for turn in (Turn("seeker", Reply("Hm.")), Turn("supporter", Reply(reply)))]
    return Dialogue(tuple(turns), "extes_sra")


def test_sentences_have_cues_of_one_strategy():
    found = find_sentences(f"{HOPE} The bus was late. {OPTIONS}\nHave you tried yoga before? Bye!", SRA)
    assert found == {"Offer Hope": HOPE, "Suggest Options": OPTIONS}  # yoga is of Stress Management, too
    curly = "I\u2019m sorry to hear that."
    assert find_sentences(curly, SRA) == {"Emotional Validation": curly}
    assert find_sentences(f"(Offer Hope) {HOPE}", SRA) == {"Offer Hope": HOPE}
    assert find_sentences("Thank you!", SRA) == {}  # too short to learn from
    assert find_sentences(HOPE, load_inventory("esconv")) == {}  # it has no cues


def test_every_example_of_the_inventory_is_found_by_its_cues_or_by_none():
    """Examples were not written for the cues: one that cues of another strategy find shows a cue that is too wide."""
    wrong = {
        exchange.supporter: [*found]
        for exchange in SRA.examples
        if (found := find_sentences(exchange.supporter, SRA)) and exchange.strategy not in found
    }
    assert len(wrong) <= 3, wrong
    found = sum(exchange.strategy in find_sentences(exchange.supporter, SRA) for exchange in SRA.examples)
    assert found >= 18


def test_given_replies_come_once_a_strategy_and_dialogue_within_bounds():
    settings = ExtendConfig(min_turns=3, max_turns=11, unconditional=0.0)
    talk = supported(HOPE, HOPE, f"{HOPE} {OPTIONS}", "Go on, please.", HOPE, OPTIONS, OPTIONS)
    places = {3: {"Offer Hope"}, 5: {"Offer Hope", "Suggest Options"}, 9: {"Offer Hope"}, 11: {"Suggest Options"}}
    once = draw_given(talk, settings, SRA)
    drawn = [(context.turns, name) for context in once for name in context.strategies]
    assert sorted(name for _, name in drawn) == ["Offer Hope", "Suggest Options"]
    assert all(name in places[turns] for turns, name in drawn)
    every = draw_given(talk, ExtendConfig(cuts=9, min_turns=3, max_turns=11, unconditional=1.0), SRA)
    assert {context.turns: set(context.strategies) - {None} for context in every} == places
    assert all(context.strategies[-1] is None for context in every)
    both = next(context for context in every if context.turns == 5)
    assert [read_given(both, name, SRA) for name in both.strategies] == [HOPE, OPTIONS, f"{HOPE} {OPTIONS}"]
    assert {turns for turns, _ in drawn} <= {context.turns for context in every}


def test_without_cues_the_strategies_are_the_corpus_own():
    turns = [Turn("seeker", Reply("Hm."))]
    for strategies in (("Question",), (), ("Question", "Information"), ("Information",)):
        turns += [Turn("supporter", Reply("So it goes.", strategies)), Turn("seeker", Reply("Hm."))]
    talk, esconv = Dialogue(tuple(turns), "esconv"), load_inventory("esconv")
    found = draw_given(talk, ExtendConfig(min_turns=1, unconditional=0.0), esconv)
    assert [(context.turns, context.strategies) for context in found] == [(1, ("Question",)), (7, ("Information",))]
    assert read_given(found[0], "Question", esconv) == "So it goes."
