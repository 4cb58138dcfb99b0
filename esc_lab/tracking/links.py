"""Links from what compares runs to the runs themselves in W&B, by what their directories hold: offline, too."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from esc_lab.artifacts import READ_ERRORS
from esc_lab.config import Config
from esc_lab.runs.layout import CONFIG, METRICS, read_config
from esc_lab.runs.lineage import read_method

LINK_COLUMNS = ("run", "stage", "model", "method", "id", "link")


def list_links(cfg: Config, address: str, entity: str | None) -> list[list[str]]:
    """A row of `LINK_COLUMNS` for each run below those that a comparison, a judge or a survey names.

    The id is that of the run in W&B, empty where it has none; the link is empty where nobody says whose project it is.

    Args:
        address: of W&B's pages.
        entity: whose project it is, where a run does not say.
    """
    if cfg.stage not in ("compare", "judge", "survey"):
        return []
    named = {"compare": cfg.compare.runs, "judge": cfg.judge.runs, "survey": cfg.survey.runs}[cfg.stage]
    found = {file.parent.resolve() for path in named for file in Path(path).rglob(METRICS)}
    return [_row(run, address, entity) for run in sorted(found) if (run / CONFIG).exists()]


def _row(run: Path, address: str, entity: str | None) -> list[str]:
    config = read_config(run)
    try:
        method = read_method(run).name
    except READ_ERRORS:  # not every stage has one
        method = ""
    logger, number = config.get("logger") or {}, find_run_id(run)
    owner = logger.get("entity") or entity
    path = "/".join(quote(part, safe="") for part in (owner or "", logger.get("project") or "esc-lab", "runs", number))
    link = f"{address}/{path}" if owner and number else ""
    return [run.name, config["stage"], config["model"]["name"], method, number, link]


def find_run_id(run: Path) -> str:
    """The id in W&B of the last run that was logged from a run directory; empty if there is none."""
    files = run.glob("wandb/*run-*/run-*.wandb")
    last = max(files, key=lambda file: file.parent.name.partition("run-")[2], default=None)  # their time comes first
    return last.stem.removeprefix("run-") if last else ""
