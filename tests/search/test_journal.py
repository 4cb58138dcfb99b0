"""The journal of a tree: nothing finished is lost, whatever happens to the file."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from esc_lab.errors import UserError
from esc_lab.prompts import Message
from esc_lab.search.journal import FORMAT, Journal, read_journal_config
from esc_lab.search.requests import Answer, Request
from tests.conftest import ROOT

CONFIG: dict[str, Any] = {"seed": 1, "roles": {"judge": {"temperature": 1.0, "client": {"model": "m"}}}, "axes": [1, 2]}
REQUEST = Request("judge", (Message("user", "How good is it?"),), sample=2)
ANSWERS = {
    "a": Answer("Plain.", model="m-1", prompt_tokens=3, completion_tokens=2, cost=0.25),
    "b": Answer(log_probs=((-0.5, -1.5), (-30.0, 0.0)), model="m-1"),
    "c": Answer("Zwei\nZeilen\r\u2028\x00\x85 日本 é \U0001f600 \"'\\ <|im_end|>", refusal="no\tway"),
}


def written(path: Path, answers: dict[str, Answer] = ANSWERS, config: dict[str, Any] = CONFIG) -> Journal:
    """A closed journal with these answers."""
    journal = Journal(path, config)
    for key, answer in answers.items():
        journal.add(key, REQUEST, answer, cached=key == "b")
    journal.sync()
    return journal


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "trees" / "one.journal.jsonl"
    journal = written(path)
    again = Journal(path, CONFIG)
    again.sync()
    assert again.answers == journal.answers == ANSWERS
    assert list(again.answers) == list("abc")
    assert again.cached == journal.cached == {"b"}
    assert (again.first, again.last) == (journal.first, journal.last)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", again.first)
    assert again.first <= again.last
    header, *lines = map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])
    assert header == {"format": FORMAT, "config": CONFIG}
    assert [(line["key"], line["role"], line["sample"], line["cached"]) for line in lines] == [
        ("a", "judge", 2, False),
        ("b", "judge", 2, True),
        ("c", "judge", 2, False),
    ]
    assert lines[0]["answer"] == {**ANSWERS["a"].to_json(), "log_probs": []}
    assert read_journal_config(path) == CONFIG


def test_a_call_is_in_the_file_before_anything_is_synced(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", CONFIG)
    assert (journal.first, journal.last) == ("", "")
    for number, (key, answer) in enumerate(ANSWERS.items(), start=2):
        journal.add(key, REQUEST, answer)
        assert (tmp_path / "j").read_bytes().count(b"\n") == number
        assert journal.answers[key] is answer
    journal.sync()


def test_a_torn_last_line_is_dropped_wherever_it_ends(tmp_path: Path) -> None:
    written(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    path = tmp_path / "torn"
    for length in [*range(0, ends[-2], 29), *range(ends[-2], ends[-1])]:
        path.write_bytes(whole[:length])
        journal = Journal(path, CONFIG)
        kept = sum(end <= length for end in ends[1:])
        assert list(journal.answers) == list("abc"[:kept])
        assert path.read_bytes() == whole[: ends[kept]]
        for key in "abc":
            journal.add(key, REQUEST, ANSWERS[key], cached=key == "b")
        again = Journal(path, CONFIG)
        assert again.answers == ANSWERS


def test_a_tail_of_zeros_after_a_crash_is_dropped(tmp_path: Path) -> None:
    written(tmp_path / "j")
    with (tmp_path / "j").open("ab") as file:
        file.write(bytes(300))
    assert Journal(tmp_path / "j", CONFIG).answers == ANSWERS


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\x00\x00",
        b"\xff\xfe",
        b'{"key": "b", "ro',
        b"[]",
        b"7",
        b"{}",
        b'{"key": "b", "at": "", "cached": false}',
        b'{"key": "b", "at": "", "cached": false, "answer": {"log_probs": [], "colour": "red"}}',
        b'{"key": "b", "at": "", "cached": false, "answer": 3}',
        b'{"key": "b", "at": "", "cached": false, "answer": {"text": "x"}}',
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    written(tmp_path / "j")
    lines = (tmp_path / "j").read_bytes().split(b"\n")
    lines[2] = line
    (tmp_path / "j").write_bytes(b"\n".join(lines))
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(UserError, match=r"j:3: not a line of a journal\. Fix: take the line out"):
        Journal(tmp_path / "j", CONFIG)
    assert (tmp_path / "j").read_bytes() == before
    (tmp_path / "j").write_bytes(b"\n".join([*lines[:2], *lines[3:]]))
    assert set(Journal(tmp_path / "j", CONFIG).answers) == {"a", "c"}


@pytest.mark.parametrize(
    "content",
    [b"no journal", b"no journal\n", b"{}\n", b'{"format": "esc-lab-journal/0", "config": {}}\n', b"\x00", b"[1]\n"],
)
def test_another_file_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(UserError, match="not a"):
        Journal(tmp_path / "j", CONFIG)
    assert (tmp_path / "j").read_bytes() == content


def test_a_journal_of_another_configuration_is_refused_with_what_differs(tmp_path: Path) -> None:
    written(tmp_path / "j", {"a": ANSWERS["a"]})
    with (tmp_path / "j").open("ab") as file:
        file.write(b'{"key"')  # torn, and not to be mended by somebody else
    before = (tmp_path / "j").read_bytes()
    config = {
        "seed": 2,
        "roles": {"judge": {"temperature": 1.0, "client": {"model": "n" * 100}}, "seeker": {"attempts": 3}},
        "axes": [1, 3],
    }
    with pytest.raises(UserError) as error:
        Journal(tmp_path / "j", config)
    said = str(error.value)
    assert 'of another configuration: axes was [1, 2], is [1, 3]; roles.judge.client.model was "m", is "nnn' in said
    assert "n" * 60 not in said
    assert "; roles.seeker.attempts was null, is 3; seed was 1, is 2. Fix: set it back" in said
    assert "temperature" not in said
    assert (tmp_path / "j").read_bytes() == before
    with pytest.raises(UserError, match=r"4 was null, is 4 and 3 more\. Fix"):
        Journal(tmp_path / "j", {**CONFIG, "new": {str(number): number for number in range(8)}})


def test_tuples_and_order_are_no_difference(tmp_path: Path) -> None:
    written(tmp_path / "j")
    Journal(tmp_path / "j", {"axes": (1, 2), **{key: CONFIG[key] for key in ("roles", "seed")}})


def test_the_first_answer_to_a_key_stands(tmp_path: Path) -> None:
    journal = written(tmp_path / "j", {"a": ANSWERS["a"]})
    journal = Journal(tmp_path / "j", CONFIG)
    first, last = journal.first, journal.last
    journal.add("a", REQUEST, Answer("Other."), cached=True)
    journal.sync()
    assert (journal.answers, journal.cached, journal.first, journal.last) == ({"a": ANSWERS["a"]}, set(), first, last)
    lines = (tmp_path / "j").read_text().splitlines(keepends=True)
    assert len(lines) == 2
    other = {**json.loads(lines[1]), "at": "2999", "cached": True, "answer": vars(Answer("Other."))}
    (tmp_path / "j").write_text("".join([*lines, json.dumps(other), "\n"]))
    again = Journal(tmp_path / "j", CONFIG)
    assert (again.answers, again.cached, again.last) == ({"a": ANSWERS["a"]}, set(), last)


FULL = """
import resource, signal, sys
from pathlib import Path
from esc_lab.errors import UserError
from esc_lab.prompts import Message
from esc_lab.search.journal import Journal
from esc_lab.search.requests import Answer, Request

