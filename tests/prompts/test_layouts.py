"""Prompts: every template, inventory and option; alternation, windows, spans, and parsing of what models write."""

import hashlib
import re
from collections import Counter
from dataclasses import astuple, replace
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_lab.config.prompt import PromptConfig, TemplateConfig, fill_layouts
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.prompts import (
    Baseline,
    Message,
    Prompt,
    Span,
    build_layout,
    build_prompt,
    history_messages,
    load_layout,
    parse_reply,
    reply_content,
    without_system_role,
)
from tests.conftest import INVENTORIES, LAYOUTS

BASELINES = LAYOUTS["cso"].baselines
WORDING = LAYOUTS["cso"].wording
PAUSE, START = WORDING["pause"], WORDING["start"]

SPEAKERS = ("seeker", "supporter")
relaxed = settings(max_examples=60)
speakers = st.lists(st.sampled_from(SPEAKERS), max_size=14)
inventories = st.sampled_from(list(INVENTORIES.values()))
templates = st.sampled_from(list(LAYOUTS.values()))
situations = st.sampled_from(["", 'My "friend" left\nand Question: why?'])


def text_of(number):
    """A text that occurs in no other: T3. is no part of T13."""
    return f'<T{number}> said "so"'


def dialogue_of(who, inventory=INVENTORIES["esconv"], situation=""):
    """A dialogue with these speakers; supporters use the strategies in turn, and every fourth turn has none."""
    turns = []
    for number, speaker in enumerate(who):
        names = (inventory.names[number % len(inventory)],) if speaker == "supporter" and number % 4 != 3 else ()
        turns.append(Turn(speaker, Reply(text_of(number), names)))
    return Dialogue(tuple(turns), inventory.name, situation=situation)


def history_first(layout):
    return layout.system.index("history") < layout.system.index("instruction")


def roles(messages):
    return [message.role for message in messages]


def alternates(messages):
    """Starts with the user, ends with the user, and nobody speaks twice in a row."""
    found = roles(messages)
    return found[0] == found[-1] == "user" and all(a != b for a, b in pairwise(found)) and "system" not in found


@relaxed
@given(speakers, st.booleans())
def test_history_alternates_and_holds_every_turn_once(who, labels):
    dialogue = dialogue_of(who)
    messages = history_messages(dialogue.turns, WORDING, labels=labels)
    assert alternates(messages)
    whole = "\x00".join(message.content for message in messages)
    positions = [whole.find(text_of(number)) for number in range(len(who))]
    assert all(whole.count(text_of(number)) == 1 for number in range(len(who)))
    assert positions == sorted(positions)
    # No supporter text but an opening is the user's, and no seeker text the assistant's.
    first_seeker = who.index("seeker") if "seeker" in who else len(who)
    for number, speaker in enumerate(who):
        (message,) = [message for message in messages if text_of(number) in message.content]
        assert message.role == ("assistant" if speaker == "supporter" and number > first_seeker else "user")


@relaxed
@given(speakers)
def test_history_against_a_rendering_by_runs(who):
    """The same messages from a regular expression over the speakers: s = seeker, r = supporter."""
    turns = dialogue_of(who).turns
    line = "".join("s" if speaker == "seeker" else "r" for speaker in who)
    opening, runs = re.fullmatch(r"(r*)((?:s+r*)*)", line).groups()
    expected, at = [], len(opening)
    for run in re.findall(r"s+|r", runs):
        text = "\n".join(text_of(number) for number in range(at, at + len(run)))
        at += len(run)
        if run == "r" and expected[-1].role == "assistant":
            expected.append(Message("user", PAUSE))
        expected.append(Message("assistant" if run == "r" else "user", text))
    if not expected:
        expected.append(Message("user", START))
    if expected[-1].role == "assistant":
        expected.append(Message("user", PAUSE))
    if opening:
        quoted = "\n".join(text_of(number) for number in range(len(opening)))
        head = f'[The supporter opened the chat with: "{quoted}"]\n'
        expected[0] = Message("user", head + expected[0].content)
    assert history_messages(turns, WORDING, labels=False) == tuple(expected)


def test_labels_in_the_history():
    dialogue = dialogue_of(["supporter", "seeker", "supporter", "supporter", "supporter"])
    shown = history_messages(dialogue.turns, WORDING, labels=True)
    names = load_inventory("esconv").names
    assert [message.content for message in shown if message.role == "assistant"] == [
        f"({names[2]}) {text_of(2)}",
        text_of(3),  # unlabelled
        f"({names[4]}) {text_of(4)}",
    ]
    assert names[0] not in shown[0].content  # openings are context


