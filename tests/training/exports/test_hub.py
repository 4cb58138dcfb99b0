"""Directories pushed to a stand-in of the hub, and what is said where it cannot be done."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esc_lab.config.export import ExportConfig
from esc_lab.errors import UserError
from esc_lab.training.exports.hub import check_repository, push_directory
from tests.training.exports.hub_server import SIGNATURE, TOKEN, Hub, Repo, serving, use

FILES = {"README.md": b"---\nlicense: mit\n---\n", "sft/train.jsonl": b"{}\n", "model.safetensors": b"\x00" * 2048}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as held:
        use(held, monkeypatch)
        yield held


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "data"


def push(directory: Path, kind: Any = "dataset", **settings: Any) -> str:
    config = ExportConfig(**{"push": "me/esc-pro", "licence": "mit", **settings})
    return push_directory(check_repository(config, kind), directory)


def complaint(directory: Path, caplog: pytest.LogCaptureFixture, **settings: Any) -> str:
    with pytest.raises(UserError) as raised:
        push(directory, **settings)
    assert TOKEN not in f"{raised.value} {raised.value.__cause__} {caplog.text}"
    assert raised.value.__suppress_context__ or raised.value.__context__ is None  # a trace would show what was sent
    return str(raised.value)


@pytest.mark.parametrize(("kind", "name"), [("dataset", "datasets/me/esc-pro"), ("model", "models/me/esc-pro")])
def test_a_new_repository_is_private_and_has_all_files_in_one_commit(
    hub: Hub, directory: Path, kind: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    address = push(directory, kind)
    assert address.endswith("me/esc-pro")
    assert hub.repos == {name: Repo(private=True, commits=[FILES])}
    assert any(SIGNATURE in request for request in hub.requests)
    assert SIGNATURE not in caplog.text
    assert TOKEN not in caplog.text
    assert "only its owner can see it" in caplog.text


def test_a_public_repository_is_made_only_where_it_is_asked_for(hub: Hub, directory: Path) -> None:
    push(directory, push="lab/esc-pro", public=True)
    assert hub.repos == {"datasets/lab/esc-pro": Repo(private=False, commits=[FILES])}


def test_a_repository_that_is_there_gets_a_commit_only_where_that_is_asked_for(
    hub: Hub, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    push(directory)
    said = complaint(directory, caplog)
    assert "the hub has this dataset repository already. Fix: choose another name, or add export.update=true" in said
    push(directory, update=True)
    assert [len(commit) for commit in hub.repos["datasets/me/esc-pro"].commits] == [3, 3]
    hub.repos["datasets/me/esc-pro"].private = False
    said = complaint(directory, caplog, update=True)
    assert "the repository is public: everybody would see what is pushed. Fix: export.public=true" in said
    assert len(hub.repos["datasets/me/esc-pro"].commits) == 2
    push(directory, update=True, public=True)
    assert len(hub.repos["datasets/me/esc-pro"].commits) == 3


def test_what_the_hub_says_of_the_metadata_is_told(hub: Hub, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    (directory / "README.md").write_text("---\nlicense: nonsense\n---\n")
    said = complaint(directory, caplog)
    assert 'the hub refuses it: Invalid metadata in README.md. - "license" must be one of' in said
    assert f"{directory} is written and stays, and the repository is made: the next time with export.update" in said
    assert hub.repos["datasets/me/esc-pro"].commits == []


REFUSALS = [
    ({"/api/whoami": 401}, "the hub does not know the token"),
    ({"/api/datasets": 500}, "the hub refuses it (500"),
    ({"/api/repos": 403}, "the token may not write there (403: as it was asked to to Bearer ***). Fix: use a token"),
    ({"/api/repos": 404}, "the hub does not find it (404"),
    ({"/api/repos": 409}, "the hub has this repository already (409"),
    ({"/api/repos": 429}, "the hub wants fewer requests (429"),
    ({"/commit/": 404}, "the hub does not find it (404"),
    ({"/commit/": 413}, "the hub refuses it (413"),
    ({"/store/": 403}, "the token may not write there (403: no to). Fix"),
]


@pytest.mark.parametrize(("faults", "expected"), REFUSALS, ids=[str(faults) for faults, _ in REFUSALS])
def test_refusals_are_one_line_without_the_token(
    hub: Hub, directory: Path, faults: dict[str, int], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub.faults = faults
    said = complaint(directory, caplog)
    assert expected in said
    assert SIGNATURE not in said
    assert "\n" not in said


def test_whose_token_it_is_counts(
    hub: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = complaint(directory, caplog, push="others/esc-pro")
    assert "export.push=others/esc-pro: the token is no member's of others. Fix: use one of me, lab" in said
    hub.role = "read"
    assert "the token may only read" in complaint(directory, caplog)
    use(hub, monkeypatch, "hf_other")
    assert "the hub does not know the token (401" in complaint(directory, caplog)
    use(hub, monkeypatch, None)
    assert "there is no token of the Hugging Face hub. Fix: `hf auth login`, or export HF_TOKEN" in complaint(
        directory, caplog
    )
    assert not hub.repos


def test_out_of_reach(
    hub: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the hub cannot be reached" in complaint(directory, caplog)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE keeps the hub out of reach. Fix: unset HF_HUB_OFFLINE" in complaint(directory, caplog)
