"""Seeker turns as replies of one chat: what is trained on, under which prompts, and that the search asks alike."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from esc_lab.config.prompt import PromptConfig, collect_seeker_words
from esc_lab.config.search import LLMConfig
from esc_lab.data.dialogue import Dialogue, Reply, Turn, merge_turns
from esc_lab.data.strategies import load_inventory
from esc_lab.prompts import END, Message, Prompt, SeekerProfile, seeker_messages
from esc_lab.prompts.trained import SeekerPrompts
from esc_lab.search.role_prompts import build_role_prompts
from esc_lab.tokens import EncodeReport, encode_examples
from esc_lab.tokens.seeker_examples import build_seeker_examples

WORDS = collect_seeker_words(PromptConfig(), {})


def talk(*sides: str) -> Dialogue:
    turns = tuple(Turn("seeker" if side == "k" else "supporter", Reply(f"{side}{n}.")) for n, side in enumerate(sides))
    return Dialogue(turns, "esconv", situation="The flat burnt down.", emotion="fear", problem="loss")


def shown(dialogue: Dialogue) -> list[tuple[list[str], str]]:
    """Prompts (without the system message) and replies."""
    examples = build_seeker_examples(dialogue, WORDS)
    return [([m.content for m in example.prompt.messages[1:]], example.reply) for example in examples]


def test_the_seeker_opens_and_has_the_last_word():
    start = WORDS["start"]
    assert shown(talk("k", "s", "k")) == [([start], "k0."), ([start, "k0.", "s1."], f"k2. {END}")]


def test_the_supporter_opens_and_has_the_last_word():
    assert shown(talk("s", "k", "s")) == [(["s0."], "k1."), (["s0.", "k1.", "s2."], END)]


def test_turns_of_a_side_are_one_message():
    start = WORDS["start"]
    found = shown(talk("k", "k", "s", "s", "k", "k"))
    assert found == [([start], "k0.\nk1."), ([start, "k0.\nk1.", "s2.\ns3."], f"k4.\nk5. {END}")]
    assert [example.key.turn for example in build_seeker_examples(talk("k", "k", "s", "s", "k", "k"), WORDS)] == [0, 4]


def test_without_a_seeker_there_is_nothing_and_without_an_end_no_mark():
    assert build_seeker_examples(talk("s", "s"), WORDS) == []
    assert [example.reply for example in build_seeker_examples(talk("s", "k"), WORDS, ends=False)] == ["k1."]
    assert len(build_seeker_examples(talk("s", "k", "s"), WORDS, ends=False)) == 1


def test_the_system_message_is_that_of_the_searchs_seeker():
    seeker = SeekerProfile("The flat burnt down.", "fear", "loss")
    search = build_role_prompts(load_inventory("esconv"), LLMConfig()).seeker_messages(seeker, (), "Go on.")
    assert seeker_messages(WORDS, seeker, ())[0] == search[0]
    assert "The flat burnt down." in search[0].content


def test_a_dialogue_is_one_sequence_and_the_search_asks_as_in_training(encoders, sample_dialogues):
    encoder = encoders("chatml")
    for dialogue in (merge_turns(dialogue, "set") for dialogue in sample_dialogues[:4]):
        examples = build_seeker_examples(dialogue, WORDS)
        (sequence,) = encode_examples(encoder, [examples], 4096, EncodeReport())[0]
        assert [reply.key for reply in sequence.replies] == [example.key for example in examples]
        prompts, seeker = SeekerPrompts(WORDS), SeekerProfile.of(dialogue)
        for example, reply in zip(examples, sequence.replies, strict=True):
            asked = prompts.ask(seeker, dialogue.turns[: example.key.turn])
            ids = encoder.encode_prompt(encoder.adapt(Prompt(asked))).input_ids
            np.testing.assert_array_equal(ids, sequence.input_ids[: reply.start])
            assert encoder.decode(sequence.input_ids[reply.start : reply.end - 1].tolist()) == example.reply
        for before, after in pairwise(sequence.replies):  # what supporters say is no part of any reply
            said = encoder.decode(sequence.input_ids[before.end : after.start].tolist())
            assert dialogue.turns[after.key.turn - 1].reply.text.split()[0] in said


def test_a_long_history_starts_with_a_supporter(encoders):
    dialogue = talk(*"ksksksksksksks")
    report = EncodeReport()
    encoder = encoders("chatml")
    sequences = encode_examples(encoder, [build_seeker_examples(dialogue, WORDS)], 230, report)[0]
    assert report.truncated_examples > 0
    assert {reply.key.turn for sequence in sequences for reply in sequence.replies} == {0, 2, 4, 6, 8, 10, 12, 14}
    late = [sequence for sequence in sequences if sequence.replies[0].first_turn]
    for sequence in late:
        first = sequence.replies[0].first_turn
        assert dialogue.turns[first].speaker == "supporter"
        assert f"s{first}." in encoder.decode(sequence.input_ids[: sequence.replies[0].start].tolist())


@pytest.mark.parametrize("text", ["", "only words"])
def test_messages_alternate(text):
    messages = seeker_messages(WORDS, SeekerProfile(text), talk("s", "k", "k", "s").turns)
    assert [message.role for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2] == Message("assistant", "k1.\nk2.")
