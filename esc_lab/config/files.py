"""The files of config groups: those of the user's own directories, then those of `conf/`. Plain YAML, without Hydra.

A stage reads them for options that its configuration only names: the inventory of a corpus, the layouts of a study.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from esc_lab.artifacts import read_yaml
from esc_lab.errors import UserError, nearest

_PACKAGE = Path(__file__).parents[1]
# Installed, a folder of the package; in a checkout a link to the one at its top, or that one where links cannot be.
CONF = next(path for path in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if path.is_dir()).resolve()
CHECKOUT = _PACKAGE.parent if _PACKAGE.resolve().parent == CONF.parent else None  # that this code runs from, if any
# What users type.
COMMAND = "python run.py" if CHECKOUT and Path(sys.argv[0]).stem != "esc-lab" else "esc-lab"


def option_files(group: str, config_dirs: Sequence[str | Path] = ()) -> dict[str, Path]:
    """The files of a group's options by name; where a name is in several directories, the first one's counts."""
    files: dict[str, Path] = {}
    for directory in (*config_dirs, CONF):
        for file in sorted(Path(directory, group).glob("*.yaml")):
            files.setdefault(file.stem, file)
    return files


def read_option(group: str, name: str, config_dirs: Sequence[str | Path] = ()) -> dict[str, Any]:
    """The content of a group's option. It may be read many times and must not be changed.

    Raises:
        UserError: there is no such option, or its file holds no YAML mapping.
    """
    files = option_files(group, config_dirs)
    if name not in files:
        fix = f"use {', '.join(files)}, or name the directory that holds {group}/{name}.yaml with --config-dir"
        raise UserError(f"unknown {group} '{name}'{nearest(name, files)}", fix=fix)
    return _read(files[name], files[name].stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _read(path: Path, _: int) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"not YAML: {' '.join(str(error).split())}", where=str(path), fix="correct the file") from error
    if not isinstance(content, dict):
        raise UserError("the file holds no keys", where=str(path), fix="write key: value")
    return content
