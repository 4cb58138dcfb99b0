"""Where a search begins in a seed dialogue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esc_lab.config.search import MCTSConfig
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.search.mcts import Search, SeedDecision
from esc_lab.search.seed_dialogue import build_seed
from esc_lab.search.tree import SEED_VALUE
from tests.search.oracle import Oracle, run

NAMES = load_inventory("esconv").names


def dialogue(*turns: str) -> Dialogue:
    """Turns as `seeker: text` and `supporter (Question, Others): text`."""
    found = []
    for turn in turns:
        head, _, text = turn.partition(": ")
        speaker, _, label = head.partition(" (")
        names = tuple(name for name in label.rstrip(")").split(", ") if name)
        found.append(Turn(speaker, Reply(text, names)))  # type: ignore[arg-type]
    return Dialogue(tuple(found), "esconv", tree_id="tree", situation="Shop.", emotion="anger", problem="job")


def texts(turns) -> list[str]:
    return [turn.reply.text for turn in turns]


def test_a_dialogue_that_opens_and_ends_with_the_seeker() -> None:
    seed = build_seed(
        dialogue("seeker: a", "supporter (Question): b", "seeker: c", "supporter (Others): d", "seeker: e")
    )
    assert texts(seed.start) == ["a"]
    assert seed.path == (SeedDecision("Question", "b", "c"), SeedDecision("Others", "d", "e"))
    assert seed.ended
    assert (seed.dialogue.tree_id, seed.dialogue.situation) == ("tree", "Shop.")


def test_the_supporters_opening_is_context_and_its_end_has_no_answer() -> None:
    seed = build_seed(dialogue("supporter (Others): a", "seeker: b", "supporter (Question): c", "seeker: d",
                                  "supporter (Affirmation): e"))  # fmt: skip
    assert texts(seed.start) == ["a", "b"]
    assert seed.start[0].reply.strategies == ("Others",)
    assert seed.path == (SeedDecision("Question", "c", "d"), SeedDecision("Affirmation", "e", ""))
    assert seed.ended


def test_consecutive_turns_are_joined() -> None:
    seed = build_seed(
        dialogue("supporter: a", "supporter (Others): b", "seeker: c", "seeker: d", "supporter: e",
                 "supporter (Question, Others): f", "supporter (Affirmation, Question): g", "seeker: h", "seeker: i")
    )  # fmt: skip
    assert texts(seed.start) == ["a\nb", "c\nd"]
    assert seed.path == (SeedDecision("Question", "e\nf\ng", "h\ni"),)
    assert texts(seed.dialogue.turns) == ["a\nb", "c\nd", "e\nf\ng", "h\ni"]
    assert seed.ended
    assert seed.dialogue.tree_id == "tree"


def test_a_reply_without_a_strategy_cuts_the_path() -> None:
    turns = ["seeker: a", "supporter (Question): b", "seeker: c", "supporter: d", "seeker: e", "supporter (Others): f"]
    seed = build_seed(dialogue(*turns))
    assert seed.path == (SeedDecision("Question", "b", "c"),)
    assert not seed.ended
    assert texts(seed.dialogue.turns) == list("abcdef")  # the whole seed is kept beside it
    for few in (["seeker: a"], ["seeker: a", "supporter: b", "seeker: c"], ["supporter (Others): a", "seeker: b"]):
        seed = build_seed(dialogue(*few))
        assert (seed.path, seed.ended) == ((), False)


def test_of_several_strategies_the_first_is_the_decision() -> None:
    seed = build_seed(dialogue("seeker: a", "supporter (Others, Question): b", "supporter (Question): c"))
    assert seed.path == (SeedDecision("Others", "b\nc", ""),)


@pytest.mark.parametrize("turns", [[], ["supporter (Others): a"], ["supporter: a", "supporter (Others): b"]])
def test_without_a_seeker_there_is_nothing_to_search(turns: list[str]) -> None:
    seed = dialogue(*turns)
    with pytest.raises(UserError, match=r"seed dialogue \w+: the seeker says nothing\. Fix: leave it out"):
        build_seed(seed)


TURNS = st.lists(
    st.sampled_from(["seeker: a", "supporter: b", *(f"supporter ({name}): c" for name in NAMES)]), max_size=12
)


def test_what_is_skipped_is_context_with_its_strategies() -> None:
    whole = dialogue("supporter: o", "seeker: a", "supporter (Question): b", "seeker: c", "supporter (Others): d",
                     "seeker: e", "supporter: f")  # fmt: skip
    seed = build_seed(whole, skip=1)
    assert texts(seed.start) == ["o", "a", "b", "c"]
    assert seed.start[2].reply.strategies == ("Question",)
    assert seed.path == build_seed(whole).path[1:] == (SeedDecision("Others", "d", "e"),)
    assert not seed.ended
    assert seed.dialogue == build_seed(whole).dialogue


@given(TURNS)
def test_start_and_path_are_the_beginning_of_the_dialogue(turns: list[str]) -> None:
    given_dialogue = dialogue(*turns)
    if not any(turn.startswith("seeker") for turn in turns):
        return
    seed = build_seed(given_dialogue)
    told = texts(seed.start)
    assert seed.start[-1].speaker == "seeker"
    for decision in seed.path:
        told += [decision.text, *([decision.answer] if decision.answer else [])]
    said = "\n".join(texts(given_dialogue.turns))
    assert said.startswith("\n".join(told))
    assert seed.ended == (said == "\n".join(told) and bool(seed.path))
    # The search takes it as it is.
    constants = MCTSConfig(min_iterations=0, min_ended=0)
    tree = run(Search(constants, seed.start, NAMES, seed.path, seed.ended), Oracle(NAMES)).tree
    planted = [node for node in tree.nodes[1:] if node.seed]
    assert [(node.strategy, node.text, node.answer) for node in planted] == [tuple(vars(d).values()) for d in seed.path]
    if planted:
        assert planted[-1].value <= SEED_VALUE
        assert planted[-1].ended == seed.ended
