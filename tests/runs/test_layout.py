"""Configurations of older runs, read with the names of today, and the run directory that holds something."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from esc_lab.cli import overrides  # noqa: F401 (the resolvers of conf/config.yaml)
from esc_lab.config import checks, keys, typed
from esc_lab.config.files import CONF
from esc_lab.config.schema import RENAMED
from esc_lab.runs import layout

KEYS = {key.name: key for key in list(keys())}


@pytest.fixture
def renamed(monkeypatch):
    names = {
        "evaluate.least": "evaluate.history_turns",
        "tag": "tags",
        "old.seed": "seed",
        "evaluate.replies=first": "evaluate.replies=gold",
    }
    for old, new in names.items():
        monkeypatch.setitem(RENAMED, old, new)


def test_an_old_configuration_has_the_names_of_today(tmp_path, renamed):
    old = {"stage": "sft", "evaluate": {"least": 3, "replies": "first"}, "old": {"seed": 2}, "tag": ["a"], "seed": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old, sort_keys=False))
    assert layout.read_config(tmp_path) == {
        "stage": "sft",
        "evaluate": {"history_turns": 3, "replies": "gold"},
        "old": {},
        "tags": ["a"],
        "seed": 1,  # what has the name of today wins
    }
    (tmp_path / "config.yaml").write_text("evaluate: none\n")
    assert layout.read_config(tmp_path) == {"evaluate": "none"}


def test_an_old_configuration_has_the_options_that_it_named(tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = asdict(typed(compose("config", ["stage=sft", "inventory=cso", "prompt=c1_hf"])))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert layout.read_config(tmp_path) == settings
    old = deepcopy(settings)
    old["inventory"] = {"name": "cso"}
    old["prompt"] = {side: {"template": "c1_hf"} for side in ("train", "eval")}
    del old["llm"]["wording"]
    old["llm"]["judge"]["axes"] = {axis.pop("name"): axis for axis in old["llm"]["judge"]["axes"]}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text(yaml.safe_dump(old, sort_keys=False))
    found = layout.read_config(tmp_path / "old")
    assert settings["inventory"] | found["inventory"] == settings["inventory"]
    assert found["llm"] == settings["llm"]
    for side in ("train", "eval"):
        assert found["prompt"][side]["layout"] == settings["prompt"][side]["layout"]


def test_an_old_name_is_refused_with_the_new_one(renamed):
    message = checks.unknown_key("evaluate.least")
    assert message == (
        "unknown config key 'evaluate.least'; it is 'evaluate.history_turns' now. Fix: write evaluate.history_turns=..."
    )
    key = KEYS["evaluate.replies"]
    assert "; it is evaluate.replies=gold now" in str(checks._value_problem(key, "first"))


def test_new_names_are_keys_and_old_ones_are_not():
    for old, new in RENAMED.items():
        key, equals, value = new.partition("=")
        assert key in KEYS, new
        assert value in KEYS[key].choices if equals else old not in KEYS, old


def test_the_run_that_holds_weights(tmp_path):
    (tmp_path / "config.yaml").write_text("stage: sft\n")
    assert layout.find_run(tmp_path) == layout.find_run(tmp_path / "adapter") == tmp_path
    assert layout.find_run(tmp_path / "adapter" / "more") is None


def test_a_run_that_has_the_name_of_a_folder_of_weights(tmp_path):
    """The step `reward` of a pipeline is the run, not the pipeline, and has a folder `reward`; also if moved."""
    for run in ("pipeline", "pipeline/reward", "pipeline/search"):
        (tmp_path / run).mkdir()
        (tmp_path / run / layout.CONFIG).write_text("stage: x\n")
    step, search = tmp_path / "pipeline" / "reward", tmp_path / "pipeline" / "search"
    (step / "reward").mkdir()
    assert layout.find_run(step) == layout.find_run(step / "reward") == step
    assert layout.find_run(Path("/gone/reward"), search) == layout.find_run(Path("/gone/reward/reward"), search) == step
