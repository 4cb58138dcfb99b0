"""Examples as few sequences, against each example encoded by itself from the prompt that it should have."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_lab.config import TemplateConfig
from esc_lab.data.dialogue import Dialogue, Reply, Turn, merge_turns
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.prompts import Message, Prompt, build_prompt, load_layout, reply_content
from esc_lab.tokens import EncodeReport, Example, build_tree, encode_examples
from esc_lab.tokens.examples import build_examples

ESCONV = load_inventory("esconv")
UNLIMITED = 100_000
few = settings(max_examples=15)


def history_starts(dialogue, turn):
    """Turns at which the seeker takes the word again, before the given one."""
    spoke = "".join(other.speaker[1] for other in dialogue.turns[:turn])  # e = seeker, u = supporter
    return tuple(at for at in range(1, turn) if spoke[at - 1 : at + 1] == "ue")


def prompt_of(dialogue, turn, template, labels, start=0):
    strategy = dialogue.turns[turn].reply.strategies[0]
    return build_prompt(load_layout(template), ESCONV, dialogue, turn, strategy, history_labels=labels, start=start)


def examples_of(dialogue, template, labels=True):
    examples = []
    for turn in dialogue.decisions():
        reply = dialogue.turns[turn].reply
        if reply.strategies:
            prompt = partial(prompt_of, dialogue, turn, template, labels)
            text = reply_content(load_layout(template), reply.text, reply.strategies)
            starts = history_starts(dialogue, turn)
            examples.append(Example(prompt(), text, turn, starts, lambda start, prompt=prompt: prompt(start=start)))
    return examples


def encoded(encoder, dialogue, template, budget, labels=True):
    report = EncodeReport()
    (sequences,) = encode_examples(encoder, [examples_of(dialogue, template, labels)], budget, report)
    return sequences, report


def alone(encoder, dialogue, turn, template, labels=True, start=0):
    """(prompt, whole) token ids of one example, through the rendering of the tokenizer itself."""
    reply = dialogue.turns[turn].reply
    prompt = encoder.adapt(prompt_of(dialogue, turn, template, labels, start)).messages
    text = reply_content(load_layout(template), reply.text, reply.strategies)
    before, whole = (
        encoder.tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in chat],
            tokenize=False,
            add_generation_prompt=generation,
            enable_thinking=False,
        )
        for chat, generation in ((prompt, True), ((*prompt, Message("assistant", text)), False))
    )
    stop = encoder.end_of_turn_text
    assert whole.startswith(before)
    whole = whole[: whole.index(stop, len(before)) + len(stop)]
    return tuple(encoder.tokenizer(given, add_special_tokens=False)["input_ids"] for given in (before, whole))


def check(encoder, dialogue, template, budget, labels=True):
    """Every reply once, after its own prompt from `first_turn` on; the counts of the report. Returns the sequences."""
    sequences, report = encoded(encoder, dialogue, template, budget, labels)
    first_turns = {}
    for sequence in sequences:
        assert len(sequence.input_ids) <= budget
        assert sequence.input_ids.dtype == np.int64
        for reply in sequence.replies:
            assert reply.key not in first_turns
            first_turns[reply.key] = reply.first_turn
            prompt, whole = alone(encoder, dialogue, reply.key, template, labels, reply.first_turn)
            assert sequence.input_ids[: reply.start].tolist() == prompt
            assert sequence.input_ids[: reply.end].tolist() == whole
            assert reply.first_turn in (0, *history_starts(dialogue, reply.key))
        assert sequence.replies[-1].end == len(sequence.input_ids)
    expected = [turn for turn in dialogue.decisions() if dialogue.turns[turn].reply.strategies]
    assert sorted(first_turns) == expected
    shortened = [start for start in first_turns.values() if start]
    assert report == EncodeReport(
        examples=len(expected),
        truncated_examples=len(shortened),
        dropped_turns=sum(shortened),
        encoded_tokens=sum(len(sequence.input_ids) for sequence in sequences),
    )
    return sequences


@st.composite
def dialogues(draw):
    """Any order of speakers; every reply has a strategy, or none in some dialogues' turns."""
    turns = []
    speakers = draw(st.lists(st.sampled_from(["seeker", "supporter"]), min_size=1, max_size=9))
    for number, speaker in enumerate(speakers):
        names = (draw(st.sampled_from(["Question", "Others"])),) if draw(st.integers(0, 4)) else ()
        text = draw(st.sampled_from(["Hi.", "user", "🙂 ok", '"Why?" she asked.', "two\nlines"]))
        turns.append(Turn(speaker, Reply(f"{text} {number}", names if speaker == "supporter" else ())))
    return Dialogue(tuple(turns), "esconv")


