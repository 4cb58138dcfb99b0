"""From which journals a run goes on: those of the run that `resume` names, or of the one that is furthest."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esc_lab.config import Config
from esc_lab.runs.layout import JOURNAL_SUFFIX
from esc_lab.search.journal import Journal, journal_settings, read_journal_config

log = logging.getLogger(__name__)
Configs = Mapping[str, Mapping[str, Any]]


def take_over_journals(cfg: Config, directory: Path, configs: Configs) -> None:
    """Copy journals of the run that `cfg.resume` names, with the files beside them whose names begin like theirs.

    Args:
        directory: where this run has its journals.
        configs: name of each journal, without ending -> its configuration.

    Raises:
        UserError: a journal is of another configuration; nothing is copied then.
    """
    if not cfg.resume:
        return
    place = directory.relative_to(cfg.run_dir)
    if cfg.resume == "auto":
        source = _furthest(Path(cfg.output_root), place, configs)
    else:  # the run, or the pipeline that it is a step of
        places = (Path(cfg.resume) / place, Path(cfg.resume) / cfg.stage / place)
        source = next((path for path in places if any(path.glob(f"*{JOURNAL_SUFFIX}"))), None)
    if source is None:
        log.info("resume=%s: no %s of this configuration there; starting anew", cfg.resume, cfg.stage)
        return
    log.info("resume=%s: going on from %s", cfg.resume, source)
    if source.resolve() == directory.resolve():
        return
    names = [name for name in configs if (source / f"{name}{JOURNAL_SUFFIX}").exists()]
    for name in names:
        Journal(source / f"{name}{JOURNAL_SUFFIX}", configs[name])
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        for file in source.glob(f"{name}.*"):
            shutil.copy2(file, directory)


def _furthest(root: Path, place: Path, configs: Configs) -> Path | None:
    """The directory below `root`, at this place of its run, that has most in journals of these configurations."""
    settings = {f"{name}{JOURNAL_SUFFIX}": journal_settings(config) for name, config in configs.items()}
    sizes: Counter[Path] = Counter()
    for path in root.glob(str(Path("**", place, f"*{JOURNAL_SUFFIX}"))):
        if path.name in settings and journal_settings(read_journal_config(path)) == settings[path.name]:
            sizes[path.parent] += path.stat().st_size
    return max(sizes, key=lambda directory: sizes[directory], default=None)
