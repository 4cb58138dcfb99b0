"""Stage `dashboard`: a W&B workspace and a report that lay out a project's runs, question by question."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.errors import UserError
from esc_lab.runs.layout import DASHBOARD, DASHBOARD_REPORT
from esc_lab.tracking.dashboard import build_report, build_workspace, describe, find_links, save

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Describe workspace and report in dashboard.json and dashboard_report.json; with logger.mode=online save them.

    Raises:
        UserError: wandb-workspaces is missing, or what saving raises.
    """
    settings = cfg.logger
    online = settings.mode == "online"
    if online and not settings.entity:
        raise UserError("whose project is it?", where="logger.entity", fix="add logger.entity=<W&B team or user>")
    place = (settings.entity or "", settings.project, cfg.dashboard.name)
    workspace = build_workspace(*place, parameters=cfg.dashboard.parameters, group=settings.group)
    views: dict[str, Any] = {DASHBOARD: workspace}
    if cfg.dashboard.report:
        links = find_links(*place[:2], settings.group) if online else []
        views[DASHBOARD_REPORT] = build_report(*place, group=settings.group, links=links)
    for name, view in views.items():
        path = Path(cfg.run_dir) / name
        write_atomic(path, json.dumps(describe(view), indent=1))
        log.info("saved: %s", save(view)) if online else log.info("described in %s", path)
    if not online:
        log.info("logger.mode=online saves to W&B what is described")
    return {"dashboard/panels": float(sum(len(section.panels) for section in workspace.sections))}