@relaxed
@given(templates, inventories, speakers, situations, st.booleans(), st.sampled_from([*BASELINES]), st.data())
def test_prompts_of_all_templates(template, inventory, who, situation, labels, inference, data):
    dialogue = dialogue_of([*who, "supporter"], inventory, situation)
    strategy = data.draw(st.sampled_from(inventory.names))
    options = {"history_labels": labels, "situation": True, "inference": inference}
    prompt = build_prompt(template, inventory, dialogue, len(who), strategy, **options)
    system, *chat = prompt.messages
    assert system.role == "system"
    assert alternates(chat)
    every = history_messages(dialogue.turns[: len(who)], WORDING, labels=labels)
    assert len(chat) == min(template.chat_messages or len(every), len(every))
    assert tuple(chat) == every[-len(chat) :]
    whole = "\x00".join(message.content for message in prompt.messages)
    assert all(whole.count(text_of(number)) == 1 for number in range(len(who)))
    assert text_of(len(who)) not in whole
    assert not situation or system.content.count(situation) == 1
    older = [f"{'seeker' if message.role == 'user' else 'supporter'}: {message.content}" for message in every]
    older = older[: len(every) - len(chat)]
    if older:
        transcript = "The conversation so far:\n" + "\n".join(older)
        (named,) = [span for span in prompt.spans if span.kind == "quoted"]
        at = system.content.index(transcript)
        assert at + len(transcript) < named.start if history_first(template) else named.end < at
    else:
        assert "The conversation so far" not in system.content
    assert BASELINES[inference].system in system.content
    assert ("An example" in system.content) == (inference == "with_example")
    check_spans(prompt, template, inventory, strategy)
    check_spans(without_system_role(prompt), template, inventory, strategy)


def check_spans(prompt, template, inventory, strategy):
    covered = [(span, prompt.messages[span.message].content[span.start : span.end]) for span in prompt.spans]
    by_kind = {kind: [(span.strategy, text) for span, text in covered if span.kind == kind] for kind in SPAN_KINDS}
    assert sum(map(len, by_kind.values())) == len(covered)
    said = "\n".join(text for _, text in by_kind["history"])
    assert all((message.content in said) != template.chooses_strategy for message in prompt.messages[2:])
    if template.chooses_strategy:
        assert by_kind["name"] == [(name, name) for name in inventory.names]
        assert by_kind["instruction"] == [(one.name, f"{one.name}: {one.definition}") for one in inventory.strategies]
        assert by_kind["quoted"] == by_kind["quoted_strategy"] == by_kind["neutral"] == []
        assert prompt.neutral is None
    else:
        assert by_kind["name"] == [(strategy, strategy)]
        assert by_kind["quoted"] == [(strategy, f'"{strategy}"')]
        assert by_kind["quoted_strategy"] == [(strategy, f'"{strategy}" strategy')]
        assert by_kind["instruction"] == [(strategy, f'"{strategy}" strategy: {inventory.definition(strategy)}')]
        ((nobody, neutral),) = by_kind["neutral"]
        assert nobody is None
        phrase = prompt.neutral["phrase"]
        assert phrase in {words["neutral_phrase"] for words in template.wordings}
        assert by_kind["neutral_name"] == [(None, phrase)]
        assert by_kind["neutral_quoted"] == [(None, f'"{phrase}"')]
        assert neutral.count(f'"{phrase}"') == 1
        assert not any(name.lower() in neutral.lower() for one in INVENTORIES.values() for name in one.names)
        (name,), (other,) = ([s for s, _ in covered if s.kind == kind] for kind in ("instruction", "neutral"))
        before = prompt.neutral["place"] == "before"
        assert other.end <= name.start if before else name.end <= other.start  # apart, and in the same message
        assert name.message == other.message


SPAN_KINDS = (
    "name",
    "quoted",
    "quoted_strategy",
    "instruction",
    "neutral",
    "neutral_name",
    "neutral_quoted",
    "history",
)


@pytest.mark.parametrize("inventory", INVENTORIES.values(), ids=INVENTORIES)
def test_controls_are_balanced_over_strategies(inventory):
    """At each turn the strategies meet the controls evenly; over turns each strategy meets them all, in both orders."""
    layout = LAYOUTS["c1_hf"]
    met = {name: Counter() for name in inventory.names}
    for number in range(40):
        dialogue = dialogue_of([*("seeker", "supporter") * 4], inventory, situation=f"number {number}")
        for turn in (1, 3, 5, 7):
            at_turn = Counter()
            for name in inventory.names:
                control = build_prompt(layout, inventory, dialogue, turn, name, history_labels=False).neutral
                met[name][tuple(control.values())] += 1
                at_turn[control["place"]] += 1
            assert abs(at_turn["before"] - at_turn["after"]) <= 1
    for counts in met.values():
        assert len(counts) == len(layout.wordings) == 12
        assert max(counts.values()) <= 30  # of 160, 13 expected
    shorter = build_prompt(layout, inventory, dialogue, 7, inventory.names[0], history_labels=False, start=2)
    assert (
        shorter.neutral
        == build_prompt(layout, inventory, dialogue, 7, inventory.names[0], history_labels=False).neutral
    )


