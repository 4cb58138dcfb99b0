"""A trained reward model as judge, on the one copy of its base model: an adapter, and a head on its last state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from esc_lab.config import Config
from esc_lab.data.strategies import build_inventory
from esc_lab.models.row_adapters import fingerprint_adapter
from esc_lab.prompts.trained import RewardPrompts
from esc_lab.scorers.reward_files import load_head, read_note
from esc_lab.search.clients.local import LocalClient, choose_model, load_base
from esc_lab.search.reward_reader import RewardReader


def build_client(cfg: Config, role: str, shared: dict[str, Any]) -> LocalClient:
    """The client of the judge with the run of a stage `reward`.

    Raises:
        UserError: it is of another inventory or another base model than `llm.local.model`, or cannot be loaded.
    """
    model, checkpoint = choose_model(cfg, role), Path(getattr(cfg.llm, role).checkpoint)
    directory, note = read_note(checkpoint, build_inventory(cfg.inventory), model)
    base = load_base(cfg, model, None, shared)
    reader = RewardReader(load_head(directory, base.hidden_size), note.conversations(base.encoder), note.calibration)
    identity = {
        "adapter": fingerprint_adapter(directory),
        "asked": RewardPrompts(note.strategy_text, note.strategy_share, note.strategy_centers).record(),
        "reward": reader.fingerprint(),
    }
    return base.share(base.adapters.load(directory), f"{model.name} ({checkpoint.name})", identity, reader)
