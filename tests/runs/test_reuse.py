"""Results that runs share: what their keys depend on, what is taken along, and that each is computed once."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from esc_lab import config
from esc_lab.artifacts import fingerprint
from esc_lab.cli.compositions import CONF
from esc_lab.runs.layout import BASE_MODEL, REUSED
from esc_lab.runs.reuse import STORED, find_reused_stages, result_inputs, run_or_reuse
from tests.conftest import ROOT

SAMPLE = ROOT / "esc_lab" / "data" / "corpora" / "sample.jsonl"


@lru_cache
def settings(stage: str, *words: str) -> config.Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return config.typed(compose("config", [f"stage={stage}", "model=tiny_llama", *words]))


def key(stage: str, *words: str) -> str:
    return fingerprint(result_inputs(settings(stage, *words)))


# --- what a result depends on


def test_data_counts_by_its_content_and_not_by_its_place(tmp_path):
    lines = SAMPLE.read_text().splitlines(keepends=True)
    for name, text in (("same", "".join(lines)), ("other", "".join(lines[1:]))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.jsonl").write_text(text)
    same, other = (f"data.path={tmp_path}/{name}/file.jsonl" for name in ("same", "other"))
    for stage in STORED:
        assert key(stage, same) == key(stage)
        assert key(stage, other) != key(stage)


@pytest.mark.parametrize(
    ("key_name", "folder"),
    [("checkpoint", "adapter"), ("evaluate.classifier", "classifier"), ("evaluate.best_of.reward", "reward")],
)
def test_a_trained_model_counts_by_its_weights(key_name, folder, tmp_path):
    def run(name: str, weights: str, metrics: str) -> str:
        (tmp_path / name / folder).mkdir(parents=True)
        (tmp_path / name / folder / "adapter_model.safetensors").write_text(weights)
        (tmp_path / name / "metrics.json").write_text(metrics)
        return f"{key_name}={tmp_path / name}"

    first = key("evaluate", run("first", "1", "{}"))
    assert first != key("evaluate")
    assert key("evaluate", run("second", "1", '{"seconds": 2}')) == first
    assert key("evaluate", run("third", "2", "{}")) != first
    assert key("cso", f"init_from={tmp_path / 'first'}") != key("cso", f"init_from={tmp_path / 'third'}")


def test_what_a_search_asks_counts_by_where_it_is(tmp_path, monkeypatch):
    words = ("llm=openai", "llm.openai.model=default")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://one/v1")
    one = key("search", *words)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://user:password@one/v1/")
    assert key("search", *words) == one
    assert "password" not in json.dumps(result_inputs(settings("search", *words)))
    monkeypatch.setenv("OPENAI_BASE_URL", "http://other/v1")
    assert key("search", *words) != one
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    local = f"llm.judge.model={model}"
    before = key("search", local)
    (model / "model.safetensors").write_text("other weights")
    assert key("search", local) != before


def test_a_chat_template_counts_by_its_content(tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text("one")
    words = (f"model.chat_template={template}",)
    before = key("sft", *words)
    template.write_text("two")
    assert key("sft", *words) != before


# --- sharing


def stage(cfg: config.Config) -> dict[str, float]:
    """Stands where a stage's `run` does: leaves files in the run directory, returns metrics."""
    directory = Path(cfg.run_dir)
    with (Path(cfg.cache_dir) / "computed").open("a") as file:
        file.write(f"{directory.name}\n")
    (directory / "adapter").mkdir()
    (directory / "adapter" / "weights").write_text("w")
    (directory / "tree.journal.jsonl").write_text("{}\n")
    (directory / "checkpoints").mkdir()
    (directory / "checkpoints" / "last.ckpt").write_text("large")
    return {"val/loss": 0.5}


def prepared(tmp_path: Path, name: str) -> config.Config:
    directory = tmp_path / name
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(f"of: {name}\nstage: sft\n")
    return replace(settings("sft"), run_dir=str(directory), cache_dir=str(tmp_path / "cache"))


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def content_of(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in files(directory)}


@pytest.fixture
def cache(tmp_path) -> Callable[[], list[str]]:
    (tmp_path / "cache").mkdir()
    return lambda: (tmp_path / "cache" / "computed").read_text().split()


def test_the_second_run_has_all_files_and_computes_nothing(tmp_path, cache):
    first, second = prepared(tmp_path, "first"), prepared(tmp_path, "second")
    assert run_or_reuse(first, stage) == run_or_reuse(second, stage) == {"val/loss": 0.5}
    assert cache() == ["first"]
    results = {"adapter/weights", "tree.journal.jsonl"}
    assert files(tmp_path / "first") == {"config.yaml", "checkpoints/last.ckpt", *results}
    assert files(tmp_path / "second") == {"config.yaml", "metrics.json", REUSED, *results}
    assert (tmp_path / "second" / "config.yaml").read_text() == "of: second\nstage: sft\n"
    assert find_reused_stages(tmp_path / "first") == {"first": False}
    assert find_reused_stages(tmp_path / "second") == {"second": True}
    # A journal grows in place when its search goes on; the store must not grow with it.
    with (tmp_path / "second" / "tree.journal.jsonl").open("a") as file:
        file.write("more\n")
    third = prepared(tmp_path, "third")
    run_or_reuse(third, stage)
    assert (tmp_path / "third" / "tree.journal.jsonl").read_text() == "{}\n"


