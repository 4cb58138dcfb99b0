"""Clients of roles from the configuration, and the calls that they answer.

`llm.<role>.client` names a module of this package. Its `build_client(cfg, role)` gives the client of a role.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from esc_lab.config import Config
from esc_lab.config.search import RoleConfig
from esc_lab.search.cache import RequestCache
from esc_lab.search.calls import Calls
from esc_lab.search.requests import Client


def open_calls(cfg: Config, roles: Sequence[str]) -> Calls:
    """Calls to clients of these roles, with the request cache and the budget of the search.

    Raises:
        UserError: a model cannot be loaded, there is no key, or a recording or the cache cannot be read.
    """
    clients = _build_clients(cfg, roles)
    cache = RequestCache(Path(cfg.cache_dir) / "requests.sqlite") if cfg.search.cache else None
    return Calls(clients, cfg.search.concurrency, cache, cfg.search.budget)


def _build_clients(cfg: Config, roles: Sequence[str]) -> dict[str, Client]:
    """A client for each of these roles; roles that are played in the same way share one."""
    clients: dict[str, Client] = {}
    built: dict[tuple[str | None, ...], Client] = {}
    for role in roles:
        played: RoleConfig = getattr(cfg.llm, role)
        recording = (played.recording, role) if played.client == "replay" else ()  # it has another client for each role
        key = (played.client, played.model, played.checkpoint, played.base_url, *recording)
        if key not in built:
            built[key] = import_module(f"esc_lab.search.clients.{played.client}").build_client(cfg, role)
        clients[role] = built[key]
    return clients