@pytest.mark.parametrize("inventory", INVENTORIES.values(), ids=INVENTORIES)
@pytest.mark.parametrize("template", LAYOUTS.values(), ids=LAYOUTS)
def test_spans_of_every_template_and_strategy(template, inventory):
    dialogue = dialogue_of([*("seeker", "supporter") * 4], inventory)
    for strategy, labels in product(inventory.names, (True, False)):
        for inference in BASELINES:
            prompt = build_prompt(
                template, inventory, dialogue, 7, strategy, history_labels=labels, inference=inference
            )
            check_spans(prompt, template, inventory, strategy)
            check_spans(without_system_role(prompt), template, inventory, strategy)


@relaxed
@given(templates, speakers, st.booleans(), st.data())
def test_start_shortens_the_history(template, who, labels, data):
    dialogue = dialogue_of([*who, "supporter"])
    template = replace(template, wordings=template.wordings[:1])  # which one it is depends on the whole dialogue
    start = data.draw(st.integers(0, len(who)))
    rest = Dialogue(dialogue.turns[start:], "esconv")
    inventory = load_inventory("esconv")
    found = build_prompt(template, inventory, dialogue, len(who), "Others", history_labels=labels, start=start)
    assert found == build_prompt(template, inventory, rest, len(who) - start, "Others", history_labels=labels)


def test_situation_is_shown_on_demand():
    inventory = load_inventory("cso")
    dialogue = dialogue_of(["seeker", "supporter"], inventory, "My cat ran away.")
    for template in LAYOUTS.values():
        shown, hidden = (
            build_prompt(template, inventory, dialogue, 1, "Affirmation", history_labels=True, situation=situation)
            for situation in (True, False)
        )
        assert "My cat ran away." in shown.messages[0].content
        assert "My cat ran away." not in hidden.messages[0].content


def test_a_template_that_names_the_strategy_needs_one():
    inventory, dialogue = load_inventory("esconv"), dialogue_of(["seeker", "supporter"])
    build_prompt(load_layout("cso"), inventory, dialogue, 1, history_labels=True)
    with pytest.raises(ValueError, match="template 'c1_hf' needs a strategy"):
        build_prompt(load_layout("c1_hf"), inventory, dialogue, 1, history_labels=True)


def test_template_names_say_what_they_do():
    assert sorted(LAYOUTS) == ["c1_hf", "c1_hl", "c3_hf", "c3_hl", "c5_hf", "c5_hl", "cso", "standard"]
    for name, template in LAYOUTS.items():
        assert template.name == name
        assert template.chooses_strategy == (name == "cso")
        window = re.fullmatch(r"c(\d)_h([fl])", name)
        assert template.chat_messages == (int(window[1]) if window else None)
        assert window is None or history_first(template) == (window[2] == "f")


@relaxed
@given(st.data())
def test_without_system_role_moves_every_span(data):
    contents = ["system text, 🙂", "first\nuser", "answer", "second user"]
    messages = tuple(map(Message, ("system", "user", "assistant", "user"), contents))
    spans = []
    for _ in range(5):
        number = data.draw(st.integers(0, 3))
        start = data.draw(st.integers(0, len(contents[number]) - 1))
        spans.append(Span("name", number, start, data.draw(st.integers(start + 1, len(contents[number]))), "x"))
    moved = without_system_role(Prompt(messages, tuple(spans)))
    assert [(m.role, m.content) for m in moved.messages] == [
        ("user", f"{contents[0]}\n\n{contents[1]}"),
        ("assistant", contents[2]),
        ("user", contents[3]),
    ]
    for span, after in zip(spans, moved.spans, strict=True):
        assert (after.kind, after.strategy) == (span.kind, span.strategy)
        assert (
            moved.messages[after.message].content[after.start : after.end]
            == (contents[span.message][span.start : span.end])
        )


