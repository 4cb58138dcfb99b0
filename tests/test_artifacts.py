"""Whole files or none, one build for everybody, whatever fails or is killed meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esc_lab.artifacts import (
    _VERIFIED,
    cached,
    file_fingerprint,
    fingerprint,
    replace_file,
    write_atomic,
)
from esc_lab.errors import UserError

SPAWN = multiprocessing.get_context("spawn")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def content(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir() if path.is_file()}


# --- fingerprints


@given(st.dictionaries(st.text(), JSON, min_size=2, max_size=4))
def test_fingerprints_forget_the_order_of_keys_and_nothing_else(value):
    assert fingerprint(dict(reversed(value.items()))) == fingerprint(value)
    key = next(iter(value))
    assert fingerprint({**value, key: [value[key]]}) != fingerprint(value)
    assert len(fingerprint(value)) == 16


def test_file_fingerprint_is_of_the_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert file_fingerprint(path) == "ba7816bf8f01cfea"  # FIPS 180-2, appendix B.1


# --- write_atomic


def test_writing_replaces_whole_files_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    write_atomic(path, "Grüße")
    assert path.read_bytes() == "Grüße\n".encode()
    write_atomic(path, "two\n")
    assert content(path.parent) == {"file.txt": "two\n"}
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "half \ud800")
    assert content(tmp_path) == {"file.txt": "old\n"}


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("")
    for path in (tmp_path / "file" / "below", tmp_path / "folder"):
        with pytest.raises(UserError, match=f"{path}: cannot write: .* Fix: "):
            write_atomic(path, "text")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_full_disk_is_the_users_to_mend(tmp_path):
    # A file size limit of this process stands in for the full disk.
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match="cannot write: File too large"):
            write_atomic(tmp_path / "file.txt", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


def write_often(path: Path, letter: str) -> None:
    for _ in range(300):
        write_atomic(path, letter * 20_000)


def test_two_writers_never_mix(tmp_path):
    path = tmp_path / "file.txt"
    write_atomic(path, "a" * 20_000)
    writers = [SPAWN.Process(target=write_often, args=(path, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_text() in ("a" * 20_000 + "\n", "b" * 20_000 + "\n")
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1


# --- cached


def test_a_hit_builds_nothing(tmp_path):
    def build(directory: Path) -> None:
        (directory / "weights").write_text("1")

    first, there = cached(tmp_path, "kind", {"a": 1}, build)
    assert not there
    assert content(first)["weights"] == "1"
    assert content(first)["inputs.json"] == '{\n  "a": 1\n}\n'
    assert first.stat().st_mode & 0o777 == 0o755
    assert cached(tmp_path, "kind", {"a": 1}, lambda directory: pytest.fail("built again")) == (first, True)
    other, there = cached(tmp_path, "kind", {"a": 2}, build)
    assert (other != first, there) == (True, False)
    assert cached(tmp_path, "other", {"a": 1}, build)[0] != first


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_failed_build_leaves_nothing_and_can_be_repeated(tmp_path, error):
    def fail(directory: Path) -> None:
        (directory / "half").write_text("")
        raise error

    with pytest.raises(type(error)):
        cached(tmp_path, "kind", {}, fail)
    assert [path for path in (tmp_path / "kind").iterdir() if path.is_dir()] == []
    directory, there = cached(tmp_path, "kind", {}, lambda directory: None)
    assert not there
    assert content(directory).keys() == {"inputs.json", ".checksums.json"}


def test_files_of_an_artifact_are_read_only_and_readable_by_others(tmp_path):
    def build(directory: Path) -> None:
        (directory / "folder").mkdir()
        (directory / "folder" / "weights").write_text("1")
        (directory / "folder" / "weights").chmod(0o600)

    directory, _ = cached(tmp_path, "kind", {}, build)
    assert {path.stat().st_mode & 0o777 for path in directory.rglob("*") if path.is_file()} == {0o444}


def cut_short(directory: Path) -> None:
    (directory / "weights").write_text("1")


def change(directory: Path) -> None:
    (directory / "weights").write_text("124")


def lose(directory: Path) -> None:
    (directory / "weights").unlink()


def lose_inputs(directory: Path) -> None:
    (directory / "inputs.json").unlink()


def nest_checksums(directory: Path) -> None:
    (directory / ".checksums.json").write_text("[" * 200_000)


@pytest.mark.parametrize("damage", [cut_short, change, lose, lose_inputs, nest_checksums])
def test_an_artifact_that_is_not_as_it_was_written_is_made_again(tmp_path, caplog, damage):
    def build(directory: Path) -> None:
        (directory / "weights").write_text("123")

    directory, _ = cached(tmp_path, "kind", {}, build)
    for path in directory.iterdir():
        path.chmod(0o644)
    damage(directory)
    _VERIFIED.clear()  # as in another process
    assert cached(tmp_path, "kind", {}, build) == (directory, False)
    assert "it is made again" in caplog.text
    assert content(directory)["weights"] == "123"
    assert cached(tmp_path, "kind", {}, build) == (directory, True)


def test_a_change_is_seen_in_the_same_process(tmp_path):
    directory, _ = cached(tmp_path, "kind", {}, lambda directory: write_atomic(directory / "weights", "123"))
    assert cached(tmp_path, "kind", {}, cut_short) == (directory, True)
    (directory / "weights").chmod(0o644)
    cut_short(directory)
    assert cached(tmp_path, "kind", {}, cut_short) == (directory, False)


def test_an_artifact_of_older_code_has_no_checksums(tmp_path):
    directory, _ = cached(tmp_path, "kind", {}, cut_short)
    (directory / ".checksums.json").unlink()
    assert cached(tmp_path, "kind", {}, cut_short) == (directory, True)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    def interrupt() -> None:
        with replace_file(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    (tmp_path / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert content(tmp_path) == {"file": "old"}
    with replace_file(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert content(tmp_path) == {"file": "new"}


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: cannot write: .* Fix: set cache_dir"):
        cached(tmp_path / "file", "kind", {}, lambda directory: None)


def build_slowly(root: Path, results: multiprocessing.Queue[tuple[str, bool]]) -> None:
    def build(directory: Path) -> None:
        with (root / "builds").open("a") as file:
            file.write("one\n")
        (directory / "half").write_text("")
        time.sleep(0.3)
        (directory / "other half").write_text("")

    directory, there = cached(root, "kind", {"a": 1}, build)
    assert (directory / "other half").exists()
    results.put((str(directory), there))


def test_two_processes_build_once(tmp_path):
    results = SPAWN.Queue()
    builders = [SPAWN.Process(target=build_slowly, args=(tmp_path, results)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
        assert builder.exitcode == 0
    found = [results.get() for _ in builders]
    assert found[0][0] == found[1][0]
    assert (tmp_path / "builds").read_text() == "one\n"
    assert sorted(there for _, there in found) == [False, True]


def build_for_ever(root: Path) -> None:
    def build(directory: Path) -> None:
        (directory / "half").write_text("")
        (root / "started").write_text("")
        time.sleep(600)

    cached(root, "kind", {"a": 1}, build)


def test_a_killed_builder_neither_blocks_nor_leaves_anything(tmp_path):
    builder = SPAWN.Process(target=build_for_ever, args=(tmp_path,))
    builder.start()
    while not (tmp_path / "started").exists():
        assert builder.is_alive()
        time.sleep(0.01)
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    assert len(list((tmp_path / "kind").glob(".*"))) == 1
    directory, there = cached(tmp_path, "kind", {"a": 1}, lambda directory: None)
    assert not there
    assert content(directory).keys() == {"inputs.json", ".checksums.json"}
    assert [path for path in (tmp_path / "kind").iterdir() if path.is_dir()] == [directory]
