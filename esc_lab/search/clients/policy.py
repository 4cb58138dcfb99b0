"""A trained policy as strategist: its distribution over the strategies, as an evaluation reads it off the labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from esc_lab.config import Config
from esc_lab.data.strategies import build_inventory
from esc_lab.errors import UserError
from esc_lab.prompts.trained import SupporterPrompts, read_trained_prompts
from esc_lab.search.clients.local import LocalClient, play_model


def build_client(cfg: Config, role: str, shared: dict[str, Any]) -> LocalClient:
    """The client of the strategist with the checkpoint of a supporter.

    Raises:
        UserError: another role, a checkpoint of another side or inventory, or one whose prompts name the strategy.
    """
    checkpoint, where = getattr(cfg.llm, role).checkpoint, f"llm.{role}.checkpoint"
    trained = read_trained_prompts(Path(checkpoint), "supporter", build_inventory(cfg.inventory), where)
    assert isinstance(trained, SupporterPrompts)
    if not trained.layout.chooses_strategy:
        what = f"its prompts (layout {trained.layout.name}) name the strategy, so it chooses none"
        raise UserError(what, where=f"{where}={checkpoint}", fix="name a run with prompt=cso, or client=local")
    return play_model(cfg, role, shared, trained)