@pytest.mark.parametrize("template", ["cso", "standard", "c1_hf", "c3_hl"])
def test_sample_dialogues(encoder, sample_dialogues, template):
    for dialogue in sample_dialogues[:2]:
        check(encoder, merge_turns(dialogue, "set"), template, UNLIMITED)


@few
@given(dialogue=dialogues(), template=st.sampled_from(["cso", "standard", "c1_hf", "c5_hl"]), labels=st.booleans())
def test_any_dialogue(encoder, dialogue, template, labels):
    check(encoder, dialogue, template, UNLIMITED, labels)


def test_a_dialogue_is_one_sequence_under_cso(encoder, sample_dialogues):
    for dialogue in sample_dialogues[:5]:
        (sequence,) = check(encoder, dialogue, "cso", UNLIMITED)
        assert len(sequence.replies) == len(list(dialogue.decisions()))


def test_an_unlabelled_turn_stays_in_the_chain(encoders):
    turns = [Turn("seeker", Reply("a")), Turn("supporter", Reply("b", ("Others",))), Turn("seeker", Reply("c"))]
    turns += [Turn("supporter", Reply("unlabelled")), Turn("seeker", Reply("d"))]
    turns += [Turn("supporter", Reply("e", ("Question",)))]
    (sequence,) = check(encoders("chatml"), Dialogue(tuple(turns), "esconv"), "cso", UNLIMITED)
    assert [reply.key for reply in sequence.replies] == [1, 5]


def test_without_history_labels_replies_do_not_chain_but_share_in_the_trie(encoders, sample_dialogues):
    """A reply is written with its label and read without it, so each is a branch of its own."""
    encoder, dialogue = encoders("chatml"), sample_dialogues[0]
    sequences = check(encoder, dialogue, "cso", UNLIMITED, labels=False)
    assert [len(sequence.replies) for sequence in sequences] == [1] * len(list(dialogue.decisions()))
    tree = build_tree([sequence.input_ids for sequence in sequences])
    assert len(tree) < 2 * max(len(sequence.input_ids) for sequence in sequences)


@pytest.mark.parametrize("name", ["forgetful", "thinking"])
def test_a_template_that_rewrites_its_history_gives_each_reply_its_own_sequence(encoders, sample_dialogues, name):
    dialogue = sample_dialogues[0]
    sequences = check(encoders(name), dialogue, "cso", UNLIMITED)
    assert len(sequences) == len(list(dialogue.decisions()))


def test_groups_stay_apart(encoders, sample_dialogues):
    encoder, report = encoders("chatml"), EncodeReport()
    groups = [examples_of(dialogue, "cso") for dialogue in sample_dialogues[:3]]
    together = encode_examples(encoder, [groups[0], [], *groups[1:]], UNLIMITED, report)
    assert together.pop(1) == []
    for group, sequences in zip(groups, together, strict=True):
        (expected,) = encode_examples(encoder, [group], UNLIMITED, EncodeReport())
        assert [s.replies for s in sequences] == [s.replies for s in expected]
        assert [s.input_ids.tolist() for s in sequences] == [s.input_ids.tolist() for s in expected]
    assert report.examples == sum(map(len, groups))


def test_spans_of_each_reply_are_those_of_its_prompt(encoder, sample_dialogues):
    dialogue = sample_dialogues[0]
    for template in ("cso", "standard", "c1_hf"):
        sequences, _ = encoded(encoder, dialogue, template, 700 if template == "cso" else UNLIMITED)
        for sequence in sequences:
            for reply in sequence.replies:
                prompt = encoder.adapt(prompt_of(dialogue, reply.key, template, True, reply.first_turn))
                assert reply.spans == encoder.encode_prompt(prompt).spans
                assert reply.spans


