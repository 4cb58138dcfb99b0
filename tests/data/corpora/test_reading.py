"""Reading: formats, their artefacts, labels, detection, and the errors that users meet."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from esc_lab.data.corpora import ReadReport, read_dialogues, sample_path
from esc_lab.data.dialogue import Dialogue, Reply, Survey, Turn
from esc_lab.errors import UserError

PUBLISHED = {
    "experience_type": "Previous Experience",
    "emotion_type": "anger",
    "problem_type": "job crisis",
    "situation": "My boss keeps my tips. ",
    "survey_score": {"seeker": {"empathy": "4"}, "supporter": {}},
    "dialog": [
        {"text": "hi", "speaker": "usr"},
        {"text": "What happened?", "speaker": "sys", "strategy": "Question"},
        {"text": "he took the jar", "speaker": "usr"},
        {"text": "That would make me angry too.", "speaker": "sys", "strategy": "Reflection of feelings"},
    ],
}
RAW = {
    "emotion_type": "anger",
    "situation": "My boss keeps my tips.",
    "dialog": [
        {"speaker": "supporter", "annotation": {"strategy": "Others"}, "content": "Hello.\n"},
        {"speaker": "seeker", "annotation": {}, "content": " \n"},
        {"speaker": "seeker", "annotation": {"feedback": "4"}, "content": "he took the jar"},
        {"speaker": "supporter", "annotation": {}, "content": "Which jar?"},
    ],
}
EXTES = {
    "scene": "Work Stress",
    "description": "My boss keeps my tips.",
    "content": [
        {"User": "hi"},
        {"AI Strategy": "", "AI": "Hello!"},
        {"User": "he took the jar"},
        {"AI Strategy": "Clarification", "AI": {"Response": "Which jar? "}},
        {"User": "the tip jar"},
        {"AI Strategy": "Others", "AI": "I see.", "User": "yes"},
        {"AI Strategy": "Affirmation"},
        {"AI": {"AI Strategy": "emotional validation", "Response": "No wonder you are cross."}},
        {"User": "thanks", "AI Strategy": "Offer Hope", "AI": "It can get better."},
    ],
}
OWN = {
    "format": "esc-lab/1",
    "inventory": "esconv",
    "turns": [
        {"speaker": "seeker", "text": "hi"},
        {
            "speaker": "supporter",
            "text": "What happened?",
            "strategies": ["question"],
            "value": 0.5,
            "rejected": [{"text": "Cheer up.", "strategies": ["Affirmation & Reassurance"], "visits": 2}],
        },
    ],
}


def save(path: Path, *records: Any, as_list: bool = False) -> Path:
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("[" + ",\n".join(lines) + "]" if as_list else "\n".join(lines) + "\n", encoding="utf-8")
    return path


def spoken(dialogue: Dialogue) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(turn.speaker, turn.reply.text, turn.reply.strategies) for turn in dialogue.turns]


@pytest.mark.parametrize("as_list", [True, False])
def test_published_esconv(tmp_path: Path, as_list: bool) -> None:
    report = ReadReport()
    (dialogue,) = read_dialogues(save(tmp_path / "corpus", PUBLISHED, as_list=as_list), report=report)
    assert spoken(dialogue) == [
        ("seeker", "hi", ()),
        ("supporter", "What happened?", ("Question",)),
        ("seeker", "he took the jar", ()),
        ("supporter", "That would make me angry too.", ("Reflection of feelings",)),
    ]
    assert (dialogue.situation, dialogue.emotion, dialogue.problem) == ("My boss keeps my tips.", "anger", "job crisis")
    assert dialogue.meta == {key: PUBLISHED[key] for key in ("experience_type", "survey_score")}
    assert dialogue.survey == Survey(empathy=4)
    assert dialogue.inventory == "esconv"
    assert report == ReadReport(dialogues=1, turns=4, supporter_turns=2)
    assert report.line() == "1 dialogues, 4 turns, 2 supporter turns"


def test_survey_of_esconv(tmp_path: Path) -> None:
    answers = {"initial_emotion_intensity": "5", "final_emotion_intensity": 2, "relevance": "", "empathy": "great"}
    report = ReadReport()
    path = save(tmp_path / "corpus", PUBLISHED | {"survey_score": {"seeker": answers}}, PUBLISHED | {"survey_score": 3})
    surveyed, other = read_dialogues(path, report=report)
    assert surveyed.survey == Survey(5, 2)
    assert surveyed.survey.relief == 3
    assert surveyed.meta["survey_score"] == {"seeker": answers}
    assert other.survey is None
    assert report.survey_answers_unreadable == 1
    assert Survey(5, None).relief is None


def test_survey_is_no_part_of_the_id() -> None:
    """Predictions of older runs know their dialogues by ids that were made before there were surveys."""
    turns = (Turn("seeker", Reply("hi")), Turn("supporter", Reply("Hello.", ("Others",))))
    plain = Dialogue(turns, "esconv", situation="s", meta={"survey_score": {}})
    assert plain.id == Dialogue(turns, "esconv", situation="s", meta={"survey_score": {}}, survey=Survey(4)).id
    assert plain.id == "cdfac2b580f5a116"


def test_raw_esconv_drops_empty_turns_and_keeps_annotations(tmp_path: Path) -> None:
    report = ReadReport()
    (dialogue,) = read_dialogues(save(tmp_path / "ESConv.json", RAW, as_list=True), report=report)
    assert spoken(dialogue) == [
        ("supporter", "Hello.", ("Others",)),
        ("seeker", "he took the jar", ()),
        ("supporter", "Which jar?", ()),
    ]
    assert dialogue.meta == {"turn_annotations": {"1": {"feedback": "4"}}}
    assert (report.empty_turns_dropped, report.texts_stripped, report.unlabelled_supporter_turns) == (1, 2, 1)
    assert "1 unlabelled supporter turns" in report.line()


def test_raw_and_published_esconv_agree(tmp_path: Path) -> None:
    names = {"usr": "seeker", "sys": "supporter"}
    raw = PUBLISHED | {
        "dialog": [
            {
                "speaker": names[str(turn["speaker"])],
                "annotation": {key: turn[key] for key in ("strategy",) if key in turn},
                "content": turn["text"] + "\n",
            }
            for turn in PUBLISHED["dialog"]  # type: ignore[attr-defined]
        ]
    }
    assert read_dialogues(save(tmp_path / "a", raw)) == read_dialogues(save(tmp_path / "b", PUBLISHED))


def test_extes_artefacts(tmp_path: Path) -> None:
    report = ReadReport()
    (dialogue,) = read_dialogues(save(tmp_path / "corpus", EXTES), report=report)
    assert spoken(dialogue) == [
        ("seeker", "hi", ()),
        ("supporter", "Hello!", ()),
        ("seeker", "he took the jar", ()),
        ("supporter", "Which jar?", ("Clarification",)),
        ("seeker", "the tip jar", ()),
        ("supporter", "I see.", ("Others",)),
        ("seeker", "yes", ()),
        ("supporter", "No wonder you are cross.", ("Emotional Validation",)),
        ("seeker", "thanks", ()),
        ("supporter", "It can get better.", ("Offer Hope",)),
    ]
    assert (dialogue.situation, dialogue.problem) == ("My boss keeps my tips.", "Work Stress")
    assert (report.empty_turns_dropped, report.unlabelled_supporter_turns) == (1, 1)


def test_mapping_changes_labels_inventory_and_counts_but_not_the_tree(tmp_path: Path) -> None:
    path, report = save(tmp_path / "corpus", EXTES), ReadReport()
    (plain,) = read_dialogues(path)
    (mapped,) = read_dialogues(path, mapping="cso", report=report)
    assert mapped.inventory == "cso"
    assert [strategies for speaker, _, strategies in spoken(mapped) if speaker == "supporter"] == [
        (),
        ("Empathetic Statements",),
        (),
        ("Emotional Validation",),
        ("Affirmation",),
    ]
    assert (report.labels_mapped_away, report.unlabelled_supporter_turns) == (1, 2)
    assert mapped.tree_id == plain.tree_id
    assert read_dialogues(path, mapping="extes") == [plain]


def test_two_labels_that_map_to_one_are_one(tmp_path: Path) -> None:
    turns = [{"speaker": "supporter", "text": "a", "strategies": ["Clarification", "Others", "Empathetic Statements"]}]
    path = save(tmp_path / "corpus", {"format": "esc-lab/1", "inventory": "extes", "turns": turns})
    (dialogue,) = read_dialogues(path, mapping="cso")
    assert dialogue.turns[0].reply.strategies == ("Empathetic Statements",)


def test_own_format(tmp_path: Path) -> None:
    (dialogue,) = read_dialogues(save(tmp_path / "corpus", OWN))
    rejected = Reply("Cheer up.", ("Affirmation and Reassurance",), None, 2)
    assert dialogue.turns == (
        Turn("seeker", Reply("hi")),
        Turn("supporter", Reply("What happened?", ("Question",), 0.5), (rejected,)),
    )
    assert (dialogue.situation, dialogue.meta, len(dialogue.tree_id)) == ("", {}, 16)


def test_inventory_can_be_overridden(tmp_path: Path) -> None:
    record = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "strategy": "Others"}]
    }
    path = save(tmp_path / "corpus", record)
    with pytest.raises(UserError, match=r"'esconv' knows them all: data.inventory=esconv; 'extes' knows"):
        read_dialogues(path)
    assert read_dialogues(path, inventory="esconv")[0].inventory == "esconv"


def test_separators_inside_texts_do_not_end_a_line(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x1cfour\r\nfive"
    record = {"dialog": [{"speaker": "sys", "text": text}]}
    path = tmp_path / "corpus"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(record, ensure_ascii=False).encode() + b"\r\n\r\n")
    assert read_dialogues(path)[0].turns[0].reply.text == text


def test_directory_with_a_published_split_is_read_in_order(tmp_path: Path) -> None:
    for name in ("train.txt", "valid.txt", "test.txt"):
        record = {"dialog": [{"speaker": "sys", "text": name}]}
        save(tmp_path / name, record)
    assert [d.turns[0].reply.text for d in read_dialogues(tmp_path)] == ["train.txt", "valid.txt", "test.txt"]


def test_unknown_labels_are_reported_once_with_place_and_neighbour(tmp_path: Path) -> None:
    turns = [
        {"speaker": "sys", "text": "a", "strategy": label} for label in ("Question", "Qestion", "Wisdom", "Qestion")
    ]
    path = save(tmp_path / "corpus", PUBLISHED, {"dialog": turns})
    with pytest.raises(UserError) as caught:
        read_dialogues(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2, turn 2: unknown strategies in inventory 'esconv': ")
    assert "'Qestion' (2; did you mean 'Question'), 'Wisdom' (1, first at corpus:2, turn 3). Fix: " in message
    assert "Fix: 'data.labels={Qestion: Question, Wisdom: NAME}' (NAME: one of Question, " in message


@pytest.mark.parametrize(
    "label", ["Small Talk", "Hope & Comfort", "Hope, Comfort", "Talk (small)", "Seeker's view", "1st"]
)
def test_the_way_out_for_unknown_labels_is_one_that_the_command_line_takes(tmp_path: Path, label: str) -> None:
    path = save(tmp_path / "corpus", {"dialog": [{"speaker": "sys", "text": "a", "strategy": label}]})
    with pytest.raises(UserError) as caught:
        read_dialogues(path)
    (word,) = shlex.split(caught.value.fix.split(" (NAME: one of ")[0].replace("NAME", "Others"))
    (override,) = OverridesParser.create().parse_overrides([word])
    labels = {str(key): name for key, name in override.value().items()}
    assert read_dialogues(path, labels=labels)[0].turns[0].reply.strategies == ("Others",)


def test_labels_of_other_alphabets_are_mapped_in_a_file(tmp_path: Path) -> None:
    path = save(tmp_path / "corpus", {"dialog": [{"speaker": "sys", "text": "a", "strategy": "Début"}]})
    with pytest.raises(UserError, match=r"'data.labels=\{début: NAME\}' as YAML in a file of your own"):
        read_dialogues(path)


def test_a_label_that_is_read_as_no_name_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'Question' is to be read as '5', which the inventory 'esconv' does not know"):
        read_dialogues(save(tmp_path / "corpus", PUBLISHED), labels={"Question": 5})  # type: ignore[dict-item]


def test_labels_of_another_corpus_point_to_its_inventory(tmp_path: Path) -> None:
    record = {"dialog": [{"speaker": "sys", "text": "a", "strategy": "Offer Hope"}]}
    with pytest.raises(UserError, match=r"'extes' knows them all: data.inventory=extes; 'extes_sra' knows"):
        read_dialogues(save(tmp_path / "corpus", record))


def own(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (OWN | changes).items() if value is not ...}


def own_turn(**turn: Any) -> dict[str, Any]:
    return own(turns=[{"speaker": "supporter", "text": "a"} | turn])


def pair(**changes: Any) -> dict[str, Any]:
    record = {
        "messages": [{"role": "user", "content": "a"}],
        "chosen": {"role": "assistant", "content": "(Affirmation) b"},
        "reject": {"role": "assistant", "content": "(Affirmation) c"},
    }
    return {key: value for key, value in (record | changes).items() if value is not ...}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a"}, "of no known form, with the keys text .*; sharegpt: no 'conversations'; .* Fix: name"),
        ({"base": "Problem: a", "res": "b", "id": 1}, "a role card of ESC-Eval, .* Fix: .* cards=file cards.path=FILE"),
        ([1], "the record is .1.. Fix: make it an object"),
        ({"dialog": []}, "has no turns"),
        ({"dialog": [{"speaker": "usr", "text": "a"}]}, "no supporter turn"),
        ({"dialog": [{"speaker": "bot", "text": "a"}]}, "turn 1: unknown speaker 'bot'"),
        ({"dialog": [{"speaker": "sys"}]}, "no 'content' among the keys speaker"),
        ({"dialog": [{"speaker": "sys", "text": 3}]}, "'text' is 3. Fix: make it a text"),
        ({"dialog": "a"}, "'dialog' is .a.. Fix: make it a list"),
        ({"dialog": [{"speaker": "sys", "text": "\ud800"}]}, "half a character"),
        ({"content": [{"Bot": "a"}]}, "item 1: unknown speaker among the keys Bot"),
        ({"content": [{"AI": {"Text": "a"}}]}, "no 'Response' among the keys Text"),
        ({"content": [{"AI": ["a"]}]}, "the message is"),
        (own(format="esc-lab/3"), "unknown format version 'esc-lab/3'"),
        (own(survey={"empathy": 4}), "unknown key 'survey'"),
        (own(format="esc-lab/2", survey={"empathy": "4"}), "survey: 'empathy' is '4'. Fix: make it a whole number"),
        (own(format="esc-lab/2", survey={"relevance": 6}), "survey: 'relevance' is 6"),
        (own(format="esc-lab/2", survey={"relevancy": 5}), "survey: unknown key 'relevancy'; did you mean 'relevance'"),
        (own(format=...), "no 'format' among"),
        (own(inventory=...), "no 'inventory'"),
        (own(inventory="esconf"), "unknown inventory 'esconf'; did you mean 'esconv'"),
        (own(emotoin="anger"), "unknown key 'emotoin'; did you mean 'emotion'"),
        (own(tree_id=3), "'tree_id' is 3"),
        (own_turn(strategy=["Question"]), "turn 1: unknown key 'strategy'; did you mean 'strategies'"),
        (own_turn(strategies="Question"), "make it a list"),
        (own_turn(strategies=[1]), "the strategy is 1"),
        (own_turn(text="  "), "the message is empty"),
        (own_turn(speaker="seekr"), "unknown speaker 'seekr'"),
        (own_turn(speaker="seeker", strategies=["Question"]), "a seeker turn has no 'strategies'"),
        (own_turn(value=True), "'value' is True"),
        (own_turn(value="high"), "'value' is 'high'"),
        (own_turn(visits=0.5), "'visits' is 0.5"),
        (own_turn(visits=-1), "'visits' is -1"),
        (own_turn(rejected=[{"text": "b", "score": 1}]), "turn 1, rejected reply 1: unknown key 'score'"),
        (own_turn(rejected=["b"]), "the rejected reply is"),
        (pair(chosen=...), "no 'chosen' among"),
        (pair(reject=...), "no 'reject' among"),
        (pair(chosen="b"), "'chosen' is .b.. Fix: make it an object"),
        (pair(chosen={"role": "user", "content": "b"}), "'chosen' is not the supporter's"),
        (pair(reject={"role": "assistant", "content": "(Affirmation) "}), "'reject': the message is empty"),
        (pair(messages=[{"role": "user", "content": ""}]), "message 1: the message is empty"),
        (pair(reject={"role": "assistant", "content": "(Affirmation) b"}), "holds no dialogues"),
        ({"messages": [{"role": "user", "content": "a"}], "label": True}, "last message is not the supporter's"),
        ({"messages": [{"role": "assistant", "content": "a"}], "label": "true"}, "make it true or false"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "label": False},
            "without any preferred one of its seed",
        ),
        ({"messages": [{"role": "assistant", "content": "a", "negative": {}}]}, "'negative' is"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, record: Any, message: str) -> None:
    path = tmp_path / "corpus"
    path.write_text("\n" + json.dumps(record) + "\n" if isinstance(record, dict) else json.dumps([record]))
    with pytest.raises(UserError, match=message) as caught:
        read_dialogues(path)
    assert str(caught.value).startswith(str(path))
    assert "holds no dialogues" in message or caught.value.where.startswith((f"{path}:2", f"{path}, record 1"))  # type: ignore[union-attr]
    assert "\n" not in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"[]", "holds no dialogues"),
        (b'{"dialog": []}\n{"dialog"', ":2, column 10: broken JSON: Expecting ':'"),
        (b'[\n{"dialog": []},\n{"dialog" []}]', ':3, column 11: broken JSON: .*, in .*dialog" \\[\\]'),
        (b'{"dialog":\n{"dialog": []}', ":1, column 11: broken JSON"),
        (b'{\n "dialog": [\n  {"speaker" "usr"}\n]}', ":3, column 14: broken JSON"),
        (b'{\n "dialog": []\n} {"dialog": []}', ":3: more than one object in a line"),
        (b'{"text": "{dialog"}', ":1: the text in the one key 'text' is not JSON"),
        (b'{"dialog": NaN}', ":1: broken JSON: NaN"),
        (b'{"dialog": "\xff"}', "not UTF-8"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "corpus"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_dialogues(path)


def test_a_file_of_its_own_format_is_not_read_as_another(tmp_path: Path) -> None:
    path = save(tmp_path / "corpus", own())
    with pytest.raises(UserError, match="esc-lab's own format"):
        read_dialogues(path, "esc_pro")


def test_missing_file_format_inventory_and_mapping(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        read_dialogues(tmp_path / "corpus")
    path = save(tmp_path / "corpus", PUBLISHED)
    with pytest.raises(UserError, match="unknown format 'escon'; did you mean 'esconv'"):
        read_dialogues(path, "escon")
    with pytest.raises(UserError, match="unknown inventory 'sco'"):
        read_dialogues(path, inventory="sco")
    with pytest.raises(UserError, match="unknown inventory 'css'"):
        read_dialogues(path, mapping="css")
    with pytest.raises(UserError, match="no mapping from 'esconv' to 'cso'"):
        read_dialogues(path, mapping="cso")
    with pytest.raises(UserError, match="no 'content' among"):
        read_dialogues(path, "extes")


@pytest.mark.skipif(not sample_path().exists(), reason="the sample corpus is not there")
def test_sample_corpus() -> None:
    report = ReadReport()
    dialogues = read_dialogues(sample_path(), report=report)
    assert report.unlabelled_supporter_turns == 0
    assert any(turn.rejected for dialogue in dialogues for turn in dialogue.turns)


@pytest.mark.parametrize("record", [PUBLISHED, EXTES, OWN])
@pytest.mark.parametrize("depth", [500, 200_000])
def test_nesting_without_end_is_told(tmp_path: Path, record: dict[str, Any], depth: int) -> None:
    nested = json.dumps({**record, "meta": "NESTED"}).replace('"NESTED"', '{"a": ' * depth + "1" + "}" * depth)
    (tmp_path / "corpus").write_text(json.dumps(record) + "\n" + nested + "\n")
    with pytest.raises(UserError, match=r"corpus:2: (broken JSON: )?nested too deep\. Fix: "):
        read_dialogues(tmp_path / "corpus")
