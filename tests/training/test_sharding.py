"""Several processes, each with the whole model (DDP) or a part of it (FSDP2), take the same steps as one process."""

from __future__ import annotations

import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from esc_lab.data.corpora import write_dialogues
from esc_lab.errors import UserError
from esc_lab.models.load import load_model, model_identity
from esc_lab.runs.layout import CHECKPOINT
from esc_lab.runs.resume import count_steps
from esc_lab.training import processes
from esc_lab.training.sharding import DescriptionReader, ShardedStrategy
from tests.conftest import CACHE, model_config
from tests.e2e.conftest import execute
from tests.training.modules import add_values
from tests.training.processes import train_together

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo over fork")

COMMON = (
    "model=tiny_llama", "logger=none", "reuse=false", "trainer.accelerator=cpu", "trainer.save_every=1",
    "optimizer.name=sgd", "optimizer.momentum=0.9", "optimizer.lr=0.05", "data=jsonl", "data.limit={}",
    "data.proportions={train: 0.7, val: 0.3}",
)  # fmt: skip
# Several rows of unequal number on the two processes, and all that passes over the sharded weights.
TRAININGS = {
    "sft_full": ("stage=sft", "adapter=full", "data.row_tokens=700", "data.step_dialogues=3", "trainer.max_epochs=1"),
    "sft_lora": (
        "stage=sft", "data.row_tokens=700", "data.step_dialogues=2", "trainer.max_epochs=2",
        "model.gradient_checkpointing=true",
    ),
    "cso_lora": ("stage=cso", "data.row_tokens=1000", "data.step_pairs=6", "trainer.max_epochs=1"),
    "kto_full": (
        "stage=cso", "objective=kto", "adapter=full", "objective.reference=live", "data.row_tokens=1000",
        "data.step_pairs=6", "trainer.max_epochs=1",
    ),
    "grpo_lora": (
        "stage=cso", "objective=grpo", "objective.iterations=2", "objective.reference=live", "data.row_tokens=1000",
        "data.step_pairs=6", "trainer.max_epochs=1",
    ),
}  # fmt: skip


REPLICATED = ("sft_full", "cso_lora", "grpo_lora")


@pytest.fixture(scope="module")
def root(tmp_path_factory, sample_dialogues) -> Path:
    root = tmp_path_factory.mktemp("sharded")
    short = [replace(one, turns=tuple(map(add_values, one.turns[:6]))) for one in sample_dialogues[:6]]
    write_dialogues(short, root / "valued.jsonl")
    half = load_model(model_config("tiny_llama"), CACHE)
    half.model.to(torch.bfloat16).save_pretrained(root / "half")
    half.encoder.tokenizer.save_pretrained(root / "half")
    return root


def words(root: Path, name: str, kind: str, *more: str) -> tuple[str, ...]:
    """The words of a training in a directory of its own."""
    model = ("model.source=directory", f"model.path={root}/half") if name.endswith("full") else ()
    return (
        *TRAININGS[name], *COMMON, *model, f"data.path={root}/valued.jsonl", f"hydra.run.dir={root}/{kind}/{name}",
        f"cache_dir={CACHE if kind == 'one' else root / 'cache'}", *more,
    )  # fmt: skip


def sharded(root: Path, name: str, kind: str, *more: str, devices: int = 2) -> tuple[str, ...]:
    return words(root, name, kind, "trainer.strategy=fsdp2", f"trainer.devices={devices}", *more)


def replicated(root: Path, name: str, kind: str = "ddp", *more: str) -> tuple[str, ...]:
    return words(root, name, kind, "trainer.strategy=ddp", "trainer.devices=2", *more)


def trained(root: Path, name: str, kind: str) -> dict[str, torch.Tensor]:
    (file,) = (root / kind / name).glob("[am]*/*model.safetensors")
    return load_file(file)


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name} {text}")


@pytest.fixture(scope="module")
def runs(root) -> Path:
    """All trainings by one process, and by two; that which is killed is resumed by two and by one."""
    for name in TRAININGS:
        outcome = execute(root, *words(root, name, "one"))
        assert outcome.status == 0, outcome.errors
    others = [sharded(root, name, "two") for name in TRAININGS if name != "sft_lora"]
    others += [replicated(root, name) for name in REPLICATED]
    train_together(root, *others, sharded(root, "sft_lora", "killed"), kill_at=3)
    train_together(root, replicated(root, "sft_lora", "ddp_killed"), kill_at=3)
    for kind in ("by_one", "kept"):
        shutil.copytree(root / "killed", root / kind)
    shutil.copytree(root / "ddp_killed", root / "ddp_by_one")
    train_together(
        root, sharded(root, "sft_lora", "two", f"resume={root}/killed/sft_lora"),
        replicated(root, "sft_lora", "ddp", f"resume={root}/ddp_killed/sft_lora"),
    )  # fmt: skip
    resume = f"resume={root}/by_one/sft_lora"
    alone = words(root, "sft_lora", "ddp_by_one", f"resume={root}/ddp_by_one/sft_lora")
    for other in (sharded(root, "sft_lora", "by_one", resume, devices=1), alone):
        outcome = execute(root, *other)
        assert outcome.status == 0, outcome.errors
    assert not torch.distributed.is_initialized()
    return root


