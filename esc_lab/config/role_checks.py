"""What is wrong with the settings of those who play roles: of the search, and of the judge of replies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from esc_lab.config.search import ROLES


def role_problems(cfg: DictConfig, roles: Sequence[str]) -> list[str]:
    """Problems of these roles; the judge is among them."""
    found = []
    unnamed = [role for role in roles if cfg.llm[role].client == "openai" and not cfg.llm[role].model]
    if unnamed and not cfg.llm.openai.model:
        found.append(f"llm.openai.model: no name of a model for {', '.join(unnamed)}. Fix: llm.openai.model=NAME")
    unrecorded = [role for role in roles if cfg.llm[role].client == "replay" and not cfg.llm[role].recording]
    if unrecorded:
        more = "; with llm=replay that of the strategist is for all" if "strategist" in unrecorded else ""
        fix = f"llm.{unrecorded[0]}.recording=FILE{more}"
        found.append(f"client=replay: no recording for {', '.join(unrecorded)}. Fix: {fix}")
    for role in roles:
        played = cfg.llm[role]
        if played.client == "local" and played.model and not os.path.exists(Path(played.model) / "config.json"):
            found.append(f"llm.{role}.model={played.model}: no model directory (it has no config.json)")
    return found


def url_problems(cfg: DictConfig) -> list[str]:
    """URLs of endpoints that would bring a secret into the record of a run, whatever its stage."""
    found = []
    for name in ("openai", *ROLES):
        url = cfg.llm[name].base_url or ""
        if "@" in url:
            fix = "export OPENAI_BASE_URL=... with it instead"
            found.append(f"llm.{name}.base_url: a user and password in it would come into config.yaml. Fix: {fix}")
        elif "?" in url or "#" in url:
            fix = "give it as http(s)://host:port/v1, and the key in the variable llm.openai.key_variable"
            found.append(f"llm.{name}.base_url: what follows ? or # may be a secret, and is never sent. Fix: {fix}")
    return found


def judge_problems(cfg: DictConfig) -> list[str]:
    """Problems of stage `judge`."""
    found = []
    settings = cfg.judge
    if not settings.runs:
        found.append("stage=judge needs run directories of evaluations. Fix: add judge.runs=[outputs/...,outputs/...]")
    for run in settings.runs:
        if not Path(run).is_dir():
            found.append(f"judge.runs: {run}: no such directory. Fix: name run directories of stage=evaluate")
    if not (settings.rubric or settings.pairwise):
        found.append("judge.rubric=false and judge.pairwise=false: nothing is judged. Fix: leave one of them out")
    return found + role_problems(cfg, ("judge",))
