"""Data modules and trainers of single steps, as the tests of training need them."""

from __future__ import annotations

from dataclasses import replace

import pytorch_lightning as pl

from esc_lab.config import DataConfig, PromptConfig
from esc_lab.config.evaluate import EvaluateConfig
from esc_lab.data.dialogue import Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.training.datamodule import ESCDataModule


def data_module(
    splits, encoder, *, inventory=None, prompt=None, evaluate=None, objective=None, seed=1, **data
) -> ESCDataModule:
    """A data module with the defaults of every section that is not given; `data` are keys of the section data."""
    return ESCDataModule(
        splits, encoder, inventory or load_inventory("esconv"),
        data=DataConfig(**data), prompt=prompt or PromptConfig(), evaluate=evaluate or EvaluateConfig(),
        objective=objective, seed=seed,
    )  # fmt: skip


def add_values(turn: Turn) -> Turn:
    """The turn as if a search had valued its replies."""
    rejected = tuple(replace(reply, value=-0.5 * number) for number, reply in enumerate(turn.rejected))
    return replace(turn, reply=replace(turn.reply, value=0.5), rejected=rejected) if rejected else turn


def one_step_trainer(directory, **options) -> pl.Trainer:
    """A trainer of one step on the CPU that leaves nothing behind, unless the options say otherwise."""
    default = dict(
        max_steps=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=directory, limit_val_batches=0,
    )  # fmt: skip
    return pl.Trainer(**default | options)
