"""What a reward model learns from: which foils are drawn, and how dialogues weigh."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from esc_lab.config.reward import RewardConfig
from esc_lab.data.dialogue import Dialogue, Reply, Survey, Turn
from esc_lab.errors import UserError
from esc_lab.scorers.comparisons import NEAR, ComparisonPool, hold_out_rated, outcome_weights


def talk(name: str, turns: int = 6, rejected: tuple[Reply, ...] = (), **options) -> Dialogue:
    """Seeker and supporter in turn; the replies say whose they are and when."""
    said = []
    for number in range(turns):
        said += [Turn("seeker", Reply(f"{name} asks {number}")),
                 Turn("supporter", Reply(f"{name} says {number}", ("Question",)), rejected)]  # fmt: skip
    return Dialogue(tuple(said), "esconv", **options)


def pool(*dialogues: Dialogue, **settings) -> ComparisonPool:
    return ComparisonPool(dialogues, RewardConfig(**settings))


def test_given_replies_are_the_better_ones_and_foils_are_of_their_kind():
    found = pool(talk("a", rejected=(Reply("no"), Reply("never"))), talk("b"), foils=3)
    for drawn in [found.draw(0, seed) for seed in range(30)]:
        for each in drawn:
            number = each.turn // 2
            assert each.better.text == f"a says {number}"
            if each.kind == "same_dialogue":
                assert each.worse.text in {f"a says {later}" for later in range(number + 1, number + 1 + NEAR)}
            elif each.kind == "other_dialogue":
                assert each.worse.text.startswith("b says")
            else:
                assert (each.kind, each.worse.text in ("no", "never")) == ("rejected", True)
            assert not each.tie
        assert len({(each.turn, each.worse) for each in drawn if each.kind != "other_dialogue"}) == sum(
            each.kind != "other_dialogue" for each in drawn
        )
        assert Counter(each.turn for each in drawn) == dict.fromkeys(range(1, 12, 2), 3)


def test_shares_are_those_of_the_configuration():
    found = pool(talk("a", 30), talk("b", 30), foils=1, kinds={"same_dialogue": 3.0, "other_dialogue": 1.0})
    kinds = Counter(each.kind for seed in range(60) for each in found.draw(0, seed) if each.turn < 50)
    assert kinds["same_dialogue"] / kinds.total() == pytest.approx(0.75, abs=0.04)
    assert pool(talk("a"), talk("b"), kinds={"same_dialogue": 0.0, "other_dialogue": 1.0}).counts() == {
        "other_dialogue": 12
    }


def test_strategies_are_compared_alone_with_those_of_other_turns():
    """Where contexts tell nothing, a strategy that is given four times as often is not preferred for it."""
    said = [name for _ in range(40) for name in ["Question"] * 4 + ["Others"]]
    turns = [
        turn
        for number, name in enumerate(said)
        for turn in (Turn("seeker", Reply(f"{number}?")), Turn("supporter", Reply(f"{number}!", (name, "Information"))))
    ]
    found = pool(Dialogue(tuple(turns), "esconv"), kinds={"strategy": 1.0}, foils=20)
    assert found.counts() == {"strategy": 200}
    drawn = [each for seed in range(3) for each in found.draw(0, seed)]
    assert all(not each.better.text and not each.worse.text for each in drawn)
    pairs = Counter((*each.better.strategies, *each.worse.strategies) for each in drawn)
    assert {*pairs} == {("Question", "Others"), ("Others", "Question")}
    assert pairs["Question", "Others"] / pairs.total() == pytest.approx(0.5, abs=0.03)
    assert pairs.total() == pytest.approx(3 * 20 * 200 * 2 * 0.8 * 0.2, rel=0.05)
    assert pool(talk("a"), talk("b"), kinds={"strategy": 1.0}).counts() == {"strategy": 0}  # one strategy only


def test_draws_follow_from_the_seed():
    found = pool(talk("a"), talk("b"), talk("c"))
    assert found.draw(0, 1) == found.draw(0, 1) != found.draw(0, 2)


def test_dialogues_of_a_tree_are_not_foreign_to_each_other():
    found = pool(*(talk(name, tree_id="one") for name in "ab"), talk("c"), kinds={"other_dialogue": 1.0})
    drawn = [each.worse.text for seed in range(20) for each in found.draw(0, seed)]
    assert all(text.startswith("c") for text in drawn)


def test_a_reply_of_the_same_words_is_no_foil():
    same = [Dialogue((Turn("seeker", Reply(name)), Turn("supporter", Reply("I see."))), "esconv") for name in "ab"]
    assert pool(*same).draw(0, 1) == []


def test_rated_siblings_are_compared_by_their_values():
    given, better, close = Reply("given", value=0.2), Reply("better", value=0.9), Reply("close", value=0.25)
    turns = (Turn("seeker", Reply("Hi.")), Turn("supporter", given, (better, close, Reply("unrated"))))
    found = pool(Dialogue(turns, "esconv"), kinds={"rated": 1.0}, foils=9, tie_margin=0.1)
    drawn = {frozenset((each.better.text, each.worse.text)): each for each in found.draw(0, 1)}
    assert {(each.better.text, each.worse.text, each.tie) for each in drawn.values() if not each.tie} == {
        ("better", "given", False), ("better", "close", False)
    }  # fmt: skip
    assert drawn[frozenset(("given", "close"))].tie


def branches() -> list[Dialogue]:
    """Two talks of a tree that part after the second reply, where each was given what the other one was not."""
    low, high = Reply("low", value=0.1), Reply("high", value=0.9)
    ends = [Reply("left", value=0.4), Reply("right", value=0.6)]
    shared = (
        Turn("seeker", Reply("Hi.")), Turn("supporter", Reply("Hello.", value=0.5), (low, high)),
        Turn("seeker", Reply("I am sad.")),
    )  # fmt: skip
    return [
        Dialogue((*shared, Turn("supporter", end, (low, high)), Turn("seeker", Reply("And?")),
                  Turn("supporter", Reply(f"after {end.text}"))), "esconv", tree_id="one")
        for end in ends
    ]  # fmt: skip


def test_what_dialogues_of_a_tree_share_is_compared_once():
    kinds = {"rated": 1.0, "rejected": 1.0, "same_dialogue": 1.0}
    found = pool(*branches(), kinds=kinds, foils=99)
    drawn = [(number, each) for number in (0, 1) for each in found.draw(number, 1)]
    said = Counter((each.turn, each.kind, each.better.text, each.worse.text) for _, each in drawn)
    assert set(said.values()) == {1}
    assert {pair[2:] for pair in said if pair[:2] == (1, "rated")} == {
        ("Hello.", "low"), ("high", "Hello."), ("high", "low")
    }  # fmt: skip
    siblings = {pair[2:] for pair in said if pair[:2] == (3, "rated")}
    assert siblings == {("high", "low"), ("left", "low"), ("high", "left"), ("right", "low"), ("high", "right")}
    # The shared turn goes on in both ways, and both are foils of it.
    assert {pair[3] for pair in said if pair[:2] == (1, "same_dialogue")} == {
        "left", "after left", "right", "after right"
    }  # fmt: skip
    assert {number for number, each in drawn if each.turn == 1} == {0}
    assert (found.shared, found.counts()["rated"]) == (1, 3)
    # The same records as trees of their own share nothing.
    apart = pool(*(replace(each, tree_id=str(number)) for number, each in enumerate(branches())), kinds=kinds)
    assert (apart.shared, apart.counts()["rated"]) == (0, 4)


def test_a_reply_that_many_records_share_is_drawn_as_often_as_others():
    records = [replace(branches()[0], turns=(*branches()[0].turns[:4], Turn("seeker", Reply(str(n))),
                       Turn("supporter", Reply(f"end {n}")))) for n in range(8)]  # fmt: skip
    found = pool(*records, talk("b", 20), kinds={"other_dialogue": 1.0}, foils=1)
    assert found.counts() == {"other_dialogue": 2 + 8 + 20}
    foreign = Counter(each.worse.text for seed in range(60) for each in found.draw(8, seed))
    assert foreign["Hello."] / foreign.total() == pytest.approx(1 / 10, abs=0.03)


def test_values_that_validation_lacks_are_held_out_by_tree():
    trees = [replace(each, tree_id=f"tree {n}") for n in range(20) for each in branches()]
    plain, settings = [talk("a"), talk("b")], RewardConfig(kinds={"rated": 1.0})
    splits = hold_out_rated({"train": [*trees, *plain], "val": [talk("c")], "test": []}, settings, 3)
    held = {each.tree_id for each in splits["val"][1:]}
    assert len(held) == 2
    assert splits["val"][0].turns == talk("c").turns
    assert len(splits["val"]) == 5
    assert not held & {each.tree_id for each in splits["train"]}
    assert len(splits["train"]) == 38
    assert splits == hold_out_rated({"train": [*trees, *plain], "val": [talk("c")], "test": []}, settings, 3)
    for settings_of_none, given in (
        (RewardConfig(), {"train": trees}),
        (settings, {"train": trees, "val": branches()}),
        (settings, {"train": branches()}),
        (RewardConfig(kinds={"rated": 1.0}, held_out=0.0), {"train": trees}),
    ):
        assert hold_out_rated(given, settings_of_none, 3) == given


def test_own_replies_are_those_that_the_model_wrote():
    given, written = talk("a"), talk("a", rejected=(Reply("I am a model."),))
    found = ComparisonPool([given], RewardConfig(kinds={"own_reply": 1.0}), [written])
    assert {each.worse.text for each in found.draw(0, 1)} == {"I am a model."}


def test_nothing_to_compare_is_an_error():
    short = Dialogue((Turn("seeker", Reply("Hi.")), Turn("supporter", Reply("Hello."))), "esconv")
    for dialogues in ([short], []):
        with pytest.raises(UserError, match=r"nothing to compare in \d training dialogues: no given reply has a foil"):
            pool(*dialogues).check()
    pool(short, replace(short, tree_id="another")).check()


def test_weights_by_relief():
    relief = [talk(name, survey=Survey(5, after)) for name, after in zip("abc", (1, 3, 5), strict=True)]
    weights = outcome_weights([*relief, talk("d")], 0.5)
    spread = np.std([4, 2, 0])
    np.testing.assert_allclose(weights, [1 + 0.5 * 2 / spread, 1, 1 - 0.5 * 2 / spread, 1])
    assert outcome_weights(relief, 5.0).min() == 0
    assert outcome_weights(relief, 0.0).tolist() == outcome_weights([talk("d")] * 3, 1.0).tolist() == [1, 1, 1]
