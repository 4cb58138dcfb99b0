"""Forms of other tools and corpora, read by the columns that conf/data declares, and tables by columns of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from esc_lab.config.data import FORMS
from esc_lab.config.files import option_files, read_option
from esc_lab.data.corpora import ReadReport, read_dialogues
from esc_lab.data.corpora.columns import build_columns
from esc_lab.data.dialogue import Dialogue
from esc_lab.errors import UserError

SAID = ["I lost my job.", "(Question) What happened?", "They closed.", "(Others) I see."]
TALK = [
    ("seeker", "I lost my job.", ()),
    ("supporter", "What happened?", ("Question",)),
    ("seeker", "They closed.", ()),
    ("supporter", "I see.", ("Others",)),
]
PLAIN = [(speaker, text, ()) for speaker, text, _ in TALK]
WORSE = "(Information) Many close."


def save(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return path


def read(path: Path, format: str = "auto", **options: Any) -> list[Dialogue]:
    return read_dialogues(path, format, **{"inventory": "esconv", **options})


def spoken(dialogue: Dialogue) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(turn.speaker, turn.reply.text, turn.reply.strategies) for turn in dialogue.turns]


def rejected(dialogue: Dialogue) -> list[tuple[int, str, tuple[str, ...]]]:
    turns = enumerate(dialogue.turns)
    return [(number, other.text, other.strategies) for number, turn in turns for other in turn.rejected]


def messages(role: str, text: str, sides: tuple[str, str], count: int = 4) -> list[dict[str, str]]:
    return [{role: sides[number % 2], text: said} for number, said in enumerate(SAID[:count])]


SHAREGPT = messages("from", "value", ("human", "gpt"))
OPENAI = messages("role", "content", ("user", "assistant"))
NO_LABELS = [text.split(") ")[-1] for text in SAID]
DIALOGUES = {
    "sharegpt": ({"system": "Support.", "conversations": SHAREGPT}, TALK),
    "messages": ({"messages": [{"role": "developer", "content": "Support."}, *OPENAI]}, TALK),
    "alpaca": ({"instruction": SAID[2], "input": "", "output": SAID[3], "history": [SAID[:2]]}, TALK),
    "trl": ({"prompt": f"Human: {SAID[0]}\n\nAssistant: {SAID[1]}\n\nHuman: {SAID[2]}\n\nAssistant:",
             "completion": SAID[3]}, TALK),
    "xtuner": ({"conversation": [{"system": "s", "input": NO_LABELS[0], "output": NO_LABELS[1]},
                                 {"input": NO_LABELS[2], "output": NO_LABELS[3]}]}, PLAIN),
    "augesc": ([["usr", NO_LABELS[0]], ["sys", NO_LABELS[1]], ["usr", NO_LABELS[2]], ["sys", NO_LABELS[3]]], PLAIN),
    "escot": (
        {"id": 3, "original_data": {
            "dialog": [{"speaker": ("seeker", "supporter")[number % 2], "content": text}
                       for number, text in enumerate(NO_LABELS[:3])],
            "strategy": "others", "response": "I see."}, "cot_data": {"emotion": "sad"}},
        [*PLAIN[:3], TALK[3]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", DIALOGUES)
@pytest.mark.parametrize("format", ["auto", "named"])
@pytest.mark.parametrize("count", [1, 2])
def test_dialogues(tmp_path: Path, form: str, format: str, count: int, caplog: pytest.LogCaptureFixture) -> None:
    record, expected = DIALOGUES[form]
    caplog.set_level("INFO")
    dialogues = read(save(tmp_path / "corpus", *[record] * count), "auto" if format == "auto" else form)
    assert [spoken(dialogue) for dialogue in dialogues] == [expected] * count
    assert (f"read as {form} (data={form})" in caplog.text) == (format == "auto")


def test_what_else_a_record_brings_goes_to_meta(tmp_path: Path) -> None:
    (dialogue,) = read(save(tmp_path / "corpus", DIALOGUES["escot"][0]))
    assert dialogue.meta == {"id": 3, "cot_data": {"emotion": "sad"}}
    report = ReadReport()
    (dialogue,) = read(save(tmp_path / "chat", DIALOGUES["sharegpt"][0]), report=report)
    assert dialogue.meta == {"system": "Support."}
    assert (report.turns, report.supporter_turns, report.unlabelled_supporter_turns) == (4, 2, 0)


PAIRS = {
    "sharegpt": {"conversations": SHAREGPT[:3], "chosen": SHAREGPT[3], "rejected": {"from": "gpt", "value": WORSE}},
    "messages": {"messages": [{"role": "human", "content": SAID[0]}, *OPENAI[1:3]], "chosen": OPENAI[3],
                 "rejected": {"role": "assistant", "content": WORSE}},
    "alpaca": {"instruction": "They", "input": "closed.", "history": [SAID[:2]], "chosen": SAID[3], "rejected": WORSE},
    "trl": {"prompt": f"seeker: {SAID[0]}\nsupporter: {SAID[1]}\nseeker: {SAID[2]}", "chosen": SAID[3],
            "rejected": [WORSE, "(Others) Hm."]},
    "openai_preference": {"input": {"messages": OPENAI[:3]}, "preferred_output": OPENAI[3:],
                          "non_preferred_output": [{"role": "assistant", "content": WORSE}]},
}  # fmt: skip


@pytest.mark.parametrize("form", PAIRS)
def test_pairs(tmp_path: Path, form: str) -> None:
    report = ReadReport()
    (dialogue,) = read(save(tmp_path / "corpus", PAIRS[form], PAIRS[form]), report=report)
    texts = [(speaker, " ".join(text.split()), labels) for speaker, text, labels in spoken(dialogue)]
    assert texts == TALK
    more = [(3, "Hm.", ("Others",))] if form == "trl" else []
    assert rejected(dialogue) == [(3, "Many close.", ("Information",)), *more]
    assert report.duplicate_pairs == 1 + len(more)


def test_texts_of_trl_without_prompt(tmp_path: Path) -> None:
    """As Anthropic's pairs have it: both texts are whole talks."""
    talk = f"\n\nHuman: {SAID[0]}\n\nAssistant: {SAID[1]}\n\nHuman: {SAID[2]}\n\nAssistant: "
    (dialogue,) = read(save(tmp_path / "corpus", {"chosen": talk + SAID[3], "rejected": talk + WORSE}))
    assert spoken(dialogue) == TALK
    assert rejected(dialogue) == [(3, "Many close.", ("Information",))]
    apart = {"chosen": talk + SAID[3], "rejected": f"\n\nHuman: hello\n\nAssistant: {WORSE}"}
    with pytest.raises(UserError, match=r":1: the chosen and the rejected reply answer different messages"):
        read(save(tmp_path / "apart", apart))


