"""What roles that models play need of a configuration: who plays them, and with what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from esc_lab.config.evaluation_checks import check_budget, refuse
from esc_lab.config.search import LOADED


def check_roles(cfg: DictConfig, roles: Sequence[str]) -> Iterator[str]:
    """Of a stage that asks these roles."""
    unnamed = [role for role in roles if cfg.llm[role].client == "openai" and not cfg.llm[role].model]
    if unnamed and not cfg.llm.openai.model:
        yield f"llm.openai.model: no name of a model for {', '.join(unnamed)}. Fix: llm.openai.model=NAME"
    for role in (role for role in roles if cfg.llm[role].client in LOADED):
        for name in (name for name in ("temperature", "top_p") if cfg.llm[role][name] is None):
            yield f"llm.{role}.{name}=null: a local model needs one. Fix: give a number"
    if any(cfg.llm[role].client == "openai" for role in roles):
        yield from check_budget(cfg)
    for role in (role for role in roles if cfg.llm[role].client == "openai" and cfg.llm[role].no_repeat):
        yield refuse(cfg, f"llm.{role}.no_repeat", "an endpoint has no such setting", "leave it at 0")
    for role in (role for role in roles if cfg.llm[role].client == "policy"):
        yield from _check_policy(cfg, role)
    for role in (role for role in roles if cfg.llm[role].client == "reward"):
        if role != "judge":
            fix = f"llm.judge.client=reward; llm.{role}.client=local"
            yield refuse(cfg, f"llm.{role}.client", "a reward model judges and writes nothing", fix)
        elif not cfg.llm.judge.checkpoint:
            fix = "llm.judge.checkpoint=<run directory of a stage=reward>"
            yield f"llm.judge.client=reward needs a trained reward model. Fix: {fix}"
    silent = [role for role in roles if cfg.llm[role].client == "replay" and not cfg.llm[role].recording]
    if silent:
        more = "; with llm=replay that of the strategist is for all" if "strategist" in silent else ""
        fix = f"llm.{silent[0]}.recording=FILE{more}"
        if cfg.stage in ("cards", "converse"):
            fix = f"llm.strategist.recording=<run directory of stage={cfg.stage}>, which with llm=replay is for all"
        yield f"client=replay: no recording for {', '.join(silent)}. Fix: {fix}"
    for role in roles:
        model = cfg.llm[role].model
        if cfg.llm[role].client in LOADED and model and not Path(model, "config.json").exists():
            yield f"llm.{role}.model={model}: no model directory (it has no config.json)"


def _check_policy(cfg: DictConfig, role: str) -> Iterator[str]:
    played = cfg.llm[role]
    if role != "strategist":
        fix = f"llm.{role}.client=local; with llm.{role}.checkpoint it is asked as in its training"
        yield refuse(cfg, f"llm.{role}.client", "a policy plays the strategist alone", fix)
        return
    if not played.checkpoint:
        own = "llm.strategist.checkpoint=<run directory of a stage=sft or stage=cso>"
        fix = f"{own}; with llm=policy it is llm.supporter.checkpoint"
        yield f"llm.strategist.client=policy needs a trained supporter. Fix: {fix}"
    if played.temperature == 0:
        yield refuse(cfg, "llm.strategist.temperature", "priors need one above 0", "leave it at 1")
    if played.min_prior * len(cfg.inventory.strategies) >= 1:
        reason = f"as much for each of {len(cfg.inventory.strategies)} strategies is more than there is"
        yield refuse(cfg, "llm.strategist.min_prior", reason, "lower it")
