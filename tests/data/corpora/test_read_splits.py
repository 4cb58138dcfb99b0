"""Splits as trainings take them: read, mapped onto the inventory, limited, merged."""

import json

import pytest

from esc_lab.config import DataConfig
from esc_lab.data.corpora import ReadReport, proportional_split, read_splits, sample_path, write_dialogues
from esc_lab.data.dialogue import Dialogue, Reply, Turn, merge_turns
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError


def data_config(path, **settings):
    return DataConfig(**{"name": "corpus", "path": None if path is None else str(path), **settings})


def test_sample_corpus_by_proportion(sample_dialogues):
    report = ReadReport()
    splits = read_splits(data_config(None, merge="none", split_seed=3), "esconv", report)
    assert splits == proportional_split(sample_dialogues, seed=3)
    assert {name: len(found) for name, found in splits.items()} == {"train": 48, "val": 6, "test": 6}
    assert report.dialogues == 60
    limited = read_splits(data_config(None, split_seed=3, limit={"test": 2, "train": 0}), "esconv", ReadReport())
    assert {name: len(found) for name, found in limited.items()} == {"train": 0, "val": 6, "test": 2}
    assert limited["test"] == [merge_turns(dialogue, "set") for dialogue in splits["test"][:2]]


def test_a_split_without_a_share_is_empty():
    splits = read_splits(data_config(None, proportions={"test": 1.0}), "esconv", ReadReport())
    assert {name: len(dialogues) for name, dialogues in splits.items()} == {"train": 0, "val": 0, "test": 60}


def test_unknown_split_in_limit():
    with pytest.raises(UserError, match=r"data.limit: no split 'dev'.*train, val, test"):
        read_splits(data_config(None, limit={"dev": 2}), "esconv", ReadReport())


def seeker(text):
    return Turn("seeker", Reply(text))


def supporter(text, *names, rejected=()):
    return Turn("supporter", Reply(text, names), rejected)


@pytest.mark.parametrize("policy", ["none", "first", "set"])
def test_merge_policies(tmp_path, policy):
    other = (Reply("no", ("Question",)),)
    turns = (
        seeker("a"),
        supporter("b", rejected=other),
        supporter("c", "Question"),
        supporter("d", "Others", "Question"),
        seeker("e"),
        supporter("f", "Others", rejected=other),
        seeker("g"),
        supporter("h"),
        supporter("i"),
    )
    path = tmp_path / "dialogues.jsonl"
    write_dialogues([Dialogue(turns, "esconv", tree_id=f"t{number}") for number in range(3)], path)
    splits = read_splits(data_config(path, merge=policy), "esconv", ReadReport())
    assert {name: len(found) for name, found in splits.items()} == {"train": 1, "val": 1, "test": 1}
    ((dialogue,), *_) = splits.values()
    strategies = {"first": ("Question",), "set": ("Question", "Others")}
    if policy == "none":
        assert dialogue.turns == turns
    else:
        assert dialogue.turns == (
            seeker("a"),
            supporter("b\nc\nd", *strategies[policy]),  # what was rejected for b alone is left out
            seeker("e"),
            supporter("f", "Others", rejected=other),
            seeker("g"),
            supporter("h\ni"),
        )


def test_published_split(tmp_path, sample_dialogues):
    for name, part in (("train", slice(0, 3)), ("valid", slice(3, 5)), ("test", slice(5, 6))):
        write_dialogues(sample_dialogues[part], tmp_path / f"{name}.jsonl")
    for split in ("auto", "published"):
        report = ReadReport()
        splits = read_splits(data_config(tmp_path, split=split, merge="none"), "esconv", report)
        assert splits == {
            "train": sample_dialogues[:3],
            "val": sample_dialogues[3:5],
            "test": sample_dialogues[5:6],
        }
        assert report.dialogues == 6
    mixed = read_splits(data_config(tmp_path, split="proportion", merge="none"), "esconv", ReadReport())
    assert mixed == proportional_split(sample_dialogues[:6])
    with pytest.raises(UserError, match="no such directory"):
        read_splits(data_config(tmp_path / "train.jsonl", split="published"), "esconv", ReadReport())


EXTES = [("Clarification", "Empathetic Statements"), ("Offer Hope (OH)", "Affirmation"), ("Others", None)]


@pytest.fixture
def extes_file(tmp_path):
    records = []
    for number in range(3):
        content = [{"User": f"Help {number}."}]
        for label, _ in EXTES:
            content += [{"AI Strategy": label, "AI": f"{label}!"}, {"User": "Yes."}]
        records.append({"scene": "s", "description": f"d{number}", "content": content})
    path = tmp_path / "extes.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.mark.parametrize("format", ["extes", "auto"])
def test_extes_is_mapped_to_cso(extes_file, format):
    report = ReadReport()
    splits = read_splits(data_config(extes_file, format=format), "cso", report)
    for dialogue in (dialogue for found in splits.values() for dialogue in found):
        assert dialogue.inventory == "cso"
        names = [turn.reply.strategies for turn in dialogue.turns if turn.speaker == "supporter"]
        assert names == [(target,) if target else () for _, target in EXTES]
    assert report.labels_mapped_away == report.unlabelled_supporter_turns == 3
    own = read_splits(data_config(extes_file, format=format), "extes", ReadReport())
    assert {dialogue.inventory for found in own.values() for dialogue in found} == {"extes"}
    trees = {name: [dialogue.tree_id for dialogue in found] for name, found in own.items()}
    assert trees == {name: [dialogue.tree_id for dialogue in found] for name, found in splits.items()}


def test_our_own_format_is_mapped_too(extes_file, tmp_path):
    """What the file says of its inventory counts, not the name of the format."""
    splits = read_splits(data_config(extes_file, merge="none"), "extes", ReadReport())
    path = tmp_path / "own.jsonl"
    write_dialogues([dialogue for found in splits.values() for dialogue in found], path)
    mapped = read_splits(data_config(path, format="jsonl"), "cso", ReadReport())
    assert {dialogue.inventory for found in mapped.values() for dialogue in found} == {"cso"}


def test_wrong_inventory(extes_file):
    for path, inventory, own in ((None, "cso", "esconv"), (extes_file, "esconv", "extes")):
        with pytest.raises(UserError, match=f"no mapping from '{own}' to '{inventory}'") as caught:
            read_splits(data_config(path), inventory, ReadReport())
        assert (path or sample_path()).name in caught.value.where


def test_labels_that_are_not_needed_are_left_out_and_counted():
    other = load_inventory("extes_sra")
    with pytest.raises(UserError, match="no mapping from 'esconv' to 'extes_sra'"):
        read_splits(data_config(None), other, ReadReport())
    report = ReadReport()
    dialogues = read_splits(data_config(None), other, report, needs_labels=False)["test"]
    assert {dialogue.inventory for dialogue in dialogues} == {"extes_sra"}
    assert not any(turn.reply.strategies for dialogue in dialogues for turn in dialogue.turns)
    assert report.labels_mapped_away >= report.supporter_turns == report.unlabelled_supporter_turns > 0
    own = load_inventory("esconv")
    assert read_splits(data_config(None), own, ReadReport(), needs_labels=False) == read_splits(
        data_config(None), own, ReadReport()
    )