@pytest.mark.parametrize(
    ("form", "of"),
    [
        ("sharegpt", lambda reply, good: {"conversations": [*SHAREGPT[:3], SHAREGPT[3] | {"value": reply}],
                                          "kto_tag": good}),
        ("alpaca", lambda reply, good: {"instruction": SAID[2], "history": [SAID[:2]], "output": reply,
                                        "kto_tag": good}),
        ("trl", lambda reply, good: {"prompt": f"user: {SAID[0]}\nassistant: {SAID[1]}\nuser: {SAID[2]}",
                                     "completion": reply, "label": good}),
    ],
)  # fmt: skip
def test_labelled_replies(tmp_path: Path, form: str, of: Any) -> None:
    (dialogue,) = read(save(tmp_path / "corpus", of(SAID[3], True), of(WORSE, False)), form)
    assert spoken(dialogue) == TALK
    assert rejected(dialogue) == [(3, "Many close.", ("Information",))]
    with pytest.raises(UserError, match=r"is 'good'. Fix: write true or false"):
        read(save(tmp_path / "corpus", of(SAID[3], "good")), form)


def test_files_of_one_dialogue_each(tmp_path: Path) -> None:
    """SMILE's and transcripts, in a directory without split files."""
    smile = [{"role": ("client", "counselor")[number % 2], "content": text} for number, text in enumerate(NO_LABELS)]
    (tmp_path / "smile").mkdir()
    for number in range(3):
        (tmp_path / "smile" / f"{number}.json").write_text(json.dumps(smile, indent=1))
    dialogues = read(tmp_path / "smile")
    assert [spoken(dialogue) for dialogue in dialogues] == [PLAIN] * 3
    (tmp_path / "texts").mkdir()
    text = "来访者\uff1a{}\n\n心理咨询师\uff1a{}\n来访者\uff1a {}\n心理咨询师:{}\n".format(*NO_LABELS)
    for number in range(2):
        (tmp_path / "texts" / f"case_{number}.txt").write_text(text, encoding="utf-8")
    assert [spoken(dialogue) for dialogue in read(tmp_path / "texts")] == [PLAIN] * 2
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no data file in the directory"):
        read(tmp_path / "none")


