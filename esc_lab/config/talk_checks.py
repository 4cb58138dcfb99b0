"""What whole talks, the cards of their seekers and comparisons of supporters need of a configuration."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from esc_lab.config.evaluation_checks import check_budget, check_weights, refuse
from esc_lab.config.model import ENDPOINT
from esc_lab.config.role_checks import check_roles
from esc_lab.config.search import ASKED, LOADED
from esc_lab.errors import nearest


def check_converse(cfg: DictConfig) -> Iterator[str]:
    supporter, names = cfg.llm.supporter, [strategy.name for strategy in cfg.inventory.strategies]
    if supporter.client in LOADED and cfg.model.source != ENDPOINT:
        for name, own in (("checkpoint", "checkpoint=RUN"), ("model", "model=NAME")):
            if supporter[name]:
                reason = "model and checkpoint name the supporter under test"
                yield refuse(cfg, f"llm.supporter.{name}", reason, own)
    elif cfg.checkpoint is not None:
        who = "model=endpoint" if supporter.client in LOADED else f"llm.supporter.client={supporter.client}"
        yield refuse(cfg, "checkpoint", f"{who} loads none", "leave it out")
    if cfg.prompt.inference == "best_of_n":
        yield refuse(cfg, "prompt.inference", "a talk draws one answer", "a key of prompt.baselines, or leave it out")
    for name in (name for name in cfg.converse.strategies if name not in names):
        yield f"converse.strategies: no strategy '{name}' in {cfg.inventory.name}{nearest(name, names)}"
    if cfg.cards.source == "file" and not cfg.cards.path:
        yield "cards=file needs a file of cards. Fix: cards.path=FILE"
    yield from check_roles(cfg, ASKED["converse"])
    served = supporter.client in LOADED and cfg.model.source == ENDPOINT
    if served and all(cfg.llm[role].client != "openai" for role in ASKED["converse"]):  # else it is checked already
        yield from check_budget(cfg)


def check_cards(cfg: DictConfig) -> Iterator[str]:
    if cfg.cards.source != "corpus":
        yield refuse(cfg, "cards.source", "stage=cards makes cards of a corpus", "cards=corpus, and data=NAME")
    if cfg.cards.by == "model":
        yield from check_roles(cfg, ASKED["cards"])
        if cfg.llm.seeker.checkpoint:
            reason = "a trained seeker writes what a seeker says, and no card"
            yield refuse(cfg, "llm.seeker.checkpoint", reason, "leave it out; llm.seeker.model names another model")


def check_arena(cfg: DictConfig) -> Iterator[str]:
    arena = cfg.arena
    if not arena.supporters or len(set(arena.supporters)) < len(arena.supporters):
        yield f"arena.supporters={arena.supporters}: one or more are needed, each once"
    if cfg.checkpoint is not None:
        yield refuse(cfg, "checkpoint", "the supporters have their own", "arena.sft=RUN, arena.cso=RUN")
    if {"sft", "cso"} <= {*arena.supporters} and bool(arena.sft) != bool(arena.cso):
        given, other = ("sft", "cso") if arena.sft else ("cso", "sft")
        reason = "CSO goes on from SFT, and the other one would be of another SFT model"
        yield refuse(cfg, f"arena.{given}", reason, f"name arena.{other}, too, or leave both out")
    names = [strategy.name for strategy in cfg.inventory.strategies]
    if {"steerable", "prompted"} & {*arena.supporters}:
        for name in (name for name in arena.strategies if name not in names):
            yield f"arena.strategies: no strategy '{name}' in {cfg.inventory.name}{nearest(name, names)}"
        if not arena.strategies:
            yield "arena.strategies is empty. Fix: name the strategies of the turns, or leave steerable out"
    yield from check_weights(cfg)
    yield from check_converse(_fill_supporter(cfg))


def _fill_supporter(cfg: DictConfig) -> DictConfig:
    """The configuration of talks: `llm.supporter.checkpoint` of the search is for that alone."""
    filled = cfg.copy()
    filled.llm.supporter.checkpoint = None
    return filled
