"""The request cache, alone and shared by processes."""

from __future__ import annotations

import errno
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from esc_lab.errors import UserError
from esc_lab.search.cache import RequestCache
from esc_lab.search.requests import Answer
from tests.conftest import ROOT

ANSWERS = {
    "a": Answer("Plain.", model="m-1", prompt_tokens=3, completion_tokens=2, cost=0.25, refusal="no"),
    "b": Answer(log_probs=((-0.5, -1.5), (-30.0, 0.0)), model="m-1"),
    "c": Answer("\x00 日本 \U0001f600 \"'\\\n\u2028'); DROP TABLE answers; --"),
}


def test_answers_survive_reopening(tmp_path: Path) -> None:
    path = tmp_path / "new" / "requests.sqlite"
    cache = RequestCache(path)
    for key, answer in ANSWERS.items():
        assert cache.get(key) is None
        cache.put(key, answer)
        assert cache.get(key) == answer
    cache.close()
    cache = RequestCache(path)
    assert {key: cache.get(key) for key in ANSWERS} == ANSWERS
    assert cache.get("d") is None
    cache.put("a", Answer("Later."))
    assert cache.get("a") == Answer("Later.")
    cache.close()


def test_what_was_put_outlives_a_process_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from esc_lab.search.cache import RequestCache; from esc_lab.search.requests import Answer\n"
        "cache = RequestCache(Path(sys.argv[1]))\n"
        "for number in range(50): cache.put(str(number), Answer(f'answer {number}'))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "requests.sqlite"
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT).returncode == -9
    cache = RequestCache(path)
    assert [cache.get(str(number)) for number in range(50)] == [Answer(f"answer {number}") for number in range(50)]


BESIDE = """
import sys
from pathlib import Path
from esc_lab.search.cache import RequestCache
from esc_lab.search.requests import Answer

path, name = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
cache = RequestCache(path)
for number in range(150):
    cache.put(f"{name} {number}", Answer(f"{name} {number}"))
    cache.put(f"both {number}", Answer(f"both {number}"))
    assert cache.get(f"{name} {number}") == Answer(f"{name} {number}")
cache.close()
"""


def test_processes_open_and_use_one_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "requests.sqlite"
    names = ("one", "two", "three")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BESIDE, str(path), name], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for name in names
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:  # now all at once
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    cache = RequestCache(path)
    for name in (*names, "both"):
        assert all(cache.get(f"{name} {number}") == Answer(f"{name} {number}") for number in range(150))


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "requests.sqlite"
    path.write_text("These are notes.\n" * 100)
    with pytest.raises(UserError, match=r"requests\.sqlite: the request cache does not work: file is not a database"):
        RequestCache(path)
    assert path.read_text() == "These are notes.\n" * 100
    with pytest.raises(
        UserError, match=r"does not work: .*Fix: make room, delete the file, or use search\.cache=false"
    ):
        RequestCache(path / "below")
    with pytest.raises(UserError, match="unable to open"):
        RequestCache(tmp_path)


def test_a_database_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "requests.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE answers (question TEXT)")
    other.close()
    cache = RequestCache(path)
    with pytest.raises(UserError, match="no such column"):
        cache.get("a")
    with pytest.raises(UserError, match="does not work"):
        cache.put("a", Answer())


def test_a_damaged_answer(tmp_path: Path) -> None:
    path = tmp_path / "requests.sqlite"
    RequestCache(path).close()
    for text in ("{", "[]", json.dumps({"text": "x"}), json.dumps({"log_probs": [], "colour": "red"})):
        file = sqlite3.connect(path)
        file.execute("INSERT OR REPLACE INTO answers VALUES ('a', ?)", (text,))
        file.commit()
        file.close()
        with pytest.raises(UserError, match="does not work"):
            RequestCache(path).get("a")


FULL = """
import logging, resource, sys
from pathlib import Path
from esc_lab.search.cache import RequestCache
from esc_lab.search.requests import Answer

logging.basicConfig(stream=sys.stdout, format="%(message)s")
cache = RequestCache(Path(sys.argv[1]))
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
for number in range(1000):
    cache.put(str(number), Answer("x" * 1000))
print(sum(cache.get(str(number)) is not None for number in range(1000)))
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """It takes no more answers, and says so once."""
    path = tmp_path / "requests.sqlite"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
    warning, kept = done.stdout.splitlines()
    assert warning.startswith(f"{path}: the request cache takes no more answers: ")
    assert 5 < int(kept) < 1000
    cache = RequestCache(path)
    assert all(cache.get(str(number)) == Answer("x" * 1000) for number in range(int(kept)))
    cache.put("room again", Answer())
    assert cache.get("room again") == Answer()


def test_a_disk_without_room_for_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """The search goes on without a cache, and is told so once."""

    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", no_room)
    cache = RequestCache(tmp_path / "new" / "requests.sqlite")
    cache.put("a", ANSWERS["a"])
    assert cache.get("a") is None
    cache.close()
    assert [record.getMessage().count("takes no more answers") for record in caplog.records] == [1]
