"""The model of a run whose weights are named on the command line, where the command names none."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from esc_lab.artifacts import READ_ERRORS, read_yaml
from esc_lab.cli.compositions import groups
from esc_lab.config.files import CONF
from esc_lab.runs.layout import find_run, read_config

_WEIGHTS = ("checkpoint", "init_from")
_MODEL = re.compile(r"[+~]*(model=|hydra\.sweeper)")


def name_model(words: Sequence[str]) -> list[str]:
    """The words, with `model=` of the run that `checkpoint` or `init_from` names if they say nothing of a model.

    Nothing is added where the model is the default, or where no option in `model/` has its name and path; a checkpoint
    of another model is refused when it is loaded.
    """
    given = {key.lstrip("+"): value.strip("'\"") for key, _, value in (word.partition("=") for word in words)}
    named = [given[key] for key in _WEIGHTS if given.get(key) not in (None, "", "null")]
    if not named or any(_MODEL.match(word) for word in words):
        return [*words]
    option = _find_option(Path(named[0]))
    if option is None or option == _default():
        return [*words]
    print(f"model={option}, as {named[0]} was trained from it", file=sys.stderr)
    return [*words, f"model={option}"]


def _find_option(weights: Path) -> str | None:
    try:
        run = find_run(weights)
        if run is None:
            return None
        model = read_config(run)["model"]
        known = (model["name"], model["path"])
    except READ_ERRORS:
        return None  # whoever loads it says what is wrong
    for option, file in groups()["model"].items():
        section = read_yaml(file)
        if (section.get("name"), section.get("path")) == known:
            return option
    return None


def _default() -> str | None:
    defaults = read_yaml(CONF / "config.yaml")["defaults"]
    return next((entry["model"] for entry in defaults if isinstance(entry, dict) and "model" in entry), None)