@pytest.mark.parametrize(
    ("kind", "name"), [*(("two", name) for name in TRAININGS), *(("ddp", name) for name in (*REPLICATED, "sft_lora"))]
)
def test_two_processes_take_the_same_steps_as_one(runs, kind, name):
    assert_same(trained(runs, name, "one"), trained(runs, name, kind))


@pytest.mark.parametrize("kind", ["by_one", "ddp_by_one"])
def test_a_killed_training_goes_on_with_another_number_of_processes(runs, kind):
    assert_same(trained(runs, "sft_lora", "one"), trained(runs, "sft_lora", kind))
    for resumed in (kind, "two" if kind == "by_one" else "ddp"):
        assert "going on from step 3" in (runs / resumed / "sft_lora" / "run.log").read_text()
    for used in ("killed" if kind == "by_one" else "ddp_killed", kind):
        assert not list((runs / used / "sft_lora" / "checkpoints").glob("last*"))


def test_half_precision_weights_stay_mapped_until_they_are_parted(runs):
    config = model_config("tiny_llama", "source=directory", f"path={runs}/half")
    mapped, whole = (load_model(config, CACHE, to_device=on_device) for on_device in (False, True))
    assert mapped.model.dtype == torch.bfloat16
    assert whole.model.dtype == torch.float32
    assert model_identity(mapped.model) == model_identity(whole.model)


def test_another_strategy_is_told_that_it_cannot_go_on(runs, tmp_path):
    checkpoint = runs / "kept" / "sft_lora" / CHECKPOINT
    outcome = execute(runs, *words(runs, "sft_lora", "other", f"resume={runs}/kept/sft_lora"))
    assert f"{checkpoint}: it was written by trainer.strategy=fsdp2. Fix: go on with" in outcome.errors
    torch.save({"state_dict": {}, "global_step": 3}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"not written by trainer\.strategy=fsdp2"):
        ShardedStrategy().load_checkpoint(tmp_path / "last.ckpt")
    shutil.rmtree(next(checkpoint.parent.glob("last.ckpt.*")))
    with pytest.raises(UserError, match="not a whole checkpoint"):
        count_steps(checkpoint)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Touch:
        def __reduce__(self):
            return Path.touch, (tmp_path / "run",)

    (tmp_path / ".metadata").write_bytes(pickle.dumps(Touch()))
    with pytest.raises(UserError, match=r"\.metadata: no description of a checkpoint: it names .* Fix: go on from"):
        DescriptionReader(tmp_path).read_metadata()
    assert not (tmp_path / "run").exists()


def test_processes_of_other_data_are_refused(monkeypatch):
    """The first tells, the others end."""
    dialogues = SimpleNamespace(splits={"train": [SimpleNamespace(id="a")]})
    trainer = SimpleNamespace(world_size=2, is_global_zero=True, datamodule=dialogues)
    gathered = lambda own: [own, dict.fromkeys(own, "another"), own]  # noqa: E731
    monkeypatch.setattr(processes, "gather_objects", gathered)
    message = "process 1 of 3 has other code and training dialogues than the first"
    with pytest.raises(UserError, match=message):
        processes.SameWork("sft").on_fit_start(trainer, None)
    trainer.is_global_zero = False
    with pytest.raises(SystemExit):
        processes.SameWork("sft").on_fit_start(trainer, None)
    monkeypatch.setattr(processes, "gather_objects", lambda own: [own, own])
    processes.SameWork("sft").on_fit_start(trainer, None)


def test_reference_log_probs_of_all_processes_are_those_of_one(runs):
    others = sorted((runs / "cache").glob("reference_log_probs*/*/log_probs.safetensors"))
    assert len(others) == 2  # training and validation
    for other in others:
        own = load_file(CACHE / other.relative_to(runs / "cache"))["log_probs"]
        torch.testing.assert_close(load_file(other)["log_probs"], own, atol=1e-5, rtol=0)
