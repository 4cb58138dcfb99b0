"""Preferences that cannot be compared: without labels, or too long. They are named, or left out and counted."""

from __future__ import annotations

import pytest

from esc_lab.config.training import ObjectiveConfig
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.errors import UserError
from tests.training.modules import data_module

LABEL = ("Question",)


def talk(number: int, chosen: Reply, *rejected: Reply) -> Dialogue:
    turns = (Turn("seeker", Reply(f"I lost key {number}.")), Turn("supporter", chosen, rejected))
    return Dialogue(turns, "esconv", where=f"pairs.jsonl:{number + 1}")


def encode(encoder, dialogues, **settings):
    data = data_module({"train": dialogues}, encoder, objective=ObjectiveConfig(), **settings)
    data.setup("fit")
    return data


def test_pairs_without_labels_are_counted_and_told(tiny_models, caplog):
    encoder = tiny_models("llama").encoder
    labelled = talk(0, Reply("How?", LABEL), Reply("Mice."), Reply("So.", ("Others",)))
    bare = [talk(number, Reply("How?"), Reply("Mice.", LABEL), Reply("So.", LABEL)) for number in (1, 2)]
    report = encode(encoder, [labelled, *bare, bare[0]]).steps.counts["train"]
    assert (report.pairs, report.unlabelled_rejected) == (2, 1)
    assert (report.unlabelled_chosen, report.unlabelled_pairs) == (2, 4)
    assert "2 chosen replies without a strategy left out, and with them 4 pairs" in caplog.text
    with pytest.raises(UserError, match=r"none of the 2 chosen replies .* has a strategy \(4 pairs of the train split"):
        encode(encoder, bare)


def test_a_rejected_reply_that_is_too_long_is_named_or_left_out(tiny_models, caplog):
    encoder = tiny_models("llama").encoder
    usual = talk(0, Reply("How?", LABEL), Reply("Mice.", LABEL))
    long = talk(1, Reply("How?", LABEL), Reply("Mice.", LABEL), Reply("far too long " * 600, LABEL))
    with pytest.raises(UserError) as caught:
        encode(encoder, [usual, long], row_tokens=1500)
    message = str(caught.value)
    assert message.startswith("pairs.jsonl:2, turn 2, rejected reply 2: 'far too long ")
    assert "above the budget of 1500. Fix: raise data.row_tokens" in message
    assert "data.too_long=drop" in message
    data = encode(encoder, [usual, long], row_tokens=1500, too_long="drop")
    report = data.steps.counts["train"]
    assert (report.pairs, report.too_long_rejected, data.reports["train"].truncated_examples) == (2, 1, 0)
    assert "1 rejected replies left out, too long" in caplog.text


def test_a_chosen_reply_that_is_too_long_takes_its_turn_along(tiny_models):
    encoder = tiny_models("llama").encoder
    usual = talk(0, Reply("How?", LABEL), Reply("Mice.", LABEL))
    long = talk(1, Reply("far too long " * 600, LABEL), Reply("Mice.", LABEL))
    with pytest.raises(UserError, match=r"^pairs.jsonl:2, turn 2: '\(Question\) far too"):
        encode(encoder, [usual, long], row_tokens=1500)
    data = encode(encoder, [usual, long], row_tokens=1500, too_long="drop")
    assert (data.steps.counts["train"].pairs, data.reports["train"].too_long_dropped) == (1, 1)


def test_nothing_is_left_of_a_split_that_is_too_long(tiny_models):
    long = talk(1, Reply("far too long " * 600, LABEL))
    data = data_module({"train": [long]}, tiny_models("llama").encoder, row_tokens=1500, too_long="drop")
    with pytest.raises(UserError, match="every reply of the train split exceeds the budget"):
        data.setup("fit")