TEXTS = (
    "Yes.",
    "How are you?\nReally?",
    ":) I am glad.",
    ": so it was",
    "(laughs) that is so",
    "[sighs] it is",
    "Question: what now?",
    "the user said (Question) once",
    "🙂",
    "Größe",
)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("inference", BASELINES)
def test_parsing_inverts_writing(text, inference):
    for inventory in INVENTORIES.values():
        for strategy in inventory.names:
            content = reply_content(load_layout("cso"), text, (strategy, inventory.names[0]))
            if inference == "cot":
                content = f"Thought: Reply with (Others).\nReply: {content}"
            assert parse_reply(content, inventory, BASELINES[inference].reply_marker) == (strategy, text)
            assert reply_content(load_layout("standard"), text, (strategy,)) == text
        assert reply_content(load_layout("cso"), text, ()) == text


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("(Question) How?", ("Question", "How?")),
        ("  (question): How?\n", ("Question", "How?")),
        ("[Self disclosure] Me too.", ("Self-disclosure", "Me too.")),
        ("supporter: (Question) How?", ("Question", "How?")),
        ("Assistant : (Others)Hi.", ("Others", "Hi.")),
        ("(Question)", ("Question", "")),
        ("(Magic) Abracadabra.", (None, "Abracadabra.")),
        ("(Providing Suggestion & Magic) Try.", (None, "Try.")),
        ("Supporter: How?", (None, "How?")),
        ("How (Question)?", (None, "How (Question)?")),
        ("Question: How?", (None, "Question: How?")),
        ("( How?", (None, "( How?")),
        ("()", (None, "()")),
        ("", (None, "")),
        ("user: hm", (None, "user: hm")),
        ("<think>\n(Others) or not?\n</think>\n\n(Question) How?", ("Question", "How?")),
        ("not (Others).</think>(Question) How?", ("Question", "How?")),
        ("<think>(Others) Hi", (None, "")),
    ],
)
def test_parsing_what_models_write(written, expected):
    assert parse_reply(written, load_inventory("esconv")) == expected


def test_parsing_after_a_thought():
    inventory = load_inventory("esconv")
    for written, expected in [
        ("Thought: (Others) fits.\nReply: (Question) How?", ("Question", "How?")),
        ("Thought: hm. Reply:\nsupporter: (Question) How?", ("Question", "How?")),
        ("Reply: no. Reply: (Others) Hi.", ("Others", "Hi.")),
        ("(Question) How?", ("Question", "How?")),  # the marker is missing
        ("Thought: endless", (None, "Thought: endless")),
        ("Thought: x\nReply:", (None, "")),
    ]:
        assert parse_reply(written, inventory, BASELINES["cot"].reply_marker) == expected
    assert parse_reply("(Question) Reply: or not?", inventory) == ("Question", "Reply: or not?")


def test_example_of_each_inventory_uses_its_own_strategies():
    for inventory in INVENTORIES.values():
        dialogue = dialogue_of(["seeker", "supporter"], inventory)
        for template in (load_layout("cso"), load_layout("standard")):
            prompt = build_prompt(
                template, inventory, dialogue, 1, inventory.names[0], history_labels=True, inference="with_example"
            )
            example = prompt.messages[0].content.partition("An example of such a conversation:\n")[2]
            replies = [line.removeprefix("supporter: ") for line in example.splitlines()[1::2]]
            parsed = [parse_reply(reply, inventory)[0] for reply in replies]
            assert len(parsed) == 2
            assert all((name in inventory.names) == template.chooses_strategy for name in parsed)