ANNOMI = """\
transcript_id,mi_quality,topic,utterance_id,interlocutor,utterance_text,annotator_id,main_therapist_behaviour
1,low,drinking,10,therapist,"Well, ""fine"".",0,other
1,low,drinking,2,client,I drink.,0,n/a
1,low,drinking,1,therapist,Hello?,0,question
0,high,smoking,0,client,I smoke.,3,n/a
0,high,smoking,1,therapist,You smoke.,3,reflection
0,high,smoking,1,therapist,You smoke.,4,question
"""


def test_annomi(tmp_path: Path) -> None:
    path, report = tmp_path / "AnnoMI-full.csv", ReadReport()
    path.write_text(ANNOMI, encoding="utf-8")
    first, second = read_dialogues(path, report=report)  # its own inventory
    assert spoken(first) == [
        ("supporter", "Hello?", ("Question",)), ("seeker", "I drink.", ()), ("supporter", 'Well, "fine".', ("Others",)),
    ]  # fmt: skip
    assert spoken(second) == [("seeker", "I smoke.", ()), ("supporter", "You smoke.", ("Reflection",))]
    assert (first.problem, first.inventory, first.where) == ("drinking", "annomi", f"{path}:2")
    assert first.meta == {"transcript_id": "1", "mi_quality": "low", "annotator_id": "0"}
    assert (report.rows_repeated, report.keys_ignored, report.seeker_labels_ignored) == (1, 0, 0)
    with pytest.raises(UserError, match="no mapping from 'annomi' to 'esconv'"):
        read_dialogues(path, mapping="esconv")


COLUMNS = {"dialogue": "conv", "speaker": "who", "text": "said", "strategy": "act", "situation": "about"}
ROWS = 'conv;who;said;act;about\n7;P;"I lost\nmy job.";;laid off\n8;P;hi;;\n'
ROWS += "7;T;What happened?;Question|Others;\n8;T;ho;;\n"


def test_a_table_of_ones_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, report = tmp_path / "mine.csv", ReadReport()
    path.write_bytes(b"\xef\xbb\xbf" + ROWS.replace("\n", "\r\n").encode())
    caplog.set_level("INFO")
    roles = {"p": "seeker", "T": "supporter"}
    first, second = read(path, columns=COLUMNS | {"separator": "|"}, roles=roles, report=report)
    assert spoken(first) == [
        ("seeker", "I lost\r\nmy job.", ()), ("supporter", "What happened?", ("Question", "Others")),
    ]  # fmt: skip
    assert (first.situation, spoken(second)[1]) == ("laid off", ("supporter", "ho", ()))
    assert (first.where, first.turns[1].reply.text) == (f"{path}:2", "What happened?")
    assert "separated by ';'" in caplog.text
    assert report.labels == {("Question", "Question", "Question"): 1, ("Others", "Others", "Others"): 1}
    with pytest.raises(UserError, match=r"mine.csv:2: unknown speakers: 'P' \(2\), 'T' \(2\). Fix: data.roles=\{P: "):
        read(path, columns=COLUMNS)
    with pytest.raises(UserError, match=r"unknown strategies in inventory 'esconv': 'Question\|Others' \(1\)"):
        read(path, columns=COLUMNS, roles=roles)
    wrong = COLUMNS | {"text": "words"}
    with pytest.raises(UserError, match=r"mine.csv:2: no 'words' among conv, who, said, act, about, which"):
        read(path, columns=wrong, roles=roles)


