"""Stage `chat`: a person talks, as the seeker, with a model or with two side by side; votes and edits are kept."""

from __future__ import annotations

import importlib.util
import logging
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from esc_lab.config import Config
from esc_lab.config.prompt import TemplateConfig, find_layout
from esc_lab.data.strategies import build_inventory
from esc_lab.errors import UserError
from esc_lab.evaluation.arena.chat import ChatSession, find_session, read_session
from esc_lab.evaluation.arena.chat_reply import ChatModel
from esc_lab.models.checkpoint_files import find_checkpoint, identify_base
from esc_lab.models.forward import base_model
from esc_lab.models.incremental import IncrementalModel
from esc_lab.models.load import LoadedModel, load_model
from esc_lab.models.row_adapters import BASE, RowAdapters
from esc_lab.prompts import build_layout
from esc_lab.prompts.trained import SupporterPrompts, read_trained_prompts
from esc_lab.report.chat_terminal import talk_in_terminal
from esc_lab.runs.layout import CHAT, find_run
from esc_lab.terminal import print_table
from esc_lab.training.trainer import prepare

log = logging.getLogger(__name__)
# What the rows of the terminal's table are.
NOTES = (
    "Turns: your messages that were answered. Preference pairs: a reply that you preferred or wrote, and one that it "
    "replaced; in preferences.jsonl, to train on. Edited replies: those that you rewrote.",
    "Votes: turns at which you said which of two models answered better; better: so many "
    "times it was this one; ties: both as well; both bad: neither.",
)


def run(cfg: Config) -> dict[str, float]:
    """Chat until the person ends it; `chat.json` and `preferences.jsonl` are there after every change.

    Raises:
        UserError: a model cannot be loaded, a session that is to go on cannot be read or is of other models, or the
            page cannot be served.
    """
    if cfg.chat.where == "browser":
        _check_page(cfg)
    prepare(cfg)
    session = open_session(cfg)
    if cfg.chat.where == "browser":
        from esc_lab.report.chat_browser import talk_in_browser

        talk_in_browser(session, cfg)
    else:
        talk_in_terminal(session, cfg)
    metrics = session.measure()
    _print(session, metrics)
    return metrics


def _check_page(cfg: Config) -> None:
    """Whether the page can be served."""
    if importlib.util.find_spec("nicegui") is None:
        fix = "pip install 'esc-lab[chat]', or chat.where=terminal"
        raise UserError("nicegui is not installed", where="chat.where=browser", fix=fix)
    try:
        with socket.create_server((cfg.chat.host, cfg.chat.port)):
            pass
    except OSError as error:
        where = f"chat.host={cfg.chat.host} chat.port={cfg.chat.port}"
        raise UserError(f"cannot be served there: {error.strerror}", where=where, fix="another chat.port") from error


def open_session(cfg: Config) -> ChatSession:
    """A new session, or the one that is in the run directory or that `resume` names."""
    checkpoints = [cfg.checkpoint, *([] if cfg.chat.against is None else [cfg.chat.against])]
    paths = [None if each in (None, "base") else Path(each) for each in checkpoints]
    templates = build_templates(cfg)
    inventory = build_inventory(cfg.inventory)
    identity: dict[str, Any] = {
        "model": identify_base(cfg.model),
        "checkpoints": [None if path is None else str(path.resolve()) for path in paths],
        "inventory": [*inventory.names],
    }
    own = Path(cfg.run_dir) / CHAT
    source = own if own.exists() else None
    if cfg.resume == "auto":
        source = find_session(Path(cfg.output_root), identity)
        if source is None:
            log.info("resume=auto: no chat of this configuration there; starting anew")
    elif cfg.resume:
        source = Path(cfg.resume) / CHAT
    known: dict[str, Any] = (
        read_session(source) if source else {"id": Path(cfg.run_dir).name, "of": identity, "exchanges": []}
    )
    if known["of"] != identity:
        what = "it is a chat with other models or strategies"
        raise UserError(what, where=str(source), fix="the model, checkpoint, chat.against and inventory of that run")
    if source:
        log.info("going on from %s, %d turns", source.parent, len(known["exchanges"]))
    models = load_models(cfg, paths, templates)
    names = [cfg.model.name if path is None else str(path) for path in paths]
    session = ChatSession(known["id"], models, names, identity, Path(cfg.run_dir), cfg.seed)
    session.take_over(known["exchanges"])
    for model in models:
        model.prepare([turn for each in session.exchanges for turn in each.turns], cfg.prompt.eval.template)
    return session


def build_templates(cfg: Config) -> dict[str, SupporterPrompts]:
    """The templates that one can switch between, that of `prompt` first. Each keeps to one neutral instruction, so
    that a prompt goes on as it began.
    """
    inventory, templates = build_inventory(cfg.inventory), {}
    for name in dict.fromkeys([cfg.prompt.eval.template, *cfg.chat.templates]):
        settings = cfg.prompt.eval
        if name != settings.template:
            layout = find_layout(name, cfg.config_dirs, cfg.prompt)
            settings = TemplateConfig(name, history_labels="choice" in layout["system"], layout=layout)
        one = build_layout(settings)
        templates[name] = SupporterPrompts(inventory, settings, replace(one, wordings=one.wordings[:1]))
    return templates


def load_models(
    cfg: Config, checkpoints: list[Path | None], templates: Mapping[str, SupporterPrompts]
) -> list[ChatModel]:
    """The models; adapters of one base model share its weights.

    Raises:
        UserError: one cannot be loaded, or was trained as something else than a supporter with these strategies.
    """
    bases: dict[Path | None, tuple[LoadedModel, RowAdapters]] = {}
    models = []
    for path in checkpoints:
        if path is not None and find_run(path) is not None:
            trained = read_trained_prompts(path, "supporter", build_inventory(cfg.inventory), "checkpoint")
            assert isinstance(trained, SupporterPrompts)
            if trained.template.template != cfg.prompt.eval.template:
                log.warning(
                    "%s was trained with template %s; the chat begins with %s (prompt=...)",
                    path, trained.template.template, cfg.prompt.eval.template,
                )  # fmt: skip
        adapter, weights = find_checkpoint(cfg.model, path)
        if weights not in bases:
            loaded = load_model(cfg.model, Path(cfg.cache_dir), checkpoint=path if weights else None)
            bases[weights] = loaded, RowAdapters(base_model(loaded.model))
        loaded, adapters = bases[weights]
        number = adapters.load(adapter) if adapter else BASE
        slots = min(cfg.chat.cache_tokens, loaded.context_tokens)
        cache = IncrementalModel(loaded.model, loaded.encoder.stop_tokens, slots, adapters, number)
        models.append(ChatModel(cfg, loaded, cache, templates))
    return models


def _print(session: ChatSession, metrics: Mapping[str, float]) -> None:
    shown = {"turns": "turns", "pairs": "preference pairs", "edits": "edited replies", "votes": "votes"}
    rows = [(words, f"{metrics[f'chat/{name}']:.0f}") for name, words in shown.items()]
    if len(session.models) > 1:
        wins = [(f"better: {name}", f"{metrics[f'chat/wins_{n}']:.0f}") for n, name in enumerate(session.names, 1)]
        rows += [*wins, ("ties", f"{metrics['chat/ties']:.0f}"), ("both bad", f"{metrics['chat/both_bad']:.0f}")]
    print_table("Chat", ("", ""), rows, notes=NOTES)
