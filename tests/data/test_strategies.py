"""Inventories as YAML, the normalisation of labels, and the mappings between inventories."""

import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_lab.config import InventoryConfig
from esc_lab.data.strategies import (
    UnknownStrategyError,
    build_inventory,
    load_inventory,
    normalize_label,
)
from esc_lab.errors import UserError
from tests.conftest import INVENTORIES

relaxed = settings(max_examples=100)
INVENTORY_NAMES = st.sampled_from(list(INVENTORIES.items()))
MAPPINGS = [(source, target.name) for target in INVENTORIES.values() for source in target.mappings]


def test_inventories():
    assert {name: len(inventory) for name, inventory in INVENTORIES.items()} == {
        "annomi": 4,
        "esconv": 8,
        "cso": 8,
        "extes": 16,
        "extes_sra": 15,
    }
    for inventory in INVENTORIES.values():
        assert len(set(inventory.names)) == len(inventory.names) == len(inventory)
        assert [inventory.index(other) for other in inventory.names] == list(range(len(inventory)))
        with pytest.raises(ValueError, match="not in tuple"):
            inventory.index("Magic")


def test_published_names():
    extes, sra = set(INVENTORIES["extes"].names), set(INVENTORIES["extes_sra"].names)
    assert extes - sra == {"Empathetic Statements", "Others"}
    assert sra - extes == {"Chit Chat"}
    assert set(INVENTORIES["cso"].names) <= extes
    assert INVENTORIES["esconv"].names == (
        "Question",
        "Restatement or Paraphrasing",
        "Reflection of feelings",
        "Self-disclosure",
        "Affirmation and Reassurance",
        "Providing Suggestions",
        "Information",
        "Others",
    )


@pytest.mark.parametrize("inventory", INVENTORIES.values(), ids=INVENTORIES)
def test_definitions_are_sentences_of_their_own(inventory):
    definitions = [strategy.definition for strategy in inventory.strategies]
    assert len(set(definitions)) == len(definitions)
    for strategy in inventory.strategies:
        assert strategy.definition.endswith(".")
        assert len(strategy.definition) > 20
        assert inventory.definition(strategy.name) == strategy.definition


def test_names_mean_the_same_in_all_inventories():
    definitions: dict[str, set[str]] = {}
    for inventory in INVENTORIES.values():
        for strategy in inventory.strategies:
            definitions.setdefault(strategy.name, set()).add(strategy.definition)
    assert [name for name, texts in definitions.items() if len(texts) > 1] == ["Others"]


@relaxed
@given(INVENTORY_NAMES, st.data())
def test_spelling_variants(item, data):
    _, inventory = item
    name = data.draw(st.sampled_from(inventory.names))
    change = data.draw(st.sampled_from([str.lower, str.upper, str.title, str.swapcase]))
    blank = data.draw(st.sampled_from([" ", "-", "_", "  ", " - ", "\n"]))
    before, after = data.draw(
        st.sampled_from([("", ""), ("(", ")"), ("[", "]"), (" ", ":"), ("**", "**."), ("'", "'")])
    )
    variant = before + change(name).replace("-", " ").replace(" ", blank) + after
    assert normalize_label(variant, inventory) == name
    assert normalize_label(name.replace(" and ", " & ").replace(" And ", " & "), inventory) == name


@pytest.mark.parametrize(
    ("inventory", "label", "name"),
    [
        ("esconv", "Self disclosure", "Self-disclosure"),
        ("esconv", "Questions", "Question"),
        ("esconv", "Providing Suggestions or Information", "Providing Suggestions"),
        ("esconv", "Other", "Others"),
        ("esconv", "Affirmation", "Affirmation and Reassurance"),
        ("cso", "Avoid Judgement & Criticism", "Avoid Judgment and Criticism"),
        ("cso", "Empathic statements", "Empathetic Statements"),
        ("cso", "Emotional Validation (EV)", "Emotional Validation"),
        ("extes", "Stress Management (SM)", "Stress Management"),
        ("extes", "Others (OTH)", "Others"),
        ("extes", "Promote Self Care Practices (PSP)", "Promote Self-Care Practices"),
        ("extes_sra", "ChitChat", "Chit Chat"),
        ("extes_sra", "chit-chat", "Chit Chat"),
    ],
)
def test_known_spellings(inventory, label, name):
    assert normalize_label(label, INVENTORIES[inventory]) == name
    assert INVENTORIES[inventory].knows(label)


