"""Whether two configurations have the same judge: a model must not be scored by the judge that it was made for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esc_lab.search.journal import read_journal_config

_DATE = re.compile(r"-\d{4}-?\d{2}-?\d{2}$")


@dataclass(frozen=True)
class JudgeModel:
    """A model as a configuration names it.

    Attributes:
        names: lower case; a model of a hub or endpoint without its owner and without a date behind its name.
        checkpoint: the trained weights on it; None for the model as it came.
    """

    names: frozenset[str]
    checkpoint: str | None = None

    def same(self, other: JudgeModel) -> bool:
        return bool(self.names & other.names) and self.checkpoint == other.checkpoint

    def __str__(self) -> str:
        return " / ".join(sorted(self.names)) + (f" with {self.checkpoint}" if self.checkpoint else "")


def judge_model(config: Mapping[str, Any]) -> JudgeModel:
    """The model that plays the judge in a run with this configuration.

    Raises:
        KeyError, TypeError: it is no configuration of a search or of a judge, or its recording is no journal.
        OSError: the recording cannot be read.
    """
    llm = config["llm"]
    played = llm["judge"]
    if played["client"] == "replay":
        return JudgeModel(_names(read_journal_config(Path(played["recording"]))["roles"]["judge"]["client"]["model"]))
    if played["client"] == "openai":
        return JudgeModel(_names(played["model"] or llm["openai"]["model"]))
    checkpoint = str(Path(played["checkpoint"]).resolve()) if played["checkpoint"] else None
    if played["model"]:
        return JudgeModel(_names(played["model"]), checkpoint)
    return JudgeModel(model_names(llm["local"]["model"]), checkpoint)


def model_names(model: Mapping[str, Any]) -> frozenset[str]:
    """Names of a model that is loaded here, from its settings."""
    return _names(model.get("name"), model.get("path"))


def _names(*names: str | None) -> frozenset[str]:
    return frozenset(_name(name) for name in names if name and name != "???")


def _name(name: str) -> str:
    if Path(name).is_dir():
        return str(Path(name).resolve())
    return _DATE.sub("", name.rstrip("/").rsplit("/", 1)[-1].lower())
