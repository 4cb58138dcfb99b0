"""Inventories, the normalisation of labels, and the mappings between inventories."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_lab.data.strategies import INVENTORIES, MAPPINGS, UnknownStrategyError, map_label, normalize_label

relaxed = settings(deadline=None, max_examples=100)
INVENTORY_NAMES = st.sampled_from(list(INVENTORIES.items()))


def test_inventories():
    assert {name: len(inventory) for name, inventory in INVENTORIES.items()} == {
        "esconv": 8,
        "cso": 8,
        "extes": 16,
        "extes_sra": 15,
    }
    for name, inventory in INVENTORIES.items():
        assert inventory.name == name
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
        assert strategy.definition == strategy.definition.strip()
        assert strategy.definition.endswith(".")
        assert len(strategy.definition) > 20
        assert inventory.definition(strategy.name) == strategy.definition


def test_labels_can_be_written_and_parsed():
    """A name with brackets or line breaks could not be read back from `(name) reply`; 60 characters is the limit."""
    for inventory in INVENTORIES.values():
        assert all(len(name) <= 60 and not set("()[]\n") & set(name) for name in inventory.names)


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


def test_a_spelling_never_leads_out_of_the_inventory():
    spellings = ["Clarifications", "Others (OTH)", "Suggest Options (SO)", "Chit Chat", "Empathic statements", "Other"]
    for inventory in INVENTORIES.values():
        for label in spellings:
            try:
                assert normalize_label(label, inventory) in inventory.names
            except UnknownStrategyError:
                continue


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
    mapping = MAPPINGS[source, target]
    assert tuple(sorted(mapping)) == tuple(sorted(INVENTORIES[source].names))
    for name in INVENTORIES[source].names:
        found = map_label(name, mapping)
        assert found is None or found in INVENTORIES[target].names
        if name in INVENTORIES[target].names:
            assert found == name  # what both inventories have keeps its name


def test_what_has_no_counterpart():
    assert [name for name, found in MAPPINGS["extes", "cso"].items() if found is None] == ["Others"]
    assert None not in MAPPINGS["extes", "extes_sra"].values()
    assert None not in MAPPINGS["cso", "extes"].values()


def test_unmapped_names():
    with pytest.raises(
        UnknownStrategyError, match=r"no mapping for strategy 'Afirmation'; did you mean 'Affirmation'\?"
    ):
        map_label("Afirmation", MAPPINGS["extes", "cso"])
