"""Stage `dashboard`: a W&B workspace that lays out the comparison of a project's runs."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.errors import UserError
from esc_lab.metrics.records import METRICS
from esc_lab.runs.layout import DASHBOARD
from esc_lab.tracking.dashboard import build_workspace, describe_workspace, save_workspace

log = logging.getLogger(__name__)

SCORES = ("strategy/Q", "strategy/B", "strategy/Q_W", "generated/Q", "text/perplexity", "text/rouge_l")


def run(cfg: Config) -> dict[str, float]:
    """Describe the workspace in dashboard.json, and with logger.mode=online save it to W&B.

    Raises:
        UserError: wandb-workspaces is missing, or what saving raises.
    """
    settings = cfg.logger
    online = settings.mode == "online"
    if online and not settings.entity:
        raise UserError("whose project is it?", where="logger.entity", fix="add logger.entity=<W&B team or user>")
    workspace = build_workspace(
        settings.entity or "",
        settings.project,
        cfg.dashboard.name,
        parameters=cfg.dashboard.parameters,
        scores=[METRICS[name] for name in SCORES],
        group=settings.group,
    )
    path = Path(cfg.run_dir) / DASHBOARD
    write_atomic(path, json.dumps(describe_workspace(workspace), indent=1))
    if online:
        log.info("saved: %s", save_workspace(workspace))
    else:
        log.info("described in %s; logger.mode=online saves it to W&B", path)
    return {"dashboard/panels": float(sum(len(section.panels) for section in workspace.sections))}