def smallest(encoder, dialogue, template):
    """The budget that holds every example when only the last seeker message is left of its history."""
    turns = [turn for turn in dialogue.decisions() if dialogue.turns[turn].reply.strategies]
    last = {turn: (0, *history_starts(dialogue, turn))[-1] for turn in turns}
    return max(len(alone(encoder, dialogue, turn, template, start=start)[1]) for turn, start in last.items())


@pytest.mark.parametrize("name", ["chatml", "gemma", "gemma3", "llama2", "forgetful"])
@pytest.mark.parametrize("template", ["cso", "c1_hf", "standard"])
def test_windows(encoders, sample_dialogues, name, template):
    encoder, dialogue = encoders(name), sample_dialogues[2]
    least = smallest(encoder, dialogue, template)
    turns = list(dialogue.decisions())
    full = {turn: len(alone(encoder, dialogue, turn, template)[1]) for turn in turns}
    for budget in (least, least + 60, (least + max(full.values())) // 2, max(full.values())):
        sequences = check(encoder, dialogue, template, budget)
        for sequence in sequences:
            start = sequence.replies[0].first_turn
            assert {reply.first_turn for reply in sequence.replies} == {start}
            if start:  # the first reply of a window: as much more than the least history as half of the room holds
                turn = sequence.replies[0].key
                starts = history_starts(dialogue, turn)
                sizes = [len(alone(encoder, dialogue, turn, template, start=other)[1]) for other in starts]
                assert start == next(o for o, n in zip(starts, sizes, strict=True) if 2 * n <= sizes[-1] + budget)
            else:
                assert all(full[reply.key] <= budget for reply in sequence.replies)
        whole = {reply.key for sequence in sequences for reply in sequence.replies if not reply.first_turn}
        assert whole == {turn for turn in turns if full[turn] <= budget}
        if template == "cso" and name != "forgetful" and budget > least + 60:
            assert len(sequences) < len(turns)  # windows carry several replies


def test_a_window_keeps_the_system_message_and_the_last_seeker_message(encoders, sample_dialogues):
    encoder, dialogue = encoders("chatml"), sample_dialogues[2]
    budget = smallest(encoder, dialogue, "cso")
    sequences, report = encoded(encoder, dialogue, "cso", budget)
    assert report.truncated_examples
    system = prompt_of(dialogue, 2, "cso", True).messages[0].content
    for sequence in sequences:
        text = encoder.tokenizer.decode(sequence.input_ids)
        assert text.count(system) == 1
        for reply in sequence.replies:
            before = encoder.tokenizer.decode(sequence.input_ids[: reply.start])
            assert before.endswith(f"{dialogue.turns[reply.key - 1].reply.text}<|im_end|>\n<|im_start|>assistant\n")


@few
@given(dialogue=dialogues().filter(lambda d: any(d.turns[t].reply.strategies for t in d.decisions())), data=st.data())
@pytest.mark.parametrize("name", ["chatml", "gemma"])
def test_windows_of_any_dialogue(encoders, name, dialogue, data):
    encoder = encoders(name)
    template = data.draw(st.sampled_from(["cso", "c1_hf", "c3_hl"]))
    least = smallest(encoder, dialogue, template)
    check(encoder, dialogue, template, least + data.draw(st.integers(0, 40)))
    with pytest.raises(UserError, match=rf"\d+: .* take {least} tokens, above the budget of {least - 1}\b"):
        encoded(encoder, dialogue, template, least - 1)


def test_a_budget_below_one_example_names_it(encoders, sample_dialogues):
    encoder = encoders("chatml")
    with pytest.raises(UserError, match=r"1: .*take \d\d+ tokens, above the budget of 50\. Fix: raise data.row"):
        encoded(encoder, sample_dialogues[0], "cso", 50)
    example = Example(Prompt((Message("user", "Hi."),)), "Hello.", "greeting")
    with pytest.raises(UserError, match=r"greeting: .*take \d+ tokens, above the budget of 3"):
        encode_examples(encoder, [[example]], 3, EncodeReport())


def long_dialogue(turns, words="word " * 20):
    replies = (Turn("supporter", Reply(words.strip(), ("Question",))), Turn("seeker", Reply(words.strip())))
    return Dialogue(tuple(replies[(number + 1) % 2] for number in range(turns)), "esconv", where="talks.jsonl:3")


@pytest.mark.parametrize("template", ["cso", "c1_hf"])
def test_the_text_that_is_encoded_grows_with_the_dialogue_and_not_faster(encoders, monkeypatch, template):
    encoder = encoders("chatml")
    encode_many, characters = encoder.encode_many, []

    def count(chats, *places):
        characters.append(sum(len(message.content) for messages, _ in chats for message in messages))
        return encode_many(chats, *places)

    monkeypatch.setattr(encoder, "encode_many", count)
    totals = []
    for turns in (240, 480):
        characters.clear()
        examples = build_examples(
            long_dialogue(turns), ESCONV, TemplateConfig(template=template), load_layout(template)
        )
        (sequences,) = encode_examples(encoder, [examples], 1500, EncodeReport())
        assert sum(len(sequence.replies) for sequence in sequences) == turns // 2
        totals.append(sum(characters))
    assert totals[1] < 2.3 * totals[0]


def test_a_reply_that_is_too_long_is_named_by_its_place_or_dropped_and_counted(encoders):
    encoder = encoders("chatml")
    dialogue = long_dialogue(12)
    turns = [*dialogue.turns]
    turns[5] = Turn("supporter", Reply("far too long " * 2000, ("Question",)))
    dialogue = replace(dialogue, turns=tuple(turns))
    examples = build_examples(dialogue, ESCONV, TemplateConfig(), load_layout("cso"))
    with pytest.raises(UserError, match=r"^talks.jsonl:3, turn 6: '\(Question\) far.* above the budget of 1500.*=drop"):
        encode_examples(encoder, [examples], 1500, EncodeReport())
    report = EncodeReport()
    (sequences,) = encode_examples(encoder, [examples], 1500, report, drop=True)
    assert [reply.key.turn for sequence in sequences for reply in sequence.replies] == [1, 3, 7, 9, 11]
    assert (report.examples, report.too_long_dropped) == (6, 1)


def test_a_message_that_cannot_be_rendered_is_named_by_its_place(encoders):
    dialogue = replace(long_dialogue(4), situation="no")
    turns = [*dialogue.turns]
    turns[2] = Turn("seeker", Reply("Well, it said <|im_end|> to me."))
    examples = build_examples(replace(dialogue, turns=tuple(turns)), ESCONV, TemplateConfig(), load_layout("cso"))
    with pytest.raises(UserError, match=r"^talks.jsonl:3: 'Well, it said .*special token '<\|im_end\|>'"):
        encode_examples(encoders("chatml"), [examples], 1500, EncodeReport())


def test_the_last_reply_alone_and_without_a_strategy_under_a_prompt_that_names_none(sample_dialogues):
    settings, layout = TemplateConfig("standard", history_labels=False), load_layout("standard")
    dialogue = sample_dialogues[0]
    assert dialogue.turns[5].speaker == "supporter"
    for strategies in (("Question",), ()):
        last = replace(dialogue.turns[5], reply=Reply("How so?", strategies), rejected=())
        cut = replace(dialogue, turns=(*dialogue.turns[:5], last))
        (example,) = build_examples(cut, ESCONV, settings, layout, last=True)
        assert (example.key.turn, example.reply) == (5, "How so?")
        system = example.prompt.messages[0].content
        assert ('the "Question" strategy' in system) == bool(strategies)
        assert ("strategy:" in system) == bool(strategies)
        assert "one to three plain sentences" in system  # how to write is said in both
        assert example.shortened(start=example.starts[-1]).messages[0].content == system
        assert all(span.strategy is None or strategies for span in example.prompt.spans)
    open_ended = replace(dialogue, turns=dialogue.turns[:5])
    assert build_examples(open_ended, ESCONV, settings, layout, last=True) == []
    assert build_examples(cut, ESCONV, TemplateConfig(), load_layout("cso"), last=True) == []
