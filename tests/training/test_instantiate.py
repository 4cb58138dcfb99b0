"""Objects by `_target_`: known packages, allowed ones, and what is refused."""

from __future__ import annotations

import sys

import pytest
from pytorch_lightning.callbacks import Callback, LearningRateMonitor

from esc_lab.errors import UserError
from esc_lab.training.instantiate import instantiate_all

MONITOR = "pytorch_lightning.callbacks.LearningRateMonitor"


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