# Of all prompts of a layout: they are what models were trained on, and none may change unseen.
GOLDEN = {
    "c1_hf": "2ecbabcc739c6ecf", "c1_hl": "fadf2d667787e223", "c3_hf": "ec5b5421ae35b4e3", "c3_hl": "d4db86535a3e50aa",
    "c5_hf": "8a7fe475cf46067f", "c5_hl": "01d5d1a6567673e5", "cso": "ffe7f4cd1a27003a", "standard": "9a79df5e2390246e",
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_no_byte_of_a_shipped_prompt_changes(name, sample_dialogues):
    turns = [
        ("supporter", "Hi.", "Others"), ("supporter", "Hello?"), ("seeker", "Hey {there}"),
        ("supporter", "a", "Question"), ("supporter", "b"), ("seeker", "c"), ("seeker", "d"), ("supporter", "e"),
    ]  # fmt: skip
    made_up = tuple(Turn(speaker, Reply(text, tuple(names))) for speaker, text, *names in turns)
    dialogues = (*sample_dialogues[:2], Dialogue(made_up, "esconv", situation='My "friend" {left}'))
    digest = hashlib.sha256()
    for inventory in (INVENTORIES[known] for known in ("cso", "esconv", "extes", "extes_sra")):
        for dialogue in dialogues:
            for turn in range(1, len(dialogue.turns)):
                if dialogue.turns[turn].speaker != "supporter":
                    continue
                strategy = inventory.names[turn % len(inventory)]
                for labels, inference in product((True, False), sorted(BASELINES)):
                    prompt = build_prompt(
                        LAYOUTS[name], inventory, dialogue, turn, strategy,
                        history_labels=labels, situation=not labels, inference=inference,
                    )  # fmt: skip
                    for shown in (prompt, without_system_role(prompt)):
                        marked = tuple(span for span in shown.spans if span.kind != "history")
                        digest.update(repr(astuple(replace(shown, spans=marked))).encode())
    assert digest.hexdigest()[:16] == GOLDEN[name]


OWN = """
train: {template: own, history_labels: false}
layouts:
  own:
    system: [instruction, role, history]
    chat_messages: 2
    wording:
      role: You are a counsellor.
      instruction: "Answer with {strategy}"
      strategy: "'{name}' ({definition})"
"""


def own(directory, text=OWN):
    file = directory / "prompt" / "own.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)


def test_wordings_take_turns_and_each_is_checked(tmp_path):
    several = (
        "instruction: ['Use {strategy}. {neutral}', '{neutral} Use {strategy}.']\n      neutral_phrase: [a b, c, d]"
    )
    words = OWN.replace('instruction: "Answer with {strategy}"', several)
    own(tmp_path, words)
    layout = load_layout("own", [tmp_path])
    pairs = [(each["neutral_phrase"], each["instruction"].startswith("{neutral}")) for each in layout.wordings]
    assert pairs == [*product(("a b", "c", "d"), (False, True))]
    assert layout.strategy_spans == ("name", "quoted", "instruction")
    own(tmp_path, words.replace("Use {strategy}.'", "Use it.'"))
    with pytest.raises(UserError, match=r"wording: 'instruction' lacks the slot \{strategy\}"):
        load_layout("own", [tmp_path])


def test_a_layout_of_ones_own(tmp_path):
    own(tmp_path)
    layout = load_layout("own", [tmp_path])
    dialogue, inventory = dialogue_of([*("seeker", "supporter") * 3]), INVENTORIES["esconv"]
    prompt = build_prompt(layout, inventory, dialogue, 5, "Others", history_labels=False, inference="cot")
    definition = inventory.definition("Others")
    history = f"seeker: {text_of(0)}\nsupporter: {text_of(1)}\nseeker: {text_of(2)}"
    head = f"Answer with 'Others' ({definition})"
    assert prompt.messages[0].content == (f"{head}\n\nYou are a counsellor.\n\nThe conversation so far:\n{history}")
    covered = {span.kind: prompt.messages[0].content[span.start : span.end] for span in prompt.spans}
    assert covered.pop("history") is not None
    assert covered == {"name": "Others", "quoted": "'Others'", "instruction": f"'Others' ({definition}"}
    settings = TemplateConfig("own")
    fill_layouts(prompts := PromptConfig(train=settings), [tmp_path])
    assert build_layout(prompts.train) == replace(layout, baselines={"direct": Baseline()})  # needs no file any more


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layouts:", "layout:", "template=own: prompt/own.yaml holds no layout of its name. Fix: write layouts: {own:"),
        ("history]", "histry]", "unknown part 'histry'; did you mean 'history'?"),
        ("history]", "role]", "part 'role' twice"),
        ("[instruction, role", "[role", "either 'choice' or 'instruction' has to be there"),
        ("chat_messages: 2", "chat_messages: 0", "'chat_messages' is 0. Fix: a whole number from 1"),
        ("chat_messages: 2", "chat_message: 2", "unknown key 'chat_message'; did you mean 'chat_messages'?"),
        ("      role:", "      rôle:", "wording: unknown key 'rôle'; did you mean 'role'?"),
        ("{strategy}", "{stratgy}", "wording: 'instruction' has the unknown slot {stratgy}. Fix: it has neutral, str"),
        ("{strategy}", "it", "wording: 'instruction' lacks the slot {strategy}"),
        ("{strategy}", "{strategy", "wording: 'instruction': expected '}' before end of string"),
        ("You are a counsellor.", "[]", "'role' is []. Fix: make it a text"),
    ],
)
def test_a_wrong_layout_is_one_line(tmp_path, old, new, message):
    assert old in OWN
    own(tmp_path, OWN.replace(old, new, 1))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_layout("own", [tmp_path])
    assert "\n" not in str(caught.value)
    assert "own" in str(caught.value)
