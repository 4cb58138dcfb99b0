"""Clients of roles: each that the configuration lists is a module, and roles that are played alike share one."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from esc_lab.config import Config
from esc_lab.config.search import CLIENTS, ROLES
from esc_lab.search.calls import open_calls
from esc_lab.search.journal import Journal
from esc_lab.search.requests import Answer, Request


class Echo:
    """A client of one's own, as a module beside the others would have it."""

    scores = False
    retries: Mapping[str, int] = {}

    def __init__(self, model: str | None) -> None:
        self.identity = {"kind": "echo", "model": model}

    async def answer(self, request: Request) -> Answer:
        return Answer(request.messages[-1].content)

    async def close(self) -> None:
        pass


@pytest.fixture
def cfg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    module = ModuleType("echo")
    module.build_client = lambda cfg, role, shared: Echo(getattr(cfg.llm, role).model)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "esc_lab.search.clients.echo", module)
    cfg = Config(cache_dir=str(tmp_path))
    for role in ROLES:
        getattr(cfg.llm, role).client = "echo"
    return cfg


@pytest.mark.parametrize("name", CLIENTS)
def test_each_client_has_a_module(name: str) -> None:
    assert callable(import_module(f"esc_lab.search.clients.{name}").build_client)


def test_roles_that_are_played_alike_share_a_client(cfg: Config) -> None:
    cfg.llm.judge.model = "another"
    cfg.llm.seeker.temperature = 0.5
    clients = open_calls(cfg, ROLES).clients
    assert clients["strategist"] is clients["supporter"] is clients["seeker"]
    assert clients["judge"].identity["model"] == "another"


def test_a_recording_has_a_client_for_each_role(cfg: Config, tmp_path: Path) -> None:
    roles: dict[str, Any] = {role: {"client": {"model": role}, "scores": role == "judge"} for role in ROLES}
    Journal(tmp_path / "tree.journal.jsonl", json.loads(json.dumps({"roles": roles})))
    for role in ROLES:
        played = getattr(cfg.llm, role)
        played.client, played.recording = "replay", str(tmp_path / "tree.journal.jsonl")
    calls = open_calls(cfg, ROLES)
    assert {role: client.identity["model"] for role, client in calls.clients.items()} == {role: role for role in ROLES}
    assert calls.scoring == {"judge": None}
