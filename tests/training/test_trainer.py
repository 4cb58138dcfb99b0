"""What a configuration gives Lightning's Trainer besides esc-lab's own settings, objects by `_target_` among it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger

from esc_lab import config
from esc_lab.cli.compositions import CONF
from esc_lab.config import Config
from esc_lab.errors import UserError
from esc_lab.training.trainer import build_trainer, instantiate_all, prepare

MONITOR = "pytorch_lightning.callbacks.LearningRateMonitor"


def configured(root: Path, *overrides: str) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["stage=sft", "model=tiny_llama", "logger=none", *overrides])
    return replace(config.typed(cfg), run_dir=str(root))


def test_extra_arguments_callbacks_and_loggers_reach_the_trainer(tmp_path):
    cfg = configured(
        tmp_path,
        "logger=csv",
        "trainer.extra={overfit_batches: 3}",
        "trainer.callbacks.rate._target_=pytorch_lightning.callbacks.LearningRateMonitor",
        "logger.extra.more={_target_: pytorch_lightning.loggers.CSVLogger, save_dir: more}",
    )
    trainer = build_trainer(cfg, training=True)
    assert trainer.overfit_batches == 3
    assert any(isinstance(callback, LearningRateMonitor) for callback in trainer.callbacks)
    assert len(trainer.loggers) == 2
    assert all(isinstance(logger, CSVLogger) for logger in trainer.loggers)
    extra_alone = replace(cfg, logger=replace(cfg.logger, name="none"))
    (own,) = build_trainer(extra_alone, training=True).loggers
    assert isinstance(own, CSVLogger)
    assert own.save_dir == str(tmp_path / "more")
    evaluation = build_trainer(cfg, training=False)
    assert not any(isinstance(callback, LearningRateMonitor) for callback in evaluation.callbacks)
    assert evaluation.overfit_batches == 0


@pytest.mark.parametrize(
    ("extra", "message"),
    [("{max_epochs: 2}", "set by esc-lab: max_epochs"), ("{max_epoch: 2}", "did you mean 'max_epochs'")],
)
def test_arguments_that_lightning_does_not_get(extra, message, tmp_path):
    with pytest.raises(UserError, match=message):
        build_trainer(configured(tmp_path, f"trainer.extra={extra}"), training=True)


def test_more_gpus_than_there_are_are_refused(tmp_path, monkeypatch):
    (tmp_path / "environment.json").write_text("{}")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for words in (["trainer.devices=2"], ["trainer.devices=8", "trainer.accelerator=cpu"], ["trainer.devices=auto"]):
        prepare(configured(tmp_path, *words))
    with pytest.raises(UserError, match=r"trainer\.devices=8: this machine shows 2 GPUs"):
        prepare(configured(tmp_path, "trainer.devices=8"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=r"devices=8: this machine shows no GPUs\. Fix: .*, or trainer.accelerator=cpu"):
        prepare(configured(tmp_path, "trainer.devices=8"))
    prepare(configured(tmp_path, "trainer.devices=1"))


def callbacks(section: object, allow: tuple[str, ...] = ()) -> list[Callback]:
    return instantiate_all({"mine": section}, Callback, allow=allow, where="trainer.callbacks")


def test_a_class_of_a_known_package_with_its_arguments():
    (monitor,) = callbacks({"_target_": MONITOR, "logging_interval": "step"})
    assert isinstance(monitor, LearningRateMonitor)
    assert monitor.logging_interval == "step"


def test_a_module_of_the_users_own_has_to_be_allowed(tmp_path, monkeypatch):
    (tmp_path / "own_callbacks.py").write_text(
        "from pytorch_lightning.callbacks import Callback\nclass Quiet(Callback):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"trainer.callbacks.mine: own_callbacks.Quiet: code of own_callbacks .*allow="):
        callbacks({"_target_": "own_callbacks.Quiet"})
    assert "own_callbacks" not in sys.modules
    (quiet,) = callbacks({"_target_": "own_callbacks.Quiet"}, ("own_callbacks",))
    assert type(quiet).__name__ == "Quiet"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"logging_interval": "step"}, "names no class"),
        ("step", "names no class"),
        ({"_target_": "os.system", "command": "true"}, "code of os is not allowed"),
        ({"_target_": "pytorch_lightning.callbacks.NoSuch"}, "NoSuch"),
        ({"_target_": MONITOR, "intervall": 1}, "intervall"),
        ({"_target_": "pytorch_lightning.LightningDataModule"}, "is no Callback"),
        ({"_target_": "pytorch_lightning.seed_everything", "seed": 1}, "is no Callback"),
    ],
)
def test_what_is_refused(section, message):
    with pytest.raises(UserError, match=message) as refusal:
        callbacks(section)
    assert str(refusal.value).startswith("trainer.callbacks.mine: ")
    assert "Fix: " in str(refusal.value)
