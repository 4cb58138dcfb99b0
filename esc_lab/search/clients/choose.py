"""Who plays the roles of the search, from the configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from esc_lab.config import Config
from esc_lab.config.search import ROLES, RoleConfig
from esc_lab.errors import UserError
from esc_lab.search.clients.openai import OpenAIClient
from esc_lab.search.clients.replay import ReplayClient
from esc_lab.search.journal import journal_config
from esc_lab.search.requests import Client


def build_clients(cfg: Config, roles: Sequence[str] = ROLES) -> dict[str, Client]:
    """A client for each of these roles; roles that are played in the same way share one.

    Raises:
        UserError: a model cannot be loaded, there is no key, or a recording cannot be read.
    """
    clients: dict[str, Client] = {}
    shared: dict[tuple[str | None, ...], Client] = {}
    for role in roles:
        played: RoleConfig = getattr(cfg.llm, role)
        if played.client == "replay":
            clients[role] = _replay(role, played)
            continue
        key = (played.client, played.model, played.checkpoint, played.base_url)
        if key not in shared:
            shared[key] = _local(cfg, played) if played.client == "local" else _endpoint(cfg, played)
        clients[role] = shared[key]
    return clients


def retries(clients: Mapping[str, Client]) -> Counter[str]:
    """Calls of endpoints that failed in a way that may pass, by kind."""
    endpoints = {id(client): client for client in clients.values() if isinstance(client, OpenAIClient)}
    return sum((Counter(asdict(client.retries)) for client in endpoints.values()), Counter())


def _local(cfg: Config, played: RoleConfig) -> Client:
    from esc_lab.models.engine import EngineLimits
    from esc_lab.models.load import load_model
    from esc_lab.search.clients.local import LocalClient
    from esc_lab.training.reference import model_identity

    model = cfg.llm.local.model
    if played.model:
        model = replace(model, name=Path(played.model).name, source="directory", path=played.model, revision=None)
    checkpoint = Path(played.checkpoint) if played.checkpoint else None
    loaded = load_model(model, Path(cfg.cache_dir), checkpoint=checkpoint)
    name = f"{model.name} ({checkpoint.name})" if checkpoint else model.name
    return LocalClient(
        loaded, name, identity=model_identity(loaded.model), limits=EngineLimits(batch=cfg.llm.local.batch)
    )


def _endpoint(cfg: Config, played: RoleConfig) -> Client:
    endpoint = cfg.llm.openai
    model = played.model or endpoint.model
    assert model is not None  # config_checks saw to it
    return OpenAIClient(
        model,
        base_url=played.base_url or endpoint.base_url,
        key_variable=endpoint.key_variable,
        timeout_s=endpoint.timeout,
        attempts=endpoint.attempts,
        connections=cfg.search.concurrency,
        structured=endpoint.structured,
        seeds=endpoint.seeds,
        token_limit=endpoint.token_limit,
        price_in=endpoint.price_in,
        price_out=endpoint.price_out,
    )


def _replay(role: str, played: RoleConfig) -> Client:
    recording = Path(played.recording or "")
    try:
        made = journal_config(recording)["roles"][role]
        return ReplayClient(recording, identity=made["client"], scores=made["scores"])
    except (OSError, KeyError, TypeError) as error:
        fix = "name a trees/*.journal.jsonl of a search"
        raise UserError("no journal of a search", where=f"llm.{role}.recording={recording}", fix=fix) from error