request = Request("judge", (Message("user", "?"),))
path, limit = Path(sys.argv[1]), int(sys.argv[2])
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
kept = 0
try:
    journal = Journal(path, {"seed": 1})
    for number in range(100):
        journal.add(str(number), request, Answer(f"answer {number}"))
        kept += 1
except UserError as error:
    print(error)
print(kept, path.stat().st_size)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
if kept:
    assert str(kept) not in journal.answers
    journal.add("room again", request, Answer("yes"))
    journal.sync()
"""


@pytest.mark.parametrize("limit", [0, 1, 20, 100, 1000, 1001, 1150, 1300])
def test_a_full_disk(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "j"
    arguments = [sys.executable, "-c", FULL, str(path), str(limit)]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=True)
    error, kept = done.stdout.splitlines()
    assert error == f"{path}: cannot write: File too large. Fix: make room or choose another place; " + (
        "resume=<run directory> goes on from here"
    )
    count, size = map(int, kept.split())
    assert size <= limit
    journal = Journal(path, {"seed": 1})
    assert list(journal.answers) == [*map(str, range(count)), *(["room again"] if count else [])]
    assert (limit < 1000) == (count == 0)


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    for path in (tmp_path / "file" / "j", tmp_path / "directory"):
        with pytest.raises(UserError, match=r"cannot write: (Not a directory|File exists|Is a directory)"):
            Journal(path, CONFIG)


def test_a_file_that_gets_lost(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", CONFIG)
    journal.add("a", REQUEST, ANSWERS["a"])
    journal.path.unlink()
    journal.path.mkdir()
    with pytest.raises(UserError, match="cannot write: Is a directory"):
        journal.sync()
    with pytest.raises(UserError, match="cannot write: Is a directory"):
        journal.add("b", REQUEST, ANSWERS["b"])
    assert "b" not in journal.answers


def test_more_journals_than_open_files(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        journals = [Journal(tmp_path / str(number), CONFIG) for number in range(200)]
        for journal in journals:
            journal.add("a", REQUEST, ANSWERS["a"])
            journal.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thread_may_sync_while_calls_are_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", CONFIG)
    over, errors, syncs = threading.Event(), [], []

    def sync() -> None:
        while not over.is_set():
            try:
                journal.sync()
            except UserError as error:
                errors.append(error)
            syncs.append(1)

    thread = threading.Thread(target=sync)
    thread.start()
    while len(journal.answers) < 300 or len(syncs) < 3:
        journal.add(str(len(journal.answers)), REQUEST, Answer("x" * 500))
    over.set()
    thread.join()
    journal.sync()
    assert not errors
    assert Journal(tmp_path / "j", CONFIG).answers == journal.answers


def test_the_configuration_of_what_is_no_journal(tmp_path: Path) -> None:
    for content in (b"", b"\n", b"\xff\n", b"[]\n", b"{}\n", b'{"format"'):
        (tmp_path / "j").write_bytes(content)
        assert read_journal_config(tmp_path / "j") is None


def test_keys_that_were_renamed_since_are_the_same(tmp_path: Path) -> None:
    old = {"seed": 1, "search": {"c": 1.0, "enough_iterations": 100, "most_ended": 25}}
    new = {"seed": 1, "search": {"c": 1.0, "min_iterations": 100, "max_ended": 25}}
    Journal(tmp_path / "j", old).add("a", REQUEST, ANSWERS["a"])
    assert Journal(tmp_path / "j", new).answers == {"a": ANSWERS["a"]}
    new["search"] = {"c": 1.0, "min_iterations": 50, "max_ended": 25}
    with pytest.raises(UserError, match=r"search\.min_iterations was 100, is 50"):
        Journal(tmp_path / "j", new)


def test_older_journals_name_how_many_leaves_were_in_flight_which_their_answers_do_not_depend_on(
    tmp_path: Path,
) -> None:
    Journal(tmp_path / "j", {"search": {"c": 1.0, "in_flight": 4}}).add("a", REQUEST, ANSWERS["a"])
    assert Journal(tmp_path / "j", {"search": {"c": 1.0}}).answers == {"a": ANSWERS["a"]}


@pytest.mark.parametrize(
    "answer",
    ['{"text": 5, "log_probs": []}', '{"log_probs": [["a"]]}', '{"cost": "much", "log_probs": []}', "[" * 50_000],
)
def test_answers_of_wrong_types_are_damage(tmp_path: Path, answer: str) -> None:
    path = tmp_path / "journal"
    Journal(path, {"tree": 1}).sync()
    with path.open("a") as file:
        file.write(f'{{"key": "a", "role": "judge", "at": "", "cached": false, "answer": {answer}}}\n')
    with pytest.raises(UserError, match=r"journal:2: not a line of a journal"):
        Journal(path, {"tree": 1})
