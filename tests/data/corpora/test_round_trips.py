"""What is written is read back: exactly in esc-lab's own format, as far as each ESC-Pro form can hold it elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_lab.data.corpora import ReadReport, read_dialogues, stream_dialogues, write_dialogues
from esc_lab.data.corpora.esc_pro_tree import Seed, tree_id
from esc_lab.data.dialogue import Dialogue, Reply, Survey, Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError

NAMES = load_inventory("cso").names
TEXTS = st.one_of(
    st.text(min_size=1, max_size=20),
    st.sampled_from(["(Affirmation) no", "() x", "(sighs)", "a\u2028b", "a\n\nb", '"', "\\ud800", "[1]"]),
).map(str.strip)
FULL_TEXTS = TEXTS.filter(bool)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def replies(texts: st.SearchStrategy[str], *, searched: bool) -> st.SearchStrategy[Reply]:
    names = st.lists(st.sampled_from(NAMES), max_size=3 if searched else 1, unique=True).map(tuple)
    nothing = st.none()
    return st.builds(
        Reply,
        texts,
        names,
        st.one_of(nothing, FINITE, st.integers(-3, 1)) if searched else nothing,
        st.one_of(nothing, st.integers(0, 99)) if searched else nothing,
    )


@st.composite
def turn_lists(draw: st.DrawFn, texts: st.SearchStrategy[str], *, searched: bool) -> tuple[Turn, ...]:
    def turn(speaker: str) -> Turn:
        if speaker == "seeker":
            return Turn("seeker", Reply(draw(texts)))
        given_reply = draw(replies(texts, searched=searched))
        others = draw(st.lists(replies(texts, searched=searched), max_size=2, unique=True))
        return Turn("supporter", given_reply, tuple(other for other in others if other != given_reply))

    speakers = draw(st.lists(st.sampled_from(["seeker", "supporter"]), max_size=4))
    return tuple(turn(speaker) for speaker in [*speakers, "supporter"])


@st.composite
def seeded(draw: st.DrawFn, texts: st.SearchStrategy[str], meta: st.SearchStrategy[dict[str, Any]]) -> Dialogue:
    """A dialogue that the dialogue form of ESC-Pro can hold."""
    scene, description = draw(st.sampled_from(["", "Work"])), draw(st.sampled_from(["My boss. ", "Rent"]))
    turns = draw(turn_lists(texts, searched=False))
    return Dialogue(turns, "cso", tree_id(Seed(scene, description), turns), description, "", scene, draw(meta))


ANY = st.builds(
    Dialogue,
    turn_lists(FULL_TEXTS, searched=True),
    st.just("cso"),
    st.text(max_size=5),
    st.text(max_size=5),
    st.text(max_size=5),
    st.text(max_size=5),
    st.dictionaries(st.text(max_size=5), JSON, max_size=2),
    st.none() | st.builds(Survey, *[st.none() | st.integers(1, 5)] * 4),
)
FEW_TEXTS = st.sampled_from(["a", "b", "(c)"])
COLLIDING = st.lists(seeded(FEW_TEXTS, st.just({})), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpora") / "made" / "on demand" / "corpus"


@given(dialogues=st.lists(ANY, min_size=1, max_size=3))
@settings(max_examples=60)
def test_own_format_is_exact(dialogues: list[Dialogue], path: Path) -> None:
    assert write_dialogues(dialogues, path) == {}
    again = read_dialogues(path)
    assert again == dialogues
    assert [dialogue.id for dialogue in again] == [dialogue.id for dialogue in dialogues]


META = st.dictionaries(st.sampled_from(["iter", "source", "unpaired_rejected"]), JSON, max_size=2)


@given(dialogues=st.lists(seeded(FULL_TEXTS, META), min_size=1, max_size=3))
@settings(max_examples=60)
def test_esc_pro_dialogues_are_exact(dialogues: list[Dialogue], path: Path) -> None:
    assert write_dialogues(dialogues, path, "esc_pro_dialogues") == {}
    assert read_dialogues(path) == dialogues


Pair = tuple[str, str, tuple[tuple[str, Reply], ...], Reply, Reply]


def pairs_of(dialogues: list[Dialogue]) -> set[Pair]:
    return {
        (d.problem, d.situation, tuple((t.speaker, t.reply) for t in d.turns[:index]), turn.reply, other)
        for d in dialogues
        for index, turn in enumerate(d.turns)
        for other in turn.rejected
    }


@given(dialogues=COLLIDING)
@settings(max_examples=100)
def test_esc_pro_pairs_keep_the_set_of_pairs(dialogues: list[Dialogue], path: Path) -> None:
    pairs = pairs_of(dialogues)
    if not pairs:
        with pytest.raises(UserError, match=r"nothing to write as 'esc_pro_pairs'.* with a rejected reply"):
            write_dialogues(dialogues, path, "esc_pro_pairs")
        return
    write_dialogues(dialogues, path, "esc_pro_pairs")
    assert len(json.loads(path.read_text())) == len(pairs)
    report = ReadReport()
    again = read_dialogues(path, report=report)
    assert pairs_of(again) == pairs
    assert (report.duplicate_pairs, report.equal_pairs_dropped) == (0, 0)
    assert_no_path_extends_another(again)


def labelled(dialogues: list[Dialogue]) -> set[tuple[Any, Reply, bool]]:
    """Replies with the label whether they are preferred, without rejections that contradict the only preferred one."""
    found: set[tuple[Any, Reply, bool]] = set()
    for d in dialogues:
        decisions = set(d.decisions())
        for index, turn in enumerate(d.turns):
            prompt = (d.problem, d.situation, tuple((t.speaker, t.reply) for t in d.turns[:index]))
            if turn.speaker == "supporter" and (index in decisions or turn.rejected):
                found.add((prompt, turn.reply, True))
            found |= {(prompt, other, False) for other in turn.rejected}
    preferred: dict[Any, set[Reply]] = {}
    for prompt, reply, label in found:
        if label:
            preferred.setdefault(prompt, set()).add(reply)
    return {entry for entry in found if entry[2] or preferred[entry[0]] != {entry[1]}}


@given(dialogues=COLLIDING)
@settings(max_examples=100)
def test_esc_pro_kto_keeps_the_set_of_labelled_replies(dialogues: list[Dialogue], path: Path) -> None:
    expected = labelled(dialogues)
    if not expected:
        return
    write_dialogues(dialogues, path, "esc_pro_kto")
    again = read_dialogues(path)
    assert labelled(again) == expected
    assert_no_path_extends_another(again)


def assert_no_path_extends_another(dialogues: list[Dialogue]) -> None:
    paths = [(d.problem, d.situation, *((t.speaker, t.reply) for t in d.turns)) for d in dialogues]
    for index, path in enumerate(paths):
        assert not any(other[: len(path)] == path for other in paths[:index] + paths[index + 1 :])


def two_branches() -> list[Dialogue]:
    """Two dialogues of one seed that part at the second decision, and one of another seed."""
    opening = (
        Turn("seeker", Reply("hi")),
        Turn("supporter", Reply("one", ("Affirmation",)), (Reply("no one", ("Share Information",)),)),
        Turn("seeker", Reply("and then?")),
    )
    ends = [
        (Turn("supporter", Reply(text, ("Collaborative Planning",)), (Reply("no", ("Affirmation",)), Reply("nope"))),)
        for text in ("two", "(two)")
    ]
    other = (Turn("seeker", Reply("hey")), opening[1])
    seed = Seed("Work", "My boss keeps my tips.")
    return [
        Dialogue(turns, "cso", tree_id(seed, turns), seed.description, "", seed.scene)
        for turns in (opening + ends[0], opening + ends[1], other)
    ]


@pytest.mark.parametrize("format", ["esc_pro_pairs", "esc_pro_kto", "esc_pro_dialogues", "jsonl"])
@pytest.mark.parametrize("arrange", [list, lambda items: items[::-1]], ids=["as written", "reversed"])
def test_branches_of_a_seed_stay_dialogues_and_share_their_tree(
    format: str, arrange: Callable[[list[Any]], list[Any]], path: Path
) -> None:
    dialogues = two_branches()
    assert write_dialogues(dialogues, path, format) == {}
    if format != "jsonl":
        path.write_text(json.dumps(arrange(json.loads(path.read_text()))))

    def content(dialogue: Dialogue) -> Any:
        return dialogue.tree_id, [(turn.reply, set(turn.rejected)) for turn in dialogue.turns]

    again = read_dialogues(path)
    assert sorted(map(content, again), key=str) == sorted(map(content, dialogues), key=str)
    assert len({dialogue.tree_id for dialogue in again}) == 2


def test_pairs_of_the_published_kind(tmp_path: Path) -> None:
    """System messages, `rejected` for `reject`, a repeated pair, equal replies, a turn without a pair, extra keys."""

    def record(history: list[tuple[str, str]], chosen: str, rejected: str, key: str = "reject") -> dict[str, Any]:
        messages = [{"role": role, "content": content} for role, content in [("system", "Be kind."), *history]]
        replies = {"chosen": chosen, key: rejected}
        return {"scene": "Work", "description": "Tips.", "messages": messages} | {
            name: {"role": "assistant", "content": text} for name, text in replies.items()
        }

    first = [("user", "hi")]
    middle = [*first, ("assistant", "(affirmation) one "), ("user", "and?"), ("assistant", "(Affirmation) two")]
    last = [*middle, ("user", "so?")]
    records = [
        record(last, "(Affirmation) three", "(Share Information) no three"),
        record(first, "(Affirmation) one", "(Share Information) no one", "rejected"),
        record(first, "(Affirmation) one", "(Share Information) no one"),
        record(first, "(Affirmation) one", "(Emotional Validation) not one") | {"score": 1},
        record(first, "(Affirmation) one", "(Affirmation) one"),
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    report = ReadReport()
    (dialogue,) = read_dialogues(path, report=report)
    assert [(turn.reply.text, [other.text for other in turn.rejected]) for turn in dialogue.turns] == [
        ("hi", []),
        ("one", ["no one", "not one"]),
        ("and?", []),
        ("two", []),
        ("so?", []),
        ("three", ["no three"]),
    ]
    assert (dialogue.situation, dialogue.problem, dialogue.inventory) == ("Tips.", "Work", "cso")
    assert (report.system_messages_dropped, report.duplicate_pairs, report.equal_pairs_dropped) == (5, 1, 1)
    assert (report.keys_ignored, report.dialogues) == (1, 1)


def test_rejected_kto_replies_without_a_preferred_one_survive(tmp_path: Path) -> None:
    def record(label: bool, *texts: str) -> dict[str, Any]:
        roles = ["user", "assistant"] * len(texts)
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
        return {"scene": "Work", "description": "Tips.", "messages": messages, "label": label}

    records = [
        record(False, "hi", "(Affirmation) worse"),
        record(True, "hi", "(Affirmation) one"),
        record(False, "hi", "(Affirmation) one", "and?", "(Affirmation) no two"),
        record(False, "hi", "(Affirmation) other", "well", "(Affirmation) no"),
        record(False, "hi", "() (bare)"),
        record(True, "hi", "(Affirmation) other"),
        record(False, "hey", "(Affirmation) hm", "what", "(Affirmation) no"),
        record(True, "hey", "(Affirmation) hm"),
    ]
    path, report = tmp_path / "kto", ReadReport()
    path.write_text(json.dumps(records))
    dialogues = read_dialogues(path, report=report)
    assert [dialogue.turns[1].reply.text for dialogue in dialogues] == ["one", "other", "hm"]
    assert [len(dialogue.meta["unpaired_rejected"]) for dialogue in dialogues] == [1, 1, 1]
    assert report.unpaired_rejected == 3
    for format in ("esc_pro_kto", "esc_pro_dialogues", "jsonl"):
        write_dialogues(dialogues, path, format)
        assert read_dialogues(path) == dialogues
    write_dialogues(dialogues, path, "esc_pro_kto")

    def key(item: dict[str, Any]) -> str:
        return json.dumps(item, sort_keys=True)

    assert sorted(json.loads(path.read_text()), key=key) == sorted(records, key=key)


def test_a_kto_reply_that_is_preferred_and_rejected_is_not_rejected_beside_itself(tmp_path: Path) -> None:
    def record(label: bool, reply: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": reply}]
        return {"messages": messages, "label": label}

    path, report = tmp_path / "kto", ReadReport()
    path.write_text(json.dumps([record(True, "a"), record(False, "a"), record(False, "b"), record(False, "b")]))
    (dialogue,) = read_dialogues(path, report=report)
    assert dialogue.turns[1] == Turn("supporter", Reply("a"), (Reply("b"),))
    assert (report.equal_pairs_dropped, report.duplicate_pairs) == (1, 1)
    path.write_text(json.dumps([record(True, "a"), record(False, "a"), record(True, "b")]))
    first, second = read_dialogues(path)
    assert (first.turns[1].rejected, second.turns[1].rejected) == ((), (Reply("a"),))


def test_negatives_that_repeat_or_equal_the_reply_are_dropped(tmp_path: Path) -> None:
    negative = [{"content": text, "strategy": "Affirmation"} for text in ("a", "b", "b ")]
    message = {"role": "assistant", "content": "a", "strategy": "Affirmation", "negative": negative}
    path, report = tmp_path / "dialogues", ReadReport()
    path.write_text(json.dumps([{"messages": [message]}]))
    (dialogue,) = read_dialogues(path, report=report)
    assert [other.text for other in dialogue.turns[0].rejected] == ["b"]
    assert (report.equal_pairs_dropped, report.duplicate_pairs, report.texts_stripped) == (1, 1, 1)


def test_history_without_its_own_record_makes_a_dialogue(tmp_path: Path) -> None:
    messages = [("user", "hi"), ("assistant", "(Affirmation) one"), ("user", "and?"), ("assistant", "(Affirmation) no")]
    record = {"messages": [{"role": role, "content": text} for role, text in messages], "label": False}
    path = tmp_path / "kto"
    path.write_text(json.dumps([record]))
    (dialogue,) = read_dialogues(path)
    assert [turn.reply.text for turn in dialogue.turns] == ["hi", "one"]
    assert dialogue.meta["unpaired_rejected"] == [record["messages"]]


def test_what_a_form_cannot_hold_is_counted(tmp_path: Path) -> None:
    turns = (
        Turn("seeker", Reply("hi")),
        Turn("supporter", Reply("a", ("Question", "Others"), 0.5, 3), (Reply("a", ("Question",)), Reply("b"))),
        Turn("seeker", Reply("bye")),
    )
    dialogue = Dialogue(turns, "esconv", "mine", emotion="anger", meta={"label": 1, "iter": 3}, survey=Survey(4))
    common = {
        "values or visits": 1,
        "further strategies": 1,
        "emotions": 1,
        "surveys": 1,
        "inventory names": 1,
        "tree ids": 1,
        "rejected replies equal to the given one": 1,
    }
    path = tmp_path / "corpus"
    assert write_dialogues([dialogue], path, "esc_pro_dialogues") == common | {"meta entries": 1}
    assert json.loads(path.read_text())[0]["iter"] == 3
    lost = write_dialogues([dialogue], path, "esc_pro_pairs")
    assert lost == common | {"meta entries": 2, "turns after the last pair": 1}
    lost = write_dialogues([dialogue], path, "esc_pro_kto")
    assert lost == common | {"meta entries": 2, "turns after the last reply": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turns": (Turn("supporter", Reply(" a")),)}, "turn 1: the text ' a' is empty or has white space"),
        ({"turns": (Turn("supporter", Reply("a"), (Reply(""),)),)}, "turn 1: the text '' is empty"),
        ({"turns": (Turn("seeker", Reply("a")),)}, "no supporter turn"),
        ({"turns": (Turn("supporter", Reply("a", ("Affirmtion",))),)}, "did you mean 'Affirmation'"),
        ({"turns": (Turn("supporter", Reply("a", ("affirmation",))),)}, "would not be read back as it is"),
        ({"turns": (Turn("supporter", Reply("a", value=float("nan"))),)}, "not JSON"),
        ({"meta": {1: 2}}, "would not be read back as it is"),
        ({"meta": {"a": {1}}}, "not JSON"),
        ({"situation": "\ud800"}, "not JSON"),
        ({"inventory": "mine"}, "unknown inventory 'mine'"),
    ],
)
def test_own_format_refuses_what_it_could_not_read(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    dialogue = Dialogue(**({"turns": (Turn("supporter", Reply("a")),), "inventory": "cso", "tree_id": "t"} | changes))
    path = tmp_path / "corpus"
    path.write_text("before")
    with pytest.raises(UserError, match=message):
        write_dialogues([two_branches()[0], dialogue], path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["corpus"]


def test_streamed_dialogues_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    first, second = two_branches()[:2]
    path, cso = tmp_path / "new" / "corpus.jsonl", load_inventory("cso")
    with stream_dialogues(path, cso) as write:
        write([first])
        assert not path.exists()
        write([second, first])
    assert read_dialogues(path) == [first, second, first]
    wrong = Dialogue((Turn("supporter", Reply("a", ("Affirmtion",))),), "cso")
    with pytest.raises(UserError, match="did you mean 'Affirmation'"), stream_dialogues(path, cso) as write:
        write([second, wrong])
    assert read_dialogues(path) == [first, second, first]
    with stream_dialogues(path, cso):
        pass
    assert os.listdir(path.parent) == []


def test_unwritable_places_empty_lists_and_unknown_formats(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_dialogues(two_branches(), tmp_path / "file" / "corpus")
    with pytest.raises(UserError, match="cannot write"):
        write_dialogues(two_branches(), tmp_path)
    with pytest.raises(UserError, match="nothing to write as 'jsonl'"):
        write_dialogues([], tmp_path / "corpus")
    with pytest.raises(UserError, match="unknown format 'esc_pro_pair'; did you mean 'esc_pro_pairs'"):
        write_dialogues(two_branches(), tmp_path / "corpus", "esc_pro_pair")
