"""Stages `data` and `convert`, whole: a stranger's table is looked at, and written as other forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esc_lab.data.corpora import read_dialogues, sample_path
from esc_lab.data.corpora.tables import find_hub_licence
from tests.e2e.test_bad_input import complaint

COLUMNS = "data.columns={dialogue: conv, speaker: who, text: said, strategy: act, situation: about}"
SEEN = ("data=file", COLUMNS, "data.roles={P: seeker, T: supporter}")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """30 dialogues with own names of columns and speakers, one odd label and an empty message."""
    rows = ["conv,who,said,act,about"]
    for number in range(30):
        rows += [
            f"{number},P,My <b>plan</b> {number} fell through.,,plan {number}",
            f'{number},T,"What was it, {number}?",{"OPEN QUESTION" if number == 7 else "question"},plan {number}',
            f"{number},P,A trip.,,plan {number}",
            f"{number},T,I am sorry about {number}.,Reflection of Feelings,plan {number}",
        ]
    rows[5] = "1,P,,,plan 1"
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_look_at_a_table(command, table):
    outcome = command("stage=data", *SEEN, f"data.path={table}", "data.limit={}", "data.row_tokens=400")
    assert outcome.status == 0, outcome.errors
    metrics = outcome.metrics
    assert (metrics["data/dialogues"], metrics["data/turns"], metrics["data/empty_turns_dropped"]) == (30, 119, 1)
    assert metrics["data/unknown_labels_dropped"] == 1  # which a training would refuse
    assert sum(metrics[f"data/{split}/replies"] for split in ("train", "val", "test")) == 58
    assert sum(metrics[f"data/{split}/too_long"] for split in ("train", "val", "test")) == 58
    page = (outcome.path / "data.html").read_text(encoding="utf-8")
    assert page.count("<details") == 10
    assert "My &lt;b&gt;plan&lt;/b&gt;" in page
    assert "<b>plan" not in page
    for text in ("OPEN QUESTION", "not known", "data.labels", "data.too_long=drop", "mine.csv:"):
        assert text in page
    told = complaint(command("stage=sft", *SEEN, f"data.path={table}"))
    assert "unknown strategies in inventory 'esconv': 'OPEN QUESTION' (1" in told


def test_a_table_becomes_a_file_of_the_project(command, table, tmp_path):
    target = tmp_path / "new" / "mine.jsonl"
    words = ("stage=convert", *SEEN, f"data.path={table}", "data.unknown=drop", f"convert.path={target}")
    outcome = command(*words)
    assert outcome.status == 0, outcome.errors
    dialogues = read_dialogues(target)
    assert len(dialogues) == outcome.metrics["convert/dialogues"] == 30
    assert dialogues[0].turns[1].reply.strategies == ("Question",)
    assert outcome.metrics["convert/unknown_labels_dropped"] == 1
    before = target.read_bytes()
    told = complaint(command(*words, "data.unknown=error"))
    assert "'OPEN QUESTION' (1" in told
    assert target.read_bytes() == before  # nothing is written of what cannot be read
    same = complaint(command(*words, f"convert.path={table}"))
    assert "that is the corpus itself" in same


def test_splits_become_a_directory(command, tmp_path):
    lines = sample_path().read_text(encoding="utf-8").splitlines()
    for name, part in (("train", lines[:4]), ("validation", lines[4:5]), ("test", lines[5:6])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part), encoding="utf-8")
    target = tmp_path / "pairs"
    words = ("stage=convert", "data=file", f"data.path={tmp_path}", f"convert.path={target}")
    outcome = command(*words, "convert.to=esc_pro_pairs", "data.split=published")
    assert outcome.status == 0, outcome.errors
    assert sorted(path.name for path in target.iterdir()) == ["test.json", "train.json", "valid.json"]
    pairs = json.loads((target / "train.json").read_text(encoding="utf-8"))
    assert len(pairs) == sum(len(turn["rejected"]) for line in lines[:4] for turn in json.loads(line)["turns"]
                             if "rejected" in turn)  # fmt: skip
    assert outcome.metrics["convert/left_out/inventory_names"] == 6
    assert "it is there and not empty" in complaint(command(*words))


def test_a_data_set_of_the_hub_in_a_directory(command, tmp_path):
    """Offline, by the files of its repository; and what the library saved is a published split."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "owner--talks" / "data"
    folder.mkdir(parents=True)
    for split, number in (("train", 3), ("test", 2)):
        reply = {"from": "gpt", "value": "(Question) What was it?"}
        lost = [{"from": "human", "value": f"I lost {split} {i}."} for i in range(number)]
        talks = [{"conversations": [said, reply]} for said in lost]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, talks)))
    target = tmp_path / "talks"
    outcome = command("stage=convert", "data=hub", f"data.hub={folder.parent}", f"convert.path={target}")
    assert outcome.status == 0, outcome.errors
    assert len(read_dialogues(target / "train.jsonl")) == 3
    assert len(read_dialogues(target / "test.jsonl")) == 2
    loaded = datasets.load_dataset(str(folder.parent))
    loaded["validation"] = loaded["test"]
    loaded.save_to_disk(str(tmp_path / "saved"))
    assert len(read_dialogues(tmp_path / "saved", inventory="esconv")) == 7
    missing = complaint(command("stage=convert", "data=hub", f"data.hub={tmp_path / 'nothing'}"))
    assert "not to be had" in missing
    look = ("stage=data", "data=hub", f"data.hub={folder.parent}", "data.limit={}")
    outcome = command(*look)
    assert outcome.status == 0, outcome.errors
    assert [outcome.metrics[f"data/{split}/replies"] for split in ("train", "test")] == [3, 2]
    assert "owner--talks" in (outcome.path / "data.html").read_text()
    outcome = command(*look, "data.split=proportion", "data.proportions={train: 0.4, val: 0.2, test: 0.4}")
    assert sum(outcome.metrics[f"data/{split}/replies"] for split in ("train", "val", "test")) == 5
    assert outcome.metrics["data/val/replies"] == 1
    assert "only stage=convert and stage=data read it" in complaint(command("stage=sft", "data=hub", "data.hub=a/b"))
    both = complaint(command(*look, f"data.path={folder}"))
    assert "data.path names another source" in both


