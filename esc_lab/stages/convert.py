"""Stage `convert`: a corpus of any form, written as esc-lab's own format or as one of ESC-Pro's."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from esc_lab.config import Config
from esc_lab.data.corpora import ReadReport, read_corpus, write_dialogues
from esc_lab.data.corpora.splits import WRITTEN_STEMS
from esc_lab.data.corpora.tables import find_hub_licence
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import build_inventory, load_inventory
from esc_lab.errors import UserError
from esc_lab.report.data_page import READ_HEADS, describe_reading
from esc_lab.runs.layout import DIALOGUES
from esc_lab.terminal import print_table

log = logging.getLogger(__name__)
NAMELESS = ("file", "jsonl", "table", "hub")  # names of readers, not of a corpus
# What else a dialogue may have.
LOST_NOTES = (
    "Values, visits: of a reply in the search that found it; surveys: answers of seeker and supporter after a talk; "
    "tree ids: which dialogues share their beginning; meta entries: whatever else the corpus says of a dialogue.",
)


def run(cfg: Config) -> dict[str, float]:
    """Read the corpus and write it: one file, or a directory with one a split. It appears whole or not at all.

    Raises:
        UserError: the corpus cannot be read, there is nothing that the form can hold, or the place is taken.
    """
    report = ReadReport()
    splits = read_corpus(cfg.data, build_inventory(cfg.inventory), report, cfg.config_dirs)
    suffix = ".jsonl" if cfg.convert.to == "jsonl" else ".json"
    target = Path(cfg.convert.path) if cfg.convert.path else Path(cfg.run_dir, DIALOGUES).with_suffix("")
    if len(splits) == 1:
        target = target if cfg.convert.path else target.with_suffix(suffix)
        lost = _write(cfg, next(iter(splits.values())), target)
    else:
        lost = _write_directory(cfg, splits, target, suffix)
    print_table("What was read", READ_HEADS, describe_reading(asdict(report)))
    if lost:
        title = f"What {cfg.convert.to} cannot hold, and was left out"
        print_table(title, ("what", "how many"), [(kind, f"{count}") for kind, count in lost.items()], notes=LOST_NOTES)
    option = "jsonl" if cfg.convert.to == "jsonl" else "esc_pro"
    log.info("%s (data=%s data.path=%s%s)", target, option, target, _name_source(cfg, target))
    read = {f"convert/{name}": float(value) for name, value in asdict(report).items()}
    return read | {f"convert/left_out/{kind.replace(' ', '_')}": float(count) for kind, count in lost.items()}


def _name_source(cfg: Config, target: Path) -> str:
    """What the new file does not say of the corpus and cards want to know, as words of a command."""
    licence = cfg.data.licence or (find_hub_licence(cfg.data.hub, cfg.data.revision) if cfg.data.hub else None)
    name = target.stem if cfg.data.name in NAMELESS else cfg.data.name
    return f" data.name={shlex.quote(name)}" + (f" data.licence={shlex.quote(licence)}" if licence else "")


def _write(cfg: Config, dialogues: Sequence[Dialogue], path: Path) -> Counter[str]:
    own = cfg.inventory.name == dialogues[0].inventory
    inventory = build_inventory(cfg.inventory) if own else load_inventory(dialogues[0].inventory, cfg.config_dirs)
    return Counter(write_dialogues(dialogues, path, cfg.convert.to, inventory=inventory))


def _write_directory(
    cfg: Config, splits: Mapping[str, Sequence[Dialogue]], directory: Path, suffix: str
) -> Counter[str]:
    """A file for each split, in a directory that is new."""
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        fix = "name a new or an empty directory; the corpus has splits, each of which becomes a file there"
        raise UserError("it is there and not empty", where=f"convert.path={directory}", fix=fix)
    part = directory.with_name(f".{directory.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a conversion that was killed
    lost = Counter[str]()
    try:
        for name, dialogues in splits.items():
            lost += _write(cfg, dialogues, part / f"{WRITTEN_STEMS.get(name, name)}{suffix}")
        os.replace(part, directory)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return lost
