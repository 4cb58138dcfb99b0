"""Files in the forms in which public corpora come: their labels, records and splits, read rightly or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from esc_lab.config import DataConfig
from esc_lab.data.corpora import ReadReport, read_dialogues, read_splits, write_dialogues
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError

ESCONV, CSO = load_inventory("esconv"), load_inventory("cso")


def save(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


def conversation(labels: list[str], about: str = "the garden") -> dict[str, Any]:
    turns: list[dict[str, str]] = []
    for number, label in enumerate(labels):
        turns.append({"speaker": "usr", "text": f"I worry about {about}, {number}."})
        turns.append({"speaker": "sys", "text": f"Tell me, {number}.", "strategy": label})
    return {"situation": about, "dialog": turns}


def strategies_of(dialogues: list[Dialogue]) -> list[tuple[str, ...]]:
    return [turn.reply.strategies for dialogue in dialogues for turn in dialogue.turns if turn.speaker == "supporter"]


def test_labels_of_failed_conversations(tmp_path: Path) -> None:
    labels = ["Questions", "Approval and Reassurance", "Direct Guidance", "Restatement", "Other"]
    turns = [
        turn
        for label in labels
        for turn in (
            {"speaker": "speaker", "content": "No.", "annotation": {}},
            {"speaker": "listener", "content": "Yes?", "annotation": {"strategy": label}},
        )
    ]
    assert strategies_of(read_dialogues(save(tmp_path / "failed", {"dialog": turns}))) == [
        ("Question",), ("Affirmation and Reassurance",), ("Providing Suggestions",), ("Restatement or Paraphrasing",),
        ("Others",),
    ]  # fmt: skip


def test_all_unknown_labels_are_told_at_once_with_ways_out(tmp_path: Path) -> None:
    labels = ["Greeting", "Question", "Small Talk", "Greeting"]
    for name in ("train.txt", "valid.txt", "test.txt"):
        save(tmp_path / name, conversation(labels, name))
    data = DataConfig(name="own", path=str(tmp_path))
    with pytest.raises(UserError) as caught:
        read_splits(data, ESCONV, ReadReport())
    assert ". Fix: 'data.labels={Greeting: NAME, Small Talk: NAME}' (NAME: " in str(caught.value)
    assert "did you mean" not in str(caught.value)
    assert "data.unknown=drop" in str(caught.value)

    report = ReadReport()
    data.labels = {"greeting": "others", "small-talk": None}
    splits = read_splits(data, ESCONV, report)
    assert strategies_of(splits["test"]) == [("Others",), ("Question",), (), ("Others",)]
    assert (report.labels_replaced, report.unlabelled_supporter_turns) == (9, 3)

    report = ReadReport()
    data.labels, data.unknown = {}, "drop"
    assert strategies_of(read_splits(data, ESCONV, report)["val"]) == [(), ("Question",), (), ()]
    assert report.unknown_labels_dropped == report.unlabelled_supporter_turns == 9

    data.labels = {"Greeting": "Othrs"}
    with pytest.raises(UserError, match=r"data.labels: 'Greeting' is to be read as 'Othrs', .* did you mean 'Others'"):
        read_splits(data, ESCONV, ReadReport())


def preference(chosen: str, rejected: str, about: str) -> dict[str, Any]:
    return {
        "description": about,
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"I lost {about}."}],
        "chosen": {"role": "assistant", "content": chosen},
        "reject": {"role": "assistant", "content": rejected},
    }


@pytest.mark.parametrize("stated", [None, "esconv"])
def test_preferences_that_a_search_with_another_inventory_wrote(tmp_path: Path, stated: str | None) -> None:
    pairs = [preference("(Question) How so?", "(Information) Mice do that.", f"seed {n}") for n in range(5)]
    data = DataConfig(name="own", path=str(save(tmp_path / "pairs", *pairs)), format="esc_pro", inventory=stated)
    splits = read_splits(data, ESCONV, ReadReport())
    dialogues = [dialogue for found in splits.values() for dialogue in found]
    assert {dialogue.inventory for dialogue in dialogues} == {"esconv"}
    assert strategies_of(dialogues) == [("Question",)] * 5
    assert {turn.rejected[0].strategies for d in dialogues for turn in d.turns if turn.rejected} == {("Information",)}


def test_what_a_search_wrote_is_read_back_with_its_inventory(tmp_path: Path) -> None:
    turn = Turn("supporter", Reply("How so?", ("Question",)), (Reply("Mice.", ("Information",)),))
    dialogue = Dialogue((Turn("seeker", Reply("I lost my keys.")), turn), "esconv")
    for form in ("esc_pro_dialogues", "esc_pro_pairs", "esc_pro_kto"):
        write_dialogues([dialogue], tmp_path / form, form)
        data = DataConfig(name="own", path=str(tmp_path / form), inventory="esconv", proportions={"train": 1.0})
        assert read_splits(data, ESCONV, ReadReport())["train"][0].turns == dialogue.turns
    with pytest.raises(UserError, match=r"data.inventory: unknown inventory 'esconf'"):
        read_splits(DataConfig(name="own", path=str(tmp_path / form), inventory="esconf"), ESCONV, ReadReport())


def test_preferences_with_labels_of_the_corpus_own_inventory_are_not_read_as_another(tmp_path: Path) -> None:
    path = save(tmp_path / "pairs", preference("(Affirmation) You can.", "(Emotional Validation) Hm.", "hope"))
    data = DataConfig(name="own", path=str(path), format="esc_pro", unknown="drop")
    with pytest.raises(UserError, match="no mapping from 'cso' to 'esconv'"):
        read_splits(data, ESCONV, ReadReport())


def test_labels_in_the_text_of_messages(tmp_path: Path) -> None:
    record = {
        "messages": [
            {"role": "user", "content": "(sobs) I failed."},
            {"role": "assistant", "content": "(affirmation) You tried."},
            {"role": "user", "content": "ok"},
            {"role": "assistant", "content": "(Share Information) Many do.", "strategy": ""},
            {"role": "assistant", "content": "Go on."},
        ]
    }
    (dialogue,) = read_dialogues(save(tmp_path / "messages", record))
    assert [turn.reply for turn in dialogue.turns] == [
        Reply("(sobs) I failed."), Reply("You tried.", ("Affirmation",)), Reply("ok"),
        Reply("(Share Information) Many do."), Reply("Go on."),
    ]  # fmt: skip


def test_conversational_preferences_of_trl(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "I failed."}]
    chosen = {"role": "assistant", "content": "(Affirmation) You tried."}
    rejected = {"role": "assistant", "content": "(Share Information) Many do."}
    explicit = {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}
    implicit = {"chosen": [*prompt, chosen], "rejected": [*prompt, rejected]}
    single = [{"prompt": prompt, "completion": [reply], "label": reply is chosen} for reply in (chosen, rejected)]
    turns = (
        Turn("seeker", Reply("I failed.")),
        Turn("supporter", Reply("You tried.", ("Affirmation",)), (Reply("Many do.", ("Share Information",)),)),
    )
    for number, records in enumerate(([explicit], [implicit], single)):
        (dialogue,) = read_dialogues(save(tmp_path / f"trl{number}", *records))
        assert dialogue.turns == turns
    with pytest.raises(UserError, match=r":1: 'prompt' is a text, .* Fix: write {messages: "):
        read_dialogues(save(tmp_path / "texts", {"prompt": "I failed.", "chosen": "a", "rejected": "b"}), "esc_pro")
    with pytest.raises(UserError, match=r":1: 'chosen' and 'rejected' answer different messages"):
        read_dialogues(save(tmp_path / "apart", implicit | {"rejected": [chosen, rejected]}))


def test_objects_over_several_lines_and_in_a_text_column(tmp_path: Path) -> None:
    first, second = conversation(["Question"]), conversation(["Others"], "the roof")
    plain = read_dialogues(save(tmp_path / "lines", first, second))
    pretty = tmp_path / "pretty"
    pretty.write_text(f"{json.dumps(first, indent=2)}\n\n{json.dumps(second)}\n", encoding="utf-8")
    column = save(tmp_path / "column", *({"text": json.dumps(record)} for record in (first, second)))
    assert read_dialogues(pretty) == read_dialogues(column) == plain
    assert [dialogue.where.rpartition(":")[2] for dialogue in read_dialogues(pretty)] == ["1", "16"]


def test_trees_in_two_splits(tmp_path: Path) -> None:
    for name in ("train.jsonl", "valid.jsonl", "test.jsonl"):
        save(tmp_path / name, conversation(["Question"], name), conversation(["Others"]))
    data = DataConfig(name="own", path=str(tmp_path))
    with pytest.raises(UserError) as caught:
        read_splits(data, ESCONV, ReadReport())
    assert "1 of 4 dialogue trees are in several splits" in str(caught.value)
    assert f"train ({tmp_path}/train.jsonl:2)" in str(caught.value)
    assert "data.overlap=allow" in str(caught.value)
    report = ReadReport()
    data.overlap = "allow"
    assert len(read_splits(data, ESCONV, report)["test"]) == 2
    assert report.trees_in_two_splits == 1
    data.overlap, data.split = "error", "proportion"
    assert sum(map(len, read_splits(data, ESCONV, ReadReport()).values())) == 6
