"""What a run ran on: package versions, git commit, machine. Kept beside the metrics of every run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import esc_lab

_PACKAGES = (
    "torch", "transformers", "peft", "pytorch-lightning", "torchmetrics", "hydra-core", "omegaconf", "wandb",
)  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """Versions, commit and machine as plain JSON types. Does not import torch; stages that use one name the device."""
    return {
        "esc_lab": esc_lab.__version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "device": None,
        "cpus": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
    }


def git_commit() -> str | None:
    """Commit of the checkout that esc_lab runs from, with `+` if files differ from it; None outside a checkout."""
    root = Path(esc_lab.__file__).parents[1]
    if not (root / ".git").exists():  # an installed package may lie in a checkout of something else
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--dirty=+", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def first_process() -> bool:
    """Whether this is no further process of a training, or an evaluation, on several devices."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
