"""Dialogue records: content ids, decisions, and the policies for consecutive turns."""

from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_lab.data.dialogue import Dialogue, Reply, Turn, merge_turns

relaxed = settings(max_examples=80)
replies = st.builds(
    Reply,
    st.sampled_from(["Hi.", "Why?", "🙂"]),
    st.sampled_from([(), ("Question",), ("Others",), ("Others", "Question")]),
    st.sampled_from([None, 0.5]),
    st.sampled_from([None, 3]),
)
supporter_turns = st.builds(Turn, st.just("supporter"), replies, st.lists(replies, max_size=2).map(tuple))
seeker_turns = st.builds(Turn, st.just("seeker"), st.builds(Reply, st.sampled_from(["Help.", "Yes."])))
dialogues = st.builds(
    Dialogue, st.lists(st.one_of(seeker_turns, supporter_turns), max_size=10).map(tuple), st.just("esconv")
)


def seeker(text="Help."):
    return Turn("seeker", Reply(text))


def supporter(text="Hi.", *names, rejected=(), **search):
    return Turn("supporter", Reply(text, names, **search), rejected)


BASE = Dialogue(
    (seeker(), supporter("Hi.", "Others", rejected=(Reply("No.", ("Question",)),), value=0.5, visits=3)),
    "esconv",
    situation="s",
    emotion="e",
    problem="p",
    meta={"a": [1, {"b": 2}]},
)


def test_id_follows_the_content_alone():
    assert replace(BASE, tree_id="another").id == BASE.id
    assert replace(BASE, meta={"a": [1, {"b": 2}]}).id == BASE.id
    assert len(BASE.id) == 16
    turn = BASE.turns[1]
    changed = [
        replace(BASE, inventory="cso"),
        replace(BASE, situation=""),
        replace(BASE, emotion=""),
        replace(BASE, problem=""),
        replace(BASE, meta={}),
        replace(BASE, turns=BASE.turns[:1]),
        replace(BASE, turns=BASE.turns[::-1]),
        *(
            replace(BASE, turns=(BASE.turns[0], other))
            for other in (
                replace(turn, rejected=()),
                replace(turn, speaker="seeker"),
                *(
                    replace(turn, reply=replace(turn.reply, **{name: value}))
                    for name, value in [("text", "Ho."), ("strategies", ()), ("value", None), ("visits", 4)]
                ),
            )
        ),
    ]
    assert len({dialogue.id for dialogue in (BASE, *changed)}) == 1 + len(changed)


def test_tree_id_is_the_own_id_unless_given():
    assert BASE.tree_id == BASE.id
    assert replace(BASE, tree_id="t").tree_id == "t"
    # A dialogue made from another stays in its tree.
    assert replace(BASE, turns=BASE.turns[:1]).tree_id == BASE.id


@relaxed
@given(dialogues)
def test_decisions(dialogue):
    spoken = [turn.speaker for turn in dialogue.turns]
    every = [number for number, speaker in enumerate(spoken) if speaker == "supporter"]
    assert list(dialogue.decisions(score_opening=True)) == every
    assert list(dialogue.decisions()) == [number for number in every if "seeker" in spoken[:number]]


@relaxed
@given(dialogues, st.sampled_from(["first", "set"]))
def test_merging(dialogue, policy):
    merged = merge_turns(dialogue, policy)
    assert merge_turns(dialogue, "none") is dialogue
    runs = [list(run) for _, run in groupby(dialogue.turns, key=lambda turn: turn.speaker)]
    assert [turn.speaker for turn in merged.turns] == [run[0].speaker for run in runs]
    for turn, run in zip(merged.turns, runs, strict=True):
        if len(run) == 1:
            assert turn == run[0]
            continue
        assert turn.reply.text.split("\n") == [one.reply.text for one in run]
        assert (turn.rejected, turn.reply.value, turn.reply.visits) == ((), None, None)
        labels = [one.reply.strategies for one in run if one.reply.strategies]
        if policy == "first":
            assert turn.reply.strategies == (labels[0] if labels else ())
        else:
            flat = [name for names in labels for name in names]
            assert turn.reply.strategies == tuple(sorted(set(flat), key=flat.index))
    assert merge_turns(merged, policy) == merged
    assert merged.tree_id == dialogue.tree_id
    assert (merged.id == dialogue.id) == (len(runs) == len(dialogue.turns))


def test_merging_keeps_the_rest_of_the_dialogue():
    dialogue = replace(BASE, turns=(*BASE.turns, supporter("Well."), seeker("Yes."), seeker("No.")))
    merged = merge_turns(dialogue, "set")
    assert replace(merged, turns=()) == replace(dialogue, turns=(), tree_id=dialogue.tree_id)
    assert [turn.reply.text for turn in merged.turns] == ["Help.", "Hi.\nWell.", "Yes.\nNo."]
    assert merged.turns[1].reply.strategies == ("Others",)


def test_order_of_strategies():
    turns = (seeker(), supporter("a"), supporter("b", "Others", "Question"), supporter("c", "Information", "Others"))
    dialogue = Dialogue(turns, "esconv")
    assert merge_turns(dialogue, "first").turns[1].reply.strategies == ("Others", "Question")
    assert merge_turns(dialogue, "set").turns[1].reply.strategies == ("Others", "Question", "Information")


def test_records_are_frozen():
    with pytest.raises(AttributeError):
        BASE.situation = "x"
    with pytest.raises(AttributeError):
        BASE.turns[0].reply.text = "x"
