"""Settings of where metrics and artifacts are logged, and of the W&B workspace that shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from esc_lab.config.item import item


@dataclass
class LoggerConfig:
    name: str = item("wandb", "where metrics go, besides metrics.json", choices=("wandb", "csv", "none"))
    project: str = item("esc-lab", "W&B project")
    entity: str | None = item(None, "W&B team or user")
    mode: str = item("offline", "W&B mode; offline needs no account, `wandb sync` uploads later",
                     choices=("offline", "online", "disabled"))  # fmt: skip
    extra: dict[str, Any] = item(
        {}, "more loggers of a training's curves, by a name of yours: {_target_: package.module.Class, argument: value}"
    )
    group: str | None = item(
        None, "W&B group; null = the experiment, else the directory of the multirun or pipeline that the run is part of"
    )
    artifacts: list[str] = item(
        ["adapter", "esc_pro", "evaluation"],
        "artifacts that W&B gets with their files; of the others it gets names and checksums",
        choices=("adapter", "model", "classifier", "reward", "esc_pro", "continuations", "corpus", "evaluation"),
    )


@dataclass
class DashboardConfig:
    name: str = item("Comparison of strategies", "name of the W&B workspace, and of the report")
    parameters: list[str] = item(
        ["model.name", "method", "objective.name", "objective.beta", "adapter.r", "optimizer.lr", "seed"],
        "settings of the runs that its parallel coordinates show",
    )
    report: bool = item(True, "make a W&B report too, a page to share that links the runs it is of")
