"""The gradient of a step: its norm, clipping, and scaled gradients of float16."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.plugins import MixedPrecision

from esc_lab.config.training import OptimizerConfig, SchedulerConfig
from esc_lab.errors import UserError
from esc_lab.training.sft import SFTModule
from tests.training.modules import data_module, one_step_trainer


def one_step(loaded, dialogues, tmp_path, clip, scale=None):
    """Length of the update of an SGD step with rate 1, and the gradient norm in the log."""
    model = copy.deepcopy(loaded.model).requires_grad_(True)
    data = data_module({"train": dialogues}, loaded.encoder)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
    module = SFTModule(model, OptimizerConfig(name="sgd", lr=1.0), SchedulerConfig("constant", warmup=0), clip, seed=1)
    trainer = one_step_trainer(tmp_path, plugins=[MixedPrecision("16-mixed", "cpu", scaler)] if scaler else None)
    trainer.fit(module, datamodule=data)
    before = dict(loaded.model.named_parameters())
    moved = sum(float((after.detach() - before[name]).square().sum()) for name, after in model.named_parameters())
    return math.sqrt(moved), float(trainer.callback_metrics["train/grad_norm"])


def test_the_logged_norm_is_that_of_the_gradient_before_clipping(tiny_models, sample_dialogues, tmp_path):
    loaded, dialogues = tiny_models("llama"), sample_dialogues[:1]
    free, norm = one_step(loaded, dialogues, tmp_path, 0.0)
    assert free == pytest.approx(norm, rel=1e-4)
    clipped, same = one_step(loaded, dialogues, tmp_path, norm / 3)
    assert same == norm
    assert clipped == pytest.approx(norm / 3, rel=1e-4)


def test_scaled_gradients_are_clipped_at_their_true_norm(tiny_models, sample_dialogues, tmp_path):
    loaded, dialogues = tiny_models("llama"), sample_dialogues[:1]
    _, exact = one_step(loaded, dialogues, tmp_path, 0.0)
    for clip in (exact / 3, exact * 3):
        moved, norm = one_step(loaded, dialogues, tmp_path, clip, scale=64.0)
        assert norm == pytest.approx(exact, rel=0.02)
        assert moved == pytest.approx(min(exact, clip), rel=0.02)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step\\(\\)` before")
def test_overflow_of_scaled_gradients_skips_a_step_and_goes_on(tiny_models, sample_dialogues, tmp_path):
    loaded, dialogues = tiny_models("llama"), sample_dialogues[:1]
    moved, norm = one_step(loaded, dialogues, tmp_path, 1.0, scale=2.0**40)
    assert moved == 0
    assert not math.isfinite(norm)


def test_a_bad_weight_stops_it_even_so(tiny_models, sample_dialogues, tmp_path):
    loaded = copy.deepcopy(tiny_models("llama"))
    next(loaded.model.parameters()).data.fill_(math.nan)
    for scale in (None, 64.0):
        with pytest.raises(UserError, match=r"^optimizer step 1, dialogues [0-9a-f]{16}: loss nan"):
            one_step(loaded, sample_dialogues[:1], tmp_path, 1.0, scale)


def rates(name, steps, **settings):
    """Learning rate of each step of a training of so many steps, the peak being 1."""
    module = SFTModule(torch.nn.Linear(1, 1), OptimizerConfig(lr=1.0), SchedulerConfig(name, **settings), 0.0, seed=1)
    module._trainer = SimpleNamespace(estimated_stepping_batches=steps)
    planned = module.configure_optimizers()
    found = []
    for _ in range(steps):
        found.append(planned["lr_scheduler"]["scheduler"].get_last_lr()[0])
        planned["optimizer"].step()
        planned["lr_scheduler"]["scheduler"].step()
    return found


@pytest.mark.parametrize(("settings", "cycles"), [({}, 5), ({"cycles": 2}, 2), ({"cycles": 3, "warmup": 0.25}, 3)])
def test_cosine_restarts_begins_again_at_the_peak(settings, cycles):
    """Against the formula of SGDR (Loshchilov & Hutter 2017, eq. 5), whose periods are of equal length here."""
    steps = 120
    warmup = round(settings.get("warmup", 0.1) * steps)
    period = (steps - warmup) / cycles
    expected = [step / warmup for step in range(warmup)]
    expected += [(1 + math.cos(math.pi * (step % period) / period)) / 2 for step in range(steps - warmup)]
    found = rates("cosine_restarts", steps, **settings)
    assert found == pytest.approx(expected, abs=1e-6)
    jumps = [after > before for before, after in pairwise(found[warmup:])]
    assert sum(jumps) == cycles - 1
    assert not any(after > before for before, after in pairwise(rates("cosine", steps)[12:]))