def test_what_becomes_of_labels_that_nothing_knows(command, table):
    """A look says where they stand, what they may mean and what to paste; no turn counts as two kinds of loss."""
    outcome = command("stage=data", *SEEN, f"data.path={table}")
    assert outcome.status == 0, outcome.errors
    said = " ".join(outcome.output.split())
    assert "mine.csv:31: unknown strategies in inventory 'esconv': 'OPEN QUESTION' (1; did you mean 'Question')" in said
    assert "Fix: 'data.labels={OPEN QUESTION: Question}' (one of Question, " in said
    assert "turns whose labels are all unknown are among the unlabelled" in said
    page = (outcome.path / "data.html").read_text(encoding="utf-8")
    rows = page.partition('<tr class="refused">')[2].partition("</tr>")[0]
    assert ">OPEN QUESTION<" in rows
    assert '<td class="number">1</td>' in rows


def test_a_conversion_names_what_cards_want_to_know(command, table, tmp_path):
    words = (
        "stage=convert",
        *SEEN,
        f"data.path={table}",
        "data.unknown=drop",
        f"convert.path={tmp_path / 'talks.jsonl'}",
    )
    outcome = command(*words, "data.licence=CC BY 4.0")
    assert "data.name=talks data.licence='CC BY 4.0'" in outcome.errors + outcome.output


def test_the_licence_of_a_data_set_is_in_its_card(tmp_path):
    assert find_hub_licence(str(tmp_path), None) is None
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Talks\n")
    assert find_hub_licence(str(tmp_path), None) == "cc-by-4.0"
