"""A callback for trainings that are to be told that their time is up: they wait for the signal, once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback

from esc_lab.runs.signals import sigterm_waits
from tests.conftest import HANGS_S


class WaitForSignal(Callback):
    """Waits before a step until the signal has come, unless the file says that it has been there."""

    def __init__(self, step: int, file: str, *, obeys: bool = True) -> None:
        self.step, self.file, self.obeys = step, Path(file), obeys

    def on_train_batch_start(self, trainer: Any, *_: object) -> None:
        if trainer.global_step != self.step or self.file.exists():
            return
        self.file.touch()
        until = time.monotonic() + HANGS_S
        while not (self.obeys and sigterm_waits()) and time.monotonic() < until:
            time.sleep(0.1)
