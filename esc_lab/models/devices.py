"""Where models run: the device of this process, how arrays get there, and how much it takes in one pass."""

from __future__ import annotations

import os
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

# Tokens of a forward pass on a GPU: products want thousands of rows. What gradient checkpointing keeps of them in an
# 8B model is 2 GiB (8,192 tokens x 4,096 numbers x 32 layers in half precision).
PASS_TOKENS = 8192


def find_device() -> torch.device:
    """The GPU of this process, of several processes on a machine each has its own; the CPU where there is none.

    Launchers number the processes of a machine: torchrun and Lightning in LOCAL_RANK, Slurm in SLURM_LOCALID. Where
    each process sees one GPU alone, that is its own.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    return torch.device("cuda", number if number < torch.cuda.device_count() else 0)


def move(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on a device.

    To a GPU it goes from page-locked memory, so that the process need not wait until the GPU has done what it has.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def choose_pass_tokens(pass_tokens: int | None, row_tokens: int, device: torch.device) -> int:
    """Token budget of a forward pass: as configured, or what suits the device; never less than the longest sequence."""
    usual = PASS_TOKENS if device.type == "cuda" else row_tokens
    return max(usual if pass_tokens is None else pass_tokens, row_tokens)
