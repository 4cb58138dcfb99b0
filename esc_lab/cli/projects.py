"""`esc-lab init DIR`: a small project of one's own, which runs as it is."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from esc_lab.config.files import COMMAND
from esc_lab.errors import UserError

TEMPLATE = Path(__file__).parent / "project"


def write_project(words: Sequence[str]) -> str:
    """Write an inventory, a prompt, an experiment, a few dialogues and a README into a new directory.

    Args:
        words: of the command line after `init`: the directory, which must not exist or be empty.

    Returns:
        What to do next.

    Raises:
        UserError: no directory is named, it has files, or it cannot be written to.
    """
    if len(words) != 1 or words[0].startswith("-"):
        raise UserError("name one directory", where=" ".join(["init", *words]), fix=f"{COMMAND} init DIR")
    directory = Path(words[0])
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        fix = "name a new or an empty directory; nothing there is overwritten"
        raise UserError("it is there and not empty", where=f"init {directory}", fix=fix)
    try:
        shutil.copytree(TEMPLATE, directory, dirs_exist_ok=True)
    except OSError as error:  # of copytree: several in one
        shutil.rmtree(directory, ignore_errors=True)  # a project appears whole or not at all
        raise UserError(f"cannot write: {error}", where=f"init {directory}", fix="name another place") from error
    files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    return "\n".join([f"{directory}:", *(f"  {file}" for file in files), "", f"cd {directory}, and read README.md"])
