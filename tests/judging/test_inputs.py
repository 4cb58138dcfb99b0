"""Which replies of an evaluation are judged, and in which context."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.errors import UserError
from esc_lab.judging.inputs import NOTHING, build_history, check_context, draw_decisions, read_replies
from tests.comparison.synthetic import predictions
from tests.judging.evaluations import evaluation, sample


def written(path, rows):
    path.write_text("".join(json.dumps(asdict(row) if not isinstance(row, dict) else row) + "\n" for row in rows))
    return read_replies(path)


def test_one_reply_a_decision(tmp_path):
    """Of several samples the first; of several prompts that of a gold strategy."""
    row, other = predictions(skill=1, seed=1, replies=True)[:2]
    gold, wrong = row.gold[0], next(name for name in row.distribution if name not in row.gold)
    rows = [
        {**asdict(replace(row, reply="another")), "sample": 1},
        replace(row, prompted=wrong, reply="to another strategy"),
        replace(row, prompted=gold, strategy=None, reply=" the one "),
        replace(row, prompted=gold, reply="a second prompt"),
        replace(other, reply=None),
    ]
    found = written(tmp_path / "predictions.jsonl", rows)
    ((key, reply),) = found.items()
    assert key == (row.dialogue, row.turn)
    assert (reply.text, reply.strategy, reply.gold_reply) == ("the one", gold, row.gold_reply)
    assert reply.turn == Turn("supporter", Reply("the one", (gold,)))
    assert replace(reply, text="", strategy=None).turn == Turn("supporter", Reply(NOTHING))


def test_a_strategy_is_drawn_where_the_gold_reply_has_none(tmp_path):
    """Every strategy comes up, and which one depends on the decision alone, not on the order of the lines."""
    rows = predictions(skill=1, seed=1, replies=True)[:60]
    names = [*rows[0].distribution]
    asked = [replace(row, gold=[], prompted=name, reply=f"of {name}") for row in rows for name in names]
    found = written(tmp_path / "one.jsonl", asked)
    assert {reply.strategy for reply in found.values()} == set(names)
    assert all(reply.text == f"of {reply.strategy}" == f"of {reply.prompted}" for reply in found.values())
    assert written(tmp_path / "other.jsonl", asked[::-1]) == found


def test_of_adherence_any_prompted_strategy_is_judged(tmp_path):
    rows = predictions(skill=1, seed=1, replies=True)[:60]
    asked = [replace(row, prompted=name, reply=f"of {name}") for row in rows for name in row.distribution]
    path = tmp_path / "predictions.jsonl"
    of_gold = written(path, asked)
    assert all(reply.prompted in row.gold for row, reply in zip(rows, of_gold.values(), strict=True))
    drawn = read_replies(path, prompted=True)
    assert drawn.keys() == of_gold.keys()
    assert drawn != of_gold
    written(path, rows)
    with pytest.raises(UserError, match=r"no written reply to a prompt that names a strategy.*a template that names"):
        read_replies(path, prompted=True)


def test_what_is_no_prediction_is_told_with_its_line(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(asdict(predictions(skill=1, seed=1)[0])) + "\n{}\n")
    with pytest.raises(UserError, match=r"predictions.jsonl:2: not a prediction"):
        read_replies(path)


def test_drawn_decisions_are_nested_and_depend_on_the_seed():
    keys = [(f"d{n % 7}", n) for n in range(40)]
    few, more = draw_decisions(keys, 10, 1), draw_decisions(keys[::-1], 20, 1)
    assert len(few) == 10
    assert set(few) < set(more)
    assert draw_decisions(keys, 10, 2) != few
    assert draw_decisions(keys, None, 1) == sorted(keys) == draw_decisions(keys, 99, 1)


def test_history_has_no_opening_and_no_rejected_replies():
    turns = (
        Turn("supporter", Reply("Hello.")), Turn("seeker", Reply("I am sad.")),
        Turn("supporter", Reply("Why?", ("Question",)), (Reply("Oh."),)), Turn("seeker", Reply("My job.")),
        Turn("supporter", Reply("I see.")),
    )  # fmt: skip
    dialogue = Dialogue(turns, "esconv")
    assert build_history(dialogue, 4) == (turns[1], Turn("supporter", Reply("Why?", ("Question",))), turns[3])
    assert build_history(dialogue, 0) == ()


def test_other_dialogues_are_refused(tmp_path):
    dialogues = sample(2)
    found = read_replies(evaluation(tmp_path, lambda *_: "text", dialogues) / "predictions.jsonl")
    by_id = {dialogue.id: dialogue for dialogue in dialogues}
    check_context(by_id, found, "here")
    count = sum(key[0] == dialogues[0].id for key in found)
    with pytest.raises(UserError, match=rf"here: the dialogues of {count} of {len(found)} replies are not those"):
        check_context({dialogues[1].id: dialogues[1]}, found, "here")
    swapped = {dialogues[0].id: dialogues[1], dialogues[1].id: dialogues[0]}
    with pytest.raises(UserError, match=rf"the dialogues of {len(found)} of"):
        check_context(swapped, found, "here")