def test_whose_result_it_is_and_that_it_may_have_no_curves(tmp_path, cache, caplog):
    caplog.set_level("INFO")
    first, second = prepared(tmp_path, "first"), prepared(tmp_path, "second")
    run_or_reuse(first, stage)
    run_or_reuse(replace(second, logger=replace(second.logger, name="csv")), stage)
    assert f"computed by {tmp_path / 'first'}" in caplog.text
    assert json.loads((tmp_path / "second" / REUSED).read_text())["run"] == str(tmp_path / "first")
    assert "it has no curves" in caplog.text


def test_steps_of_a_run_are_told_apart(tmp_path, cache):
    run_or_reuse(prepared(tmp_path, "before"), stage)
    run_or_reuse(prepared(tmp_path, "whole/sft"), stage)
    for name, of in (("search", "search"), ("compare", "compare"), (".hydra", "sft")):
        (tmp_path / "whole" / name).mkdir()
        (tmp_path / "whole" / name / "config.yaml").write_text(f"stage: {of}\n")
    (tmp_path / "whole" / "config.yaml").write_text("seed: 1\nstage: pipeline\n")
    assert find_reused_stages(tmp_path / "whole") == {"sft": True, "search": False}


@pytest.mark.parametrize("words", [["reuse=false"], ["trainer.fast_dev_run=true"]])
def test_runs_that_do_not_share(tmp_path, cache, words):
    for name in ("first", "second"):
        cfg = prepared(tmp_path, name)
        run_or_reuse(replace(settings("sft", *words), run_dir=cfg.run_dir, cache_dir=cfg.cache_dir), stage)
    assert cache() == ["first", "second"]


def test_a_failed_run_leaves_nothing_to_share(tmp_path, cache):
    def fail(cfg: config.Config) -> dict[str, float]:
        stage(cfg)
        raise RuntimeError("loss is nan")

    with pytest.raises(RuntimeError, match="nan"):
        run_or_reuse(prepared(tmp_path, "first"), fail)
    run_or_reuse(prepared(tmp_path, "second"), stage)
    assert cache() == ["first", "second"]
    assert not (tmp_path / "second" / REUSED).exists()


def test_a_search_that_its_budget_stopped_is_not_shared(tmp_path, cache):
    def search(unfinished: float) -> Callable[[config.Config], dict[str, float]]:
        return lambda cfg: {**stage(cfg), "search/unfinished_trees": unfinished}

    runs = [replace(prepared(tmp_path, name), stage="search") for name in ("first", "second", "third")]
    for cfg, unfinished in zip(runs, (1.0, 0.0, 0.0), strict=True):
        assert run_or_reuse(cfg, search(unfinished))["search/unfinished_trees"] == unfinished
    assert cache() == ["first", "second"]


def test_what_an_earlier_run_left_is_not_shared(tmp_path, cache):
    first = prepared(tmp_path, "first")
    left = tmp_path / "first" / "model"
    left.mkdir()
    for name in ("old.safetensors", BASE_MODEL):
        (left / name).write_text("of an earlier run")
    (tmp_path / "first" / REUSED).write_text("{}")
    run_or_reuse(first, stage)
    assert find_reused_stages(tmp_path / "first") == {"first": False}
    prepared(tmp_path, "second")
    (tmp_path / "second" / "model").mkdir()
    (tmp_path / "second" / "model" / BASE_MODEL).write_text("of an earlier run")
    run_or_reuse(replace(first, run_dir=str(tmp_path / "second")), stage)
    assert cache() == ["first"]
    # The model that lay there is no checkpoint any more.
    assert files(tmp_path / "second") == {
        "config.yaml",
        "metrics.json",
        REUSED,
        "adapter/weights",
        "tree.journal.jsonl",
    }


def compute(cfg: config.Config) -> None:
    metrics = run_or_reuse(cfg, stage)
    (Path(cfg.run_dir) / "returned.json").write_text(json.dumps(metrics))


def test_of_two_that_want_the_same_one_computes(tmp_path, cache):
    spawn = multiprocessing.get_context("spawn")
    runs = [prepared(tmp_path, name) for name in ("first", "second")]
    processes = [spawn.Process(target=compute, args=(cfg,)) for cfg in runs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(cache()) == 1
    assert [json.loads(Path(cfg.run_dir, "returned.json").read_text()) for cfg in runs] == [{"val/loss": 0.5}] * 2