@pytest.mark.parametrize(
    ("inventory", "label", "message"),
    [
        ("esconv", "Qestion", "unknown strategy 'Qestion' in inventory 'esconv'; did you mean 'Question'?"),
        ("esconv", "reflection of feeings", "did you mean 'Reflection of feelings'?"),
        ("cso", "Affirmaton", "did you mean 'Affirmation'?"),
        ("cso", "Others", "unknown strategy 'Others' in inventory 'cso'"),
        ("esconv", "zzz", "; known: Question, Restatement or Paraphrasing"),
        ("esconv", "", "unknown strategy ''"),
        ("esconv", "()", "unknown strategy '()'"),
    ],
)
def test_unknown_labels(inventory, label, message):
    with pytest.raises(UnknownStrategyError) as caught:
        normalize_label(label, INVENTORIES[inventory])
    assert message in str(caught.value)


@pytest.mark.parametrize(("source", "target"), MAPPINGS)
def test_mappings_are_complete(source, target):
    mapping = INVENTORIES[target].mapping_from(INVENTORIES[source])
    for name in INVENTORIES[source].names:
        found = mapping[name]
        assert found is None or found in INVENTORIES[target].names
        if name in INVENTORIES[target].names:
            assert found == name  # what both inventories have keeps its name


def test_what_has_no_counterpart():
    assert sorted(MAPPINGS) == [("cso", "extes"), ("extes", "cso"), ("extes", "extes_sra")]
    assert [name for name, found in INVENTORIES["cso"].mappings["extes"].items() if found is None] == ["Others"]
    assert None not in INVENTORIES["extes_sra"].mappings["extes"].values()
    assert None not in INVENTORIES["extes"].mappings["cso"].values()


def test_inventories_without_a_mapping():
    with pytest.raises(UserError, match=r"no mapping from 'esconv' to 'cso'\. Fix: choose inventory=esconv, or add"):
        INVENTORIES["cso"].mapping_from(INVENTORIES["esconv"])


OWN = """
name: own
strategies:
  - {name: Open Question, definition: Ask so that more than a yes can follow., spellings: [open questions]}
  - {name: Simple Reflection, definition: Say back what was said.}
mappings:
  esconv: {Question: Open Question, Others: null}
example: [{seeker: I drink., strategy: Open Question, supporter: Tell me about it.}]
"""


def own(directory, text=OWN):
    file = directory / "inventory" / "own.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def test_an_inventory_of_ones_own(tmp_path):
    own(tmp_path)
    inventory = load_inventory("own", [tmp_path])
    assert inventory.names == ("Open Question", "Simple Reflection")
    assert normalize_label("(open questions)", inventory) == "Open Question"
    assert inventory == build_inventory(InventoryConfig("own"), [tmp_path])  # an old run knows no more than its name
    section = InventoryConfig(**yaml.safe_load(OWN))
    assert build_inventory(section) == inventory
    assert hash(inventory) == hash(build_inventory(section))
    with pytest.raises(UserError, match=r"unknown inventory 'own'.* Fix: use annomi, cso, .* --config-dir"):
        load_inventory("own")
    with pytest.raises(UserError, match="inventory 'own', mappings: esconv: 'Restatement or Paraphrasing' is missing"):
        inventory.mapping_from(INVENTORIES["esconv"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: own", "name: mine", "not an inventory of this name. Fix: write name: own"),
        ("strategies:\n", "strategy:\n", "Fix: write name: own, and strategies: [...]"),
        ("Simple Reflection", "open question", "'open question' is both 'Open Question' and 'open question'"),
        ("[open questions]", "[simple-reflection]", "'simple reflection' is both"),
        ("[open questions]", "open questions", "strategy 1: 'spellings' is \"open questions\". Fix: make it a list"),
        (
            "definition: Say back what was said.",
            "definition: ' '",
            "strategy 2: 'definition' is empty. Fix: write it",
        ),
        ("definition: Say", "define: Say", "strategy 2: unknown key 'define'; did you mean 'definition'?"),
        (", definition: Say back what was said.", "", "strategy 2: no 'definition' among the keys name"),
        ("name: Simple Reflection", "name: no", "strategy 2: 'name' is false. Fix: make it a text"),
        ("name: Simple Reflection", "name: (Simple)", "the name '(Simple)' could not be read back"),
        ("Others: null", "Others: Simple", "mappings: esconv: 'Others' becomes the unknown strategy 'Simple'"),
        ("strategy: Open Question", "strategy: Question", "example: unknown strategy 'Question'; did you mean 'Open"),
        ("example:", "exampel:", "unknown key 'exampel'; did you mean 'example'?"),
        ("example:", "cues: {Open Question: ['(']}\nexample:", "cues: Open Question: '(' is no regular expression: "),
        ("example:", "cues: {Question: [why]}\nexample:", "cues: unknown strategy 'Question'; did you mean 'Open"),
        ("mappings:", "name: own\nmappings:", "not YAML: the key 'name' twice"),
        ("strategies:", "strategies: [", "not YAML: "),
    ],
)
def test_a_wrong_inventory_is_one_line_with_its_file(tmp_path, old, new, message):
    assert old in OWN
    file = own(tmp_path, OWN.replace(old, new, 1))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_inventory("own", [tmp_path])
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)
