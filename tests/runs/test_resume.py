"""Which interrupted training `resume` means, and which checkpoints go when a run has finished."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from esc_lab import config
from esc_lab.cli.compositions import CONF
from esc_lab.errors import UserError
from esc_lab.runs.layout import CHECKPOINT
from esc_lab.runs.resume import drop_checkpoints, find_differences, resolve_resume
from tests.e2e.conftest import execute

# Settings that no training reads, though they are in its configuration.
UNRELATED = ("tags=[again]", "dashboard.name=other", "sra.draws=7", "evaluate.split=val", "data.licence=MIT")


def settings(run_dir: Path, *words: str) -> config.Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = config.typed(compose("config", ["stage=sft", "model=tiny_llama", *words]))
    cfg.run_dir = str(run_dir)
    return cfg


def interrupted_run(directory: Path, step: int, *words: str) -> Path:
    (directory / CHECKPOINT).parent.mkdir(parents=True)
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(settings(directory, *words))))
    torch.save({"global_step": step}, directory / CHECKPOINT)
    return directory


def test_auto_takes_the_furthest_run_of_the_same_configuration(tmp_path):
    interrupted_run(tmp_path / "sft/a", 50)
    furthest = interrupted_run(tmp_path / "multirun/x/2_b", 75, "logger=csv", "trainer.save_every=5", *UNRELATED)
    interrupted_run(tmp_path / "sft/c", 90, "optimizer.lr=0.1")
    interrupted_run(tmp_path / "cso/d", 90, "stage=cso")
    (interrupted_run(tmp_path / "sft/e", 90) / "config.yaml").unlink()
    cfg = settings(tmp_path / "sft/new", f"output_root={tmp_path}", "resume=auto")
    assert resolve_resume(cfg).resume == str(furthest)
    assert resolve_resume(settings(tmp_path / "new", f"output_root={tmp_path}", "resume=auto", "seed=2")).resume is None
    assert resolve_resume(settings(tmp_path / "new", f"output_root={tmp_path}")).resume is None


def test_another_configuration_is_refused_with_the_keys_that_differ(tmp_path):
    old = interrupted_run(tmp_path / "old", 50)
    words = (f"resume={old}", "optimizer.lr=0.1", "data.limit={train: 4}", "trainer.log_every=7")
    with pytest.raises(UserError) as caught:
        resolve_resume(settings(tmp_path / "new", *words))
    assert f"resume={old}: it was configured differently: data.limit, optimizer.lr. Fix" in str(caught.value)
    outcome = execute(tmp_path / "runs", "stage=sft", f"resume={old}", "optimizer.lr=0.2")
    assert outcome.status == 1
    assert "it was configured differently" in outcome.errors
    assert "Traceback" not in outcome.errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stage=evaluate", "resume=auto"], "stage=evaluate trains nothing"),
        (["trainer=dev", "resume=auto"], "a dry run goes on from nothing"),
        (["resume=nowhere"], "resume=nowhere: no checkpoints/last.ckpt there"),
    ],
)
def test_resume_where_there_is_nothing_to_resume(tmp_path, words, said):
    outcome = execute(tmp_path, *words, *([] if words[0].startswith("stage") else ["stage=sft"]))
    assert outcome.status == 1
    assert said in outcome.errors


def test_a_finished_run_takes_the_checkpoints_that_led_to_it_along(tmp_path):
    first = interrupted_run(tmp_path / "a", 1)
    second = interrupted_run(tmp_path / "b", 2, f"resume={first}")
    other = interrupted_run(tmp_path / "c", 2)
    drop_checkpoints(second)
    assert [path.parents[1] for path in tmp_path.rglob("last.ckpt")] == [other]


def test_models_of_a_pipeline_are_the_same_in_another_pipeline(tmp_path):
    words = ("stage=cso", "output_root=elsewhere")
    old = interrupted_run(tmp_path / "old" / "cso", 3, *words, f"init_from={tmp_path}/old/sft")
    cfg = settings(tmp_path / "new" / "cso", *words, f"init_from={tmp_path}/new/sft", f"resume={tmp_path}/old")
    assert find_differences(cfg, old) == []
    assert resolve_resume(cfg).resume == str(old)
    cfg.init_from = str(tmp_path / "old" / "sft")
    assert find_differences(cfg, old) == ["init_from"]
