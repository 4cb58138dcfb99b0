"""A motivational-interviewing inventory, its layout and its words, in a directory of one's own: three files of YAML."""

from __future__ import annotations

import pytest

from esc_lab.config.prompt import PromptConfig, TemplateConfig, fill_layouts
from esc_lab.data.corpora import ReadReport, read_dialogues, sample_path, write_dialogues
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import load_inventory, normalize_label
from esc_lab.errors import UserError
from esc_lab.prompts import build_layout, build_prompt, parse_reply, reply_content

INVENTORY = """
name: mi
strategies:
  - {name: Open Question, definition: Ask what cannot be answered with yes or no., spellings: [open questions, OQ]}
  - {name: Closed Question, definition: Ask for one fact., spellings: [closed questions]}
  - {name: Simple Reflection, definition: Say back what the client has said., spellings: [reflection]}
  - {name: Complex Reflection, definition: Say what the client may have meant or felt beyond the words.}
  - {name: Affirmation, definition: Name a strength or an effort of the client., spellings: [affirm]}
  - {name: Summary, definition: Gather what was said so far.}
  - {name: Giving Information, definition: Give facts after the client has agreed to hear them.}
  - {name: Seeking Permission, definition: Ask whether the client wants advice before giving it.}
  - {name: Emphasizing Autonomy, definition: Say that the choice is the client's.}
  - {name: Developing Discrepancy, definition: Hold what the client does against what the client wants.}
mappings:
  esconv:
    Question: Open Question
    Restatement or Paraphrasing: Simple Reflection
    Reflection of feelings: Complex Reflection
    Self-disclosure: null
    Affirmation and Reassurance: Affirmation
    Providing Suggestions: Seeking Permission
    Information: Giving Information
    Others: null
example:
  - {seeker: "I drink after work, so what.", strategy: Open Question, supporter: "What does it give you?"}
"""
PROMPT = """
train: {template: mi, history_labels: false}
eval: {template: mi, history_labels: false}
layouts:
  mi: {chat_messages: 3, system: [role, choice, inference, history]}
"""


@pytest.fixture
def directory(tmp_path):
    for group, text in (("inventory", INVENTORY), ("prompt", PROMPT)):
        (tmp_path / group).mkdir()
        (tmp_path / group / "mi.yaml").write_text(text)
    return tmp_path


def test_dialogues_prompts_and_labels(directory):
    inventory = load_inventory("mi", [directory])
    report = ReadReport()
    dialogues = read_dialogues(sample_path(), mapping="mi", report=report, config_dirs=[directory])
    assert {dialogue.inventory for dialogue in dialogues} == {"mi"}
    assert report.labels_mapped_away > report.unlabelled_supporter_turns > 0  # of rejected replies too
    names = {name for dialogue in dialogues for turn in dialogue.turns for name in turn.reply.strategies}
    assert "Open Question" in names <= set(inventory.names)

    write_dialogues(dialogues, directory / "mi.jsonl", inventory=inventory)
    assert read_dialogues(directory / "mi.jsonl", mapping=inventory) == dialogues
    with pytest.raises(UserError, match=r"mi.jsonl:1: unknown inventory 'mi'.*--config-dir"):
        read_dialogues(directory / "mi.jsonl")

    wording = {"role": "You are a counsellor.", "listed_strategy": "* {name} = {definition}"}
    prompts = PromptConfig(train=TemplateConfig("mi"), eval=TemplateConfig("mi"))
    fill_layouts(prompts, [directory])
    prompts.eval.layout["wording"] |= wording
    layout = build_layout(prompts.eval)
    talk = Dialogue(
        (
            Turn("seeker", Reply("I want to stop.")),
            Turn("supporter", Reply("What for?", ("Open Question",))),
            Turn("seeker", Reply("For them.")),
            Turn("supporter", Reply("You love them.", ("Complex Reflection",))),
            Turn("seeker", Reply("Yes.")),
            Turn("supporter", Reply("It is up to you.", ("Emphasizing Autonomy",))),
        ),
        "mi",
    )
    prompt = build_prompt(layout, inventory, talk, 5, history_labels=True, inference="with_example")
    system = prompt.messages[0].content
    assert system.startswith("You are a counsellor.\n\n")
    assert "* Summary = Gather what was said so far.\n" in system
    assert "supporter: (Open Question) What does it give you?" in system
    assert system.endswith("The conversation so far:\nseeker: I want to stop.\nsupporter: (Open Question) What for?")
    marked = [system[span.start : span.end] for span in prompt.spans if span.kind == "name"]
    assert marked == list(inventory.names)
    assert len(prompt.messages) == 4

    gold = talk.turns[5].reply
    assert parse_reply(reply_content(layout, gold.text, gold.strategies), inventory) == (gold.strategies[0], gold.text)
    assert normalize_label("(open questions):", inventory) == "Open Question"


def test_a_corpus_in_a_known_format_with_labels_of_ones_own(directory):
    file = directory / "inventory" / "mi.yaml"
    file.write_text(f"{file.read_text()}formats: [esconv]\n")
    corpus = directory / "corpus.jsonl"
    corpus.write_text(
        '{"dialog": [{"speaker": "usr", "text": "Hi."}, {"speaker": "sys", "text": "So?", "strategy": "OQ"}]}\n'
    )
    (dialogue,) = read_dialogues(corpus, mapping="mi", config_dirs=[directory])
    assert dialogue.turns[1].reply.strategies == ("Open Question",)