def test_rows_with_rejected_replies(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(
        "dialogue\tturn\tspeaker\ttext\tstrategy\trejected\trejected_strategy\n"
        "a\t1\tseeker\tI lost my job.\t\t\t\na\t2\tsupporter\tWhat happened?\tQuestion\tCheer up.\tOthers\n"
    )
    (dialogue,) = read(path)
    assert spoken(dialogue) == TALK[:2]
    assert rejected(dialogue) == [(1, "Cheer up.", ("Others",))]


@pytest.mark.parametrize(
    "cell",
    [
        json.dumps([{"who": "user", "said": NO_LABELS[0]}, {"who": "assistant", "said": NO_LABELS[1]}]),
        str([{"who": "user", "said": NO_LABELS[0]}, {"who": "assistant", "said": NO_LABELS[1]}]),
        f"**User:** {NO_LABELS[0]}\n**Assistant:** {NO_LABELS[1]}",
    ],
)
def test_a_row_a_dialogue(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "talks.csv"
    path.write_text('talk,feeling\n"{}",sad\n'.format(cell.replace('"', '""')))
    columns = {"turns": "talk", "speaker": "who", "text": "said", "emotion": "feeling"}
    (dialogue,) = read(path, columns=columns)
    assert (spoken(dialogue), dialogue.emotion, dialogue.meta) == (PLAIN[:2], "sad", {})


def test_a_row_an_exchange(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    path.write_text("Context,Response,Act\nI lost my job.,What happened?,Question\n")
    columns = {"prompt": "Context", "reply": "Response", "reply_strategy": "Act"}
    (dialogue,) = read(path, columns=columns)
    assert spoken(dialogue) == TALK[:2]


def test_parquet_and_saved_data_sets(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [DIALOGUES["sharegpt"][0] | {"score": float("nan")}] * 2
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "talks.parquet")
    dialogues = read(tmp_path / "talks.parquet")
    assert [spoken(dialogue) for dialogue in dialogues] == [TALK] * 2
    assert dialogues[1].where == f"{tmp_path}/talks.parquet, row 2"
    (tmp_path / "broken.parquet").write_text("no")
    with pytest.raises(UserError, match=r"broken.parquet: cannot be read as parquet"):
        read(tmp_path / "broken.parquet")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("a,b\n1\n", r":2: 1 cells under a header of 2, separated by ','. Fix: put cells"),
        ("a,a\n1,2\n", r":1: several columns are called 'a'"),
        ('a,b\n1,2\n"1,2\n', r":3: broken table: unexpected end of data"),
        ("", "the file is empty"),
        ("a,b\n", "the table has no rows"),
        ("dialogue,speaker,text\n1,,hi\n", r":2: 'speaker' or 'role' is empty. Fix: fill it in"),
        ("dialogue,speaker,text\n1,user,hi\n,assistant,ho\n", r":3: no 'dialogue' or .* says which dialogue"),
        ("dialogue,turn,speaker,text\n1,one,user,hi\n", r":2: 'turn' or 'turn_id' is 'one'. Fix: number"),
        ("dialogue,speaker,text\n1,user,hi\n", r":2: the dialogue has no supporter turn"),
        ("prompt,chosen,rejected\n<|user|>hi,a,b\n", r"marks of a chat template, '<\|user\|>'"),
        ("prompt,chosen,rejected\nhi,a,\n", r":2: 'rejected' is empty"),
        ("prompt,chosen,rejected\nhi,a,a\n", "holds no dialogues"),
    ],
)
def test_bad_tables(tmp_path: Path, table: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(table)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert caught.value.fix
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"turn": "a"}, "unknown key 'turn'; did you mean 'turns'"),
        ({"dialogue": "a"}, "they name no messages"),
        ({"prompt": "a", "chosen": "b"}, r"they name 'chosen' without 'rejected'. Fix: .* data.columns.rejected=NAME"),
        ({"turns": "a", "speaker": "b"}, "they name 'speaker' without 'text'"),
        ({"turns": True}, "'turns' is True"),
        ({"turns": []}, r"'turns' is \[\]"),
    ],
)
def test_bad_columns(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_columns(columns, {})
    with pytest.raises(UserError, match=r"'P' is 'client'\. Fix: use seeker"):
        build_columns({"turns": "a"}, {"P": "client"})


def test_columns_beside_a_form_with_keys_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the form 'esconv' has keys and speakers of its own"):
        read(save(tmp_path / "corpus", {"dialog": []}), "esconv", columns=COLUMNS)
    with pytest.raises(UserError, match=r"the form 'esconv' .* its own. Fix: leave out data.roles"):
        read(save(tmp_path / "corpus", {"dialog": []}), "esconv", roles={"P": "seeker"})


def test_every_form_has_its_file() -> None:
    declared = {name for name in option_files("data") if read_option("data", name).get("columns")}
    assert declared | {"columns"} == set(FORMS)
    assert all(read_option("data", name)["format"] == name == read_option("data", name)["name"] for name in declared)
