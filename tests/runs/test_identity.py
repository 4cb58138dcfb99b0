"""What results depend on: each setting on the results that it declares, and all code that a stage imports."""

from __future__ import annotations

import shutil
from dataclasses import asdict, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from esc_lab import config
from esc_lab.cli.compositions import CONF
from esc_lab.config import Config, Key, keys
from esc_lab.runs.identity import PACKAGE, code_version, flatten, import_closure, select
from esc_lab.runs.reuse import STORED, result_inputs

KEYS = {key.name: key for key in list(keys())}


@lru_cache
def settings(*words: str) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return config.typed(compose("config", ["stage=sft", "model=tiny_llama", *words]))


def other_value(key: Key, value: Any, place: Path) -> Any:
    """Another value of the type of a key that the stages could read."""
    if key.path or (key.name.startswith("llm.") and key.name.count(".") == 2 and key.name.endswith(".model")):
        return str(place / "file") if key.path else str(place)
    if key.choices:
        if isinstance(key.default, list):
            return next([choice] for choice in key.choices if [choice] != value)
        return next(choice for choice in key.choices if choice not in (value, "directory", "replay"))
    if key.free:
        return {**value, "other": 1}
    if isinstance(key.default, list):
        return [*value, "other" if "str" in key.type else 1]
    if isinstance(value, bool):
        return not value
    if "int" in key.type or "float" in key.type:
        return 7 if value is None else value + 1
    return "other"


def with_value(section: Any, name: str, value: Any) -> Any:
    """A copy of a configuration, or a section of it, with one value changed."""
    first, _, rest = name.partition(".")
    return replace(section, **{first: with_value(getattr(section, first), rest, value) if rest else value})


def stages_that_differ(first: Config, second: Config) -> set[str]:
    pairs = {stage: [result_inputs(replace(cfg, stage=stage)) for cfg in (first, second)] for stage in STORED}
    return {stage for stage, (one, other) in pairs.items() if one != other}


@pytest.mark.parametrize("name", [name for name in KEYS if name != "stage"])
def test_a_key_changes_the_results_that_it_declares_and_no_others(tmp_path, name):
    (tmp_path / "file").write_text((PACKAGE / "data" / "corpora" / "sample.jsonl").read_text()[:-1])
    plain = settings()
    value = select(asdict(plain), [KEYS[name]])[name]
    changed = with_value(plain, name, other_value(KEYS[name], value, tmp_path))
    assert stages_that_differ(plain, changed) == KEYS[name].affects.stages & set(STORED)


@pytest.mark.parametrize(
    ("word", "stages"),
    [
        ("seed=7", {"sft", "cso", "classifier", "reward", "evaluate"}),
        ("objective=ipo", {"cso"}),
        ("optimizer.lr=0.5", {"sft", "cso", "classifier", "reward"}),
        ("adapter=full", {"sft", "cso", "classifier", "reward"}),
        ("model=tiny_gemma3", {"sft", "cso", "classifier", "reward", "evaluate", "converse"}),
        ("model@llm.local.model=tiny_gemma3", {"search", "extend", "cards", "converse"}),
        ("trainer.precision=bf16-mixed", {"sft", "cso", "classifier", "reward", "evaluate"}),
        ("data.licence=MIT", {"search", "extend", "sft", "cso", "classifier", "reward"}),  # for their cards
        ("search.seed=7", {"search"}),
        ("mcts=quick", {"search"}),
        ("data.limit={test: 2}", set(STORED)),
        ("inventory=cso", set(STORED)),
        ("prompt=c1_hf", {"sft", "cso", "reward", "evaluate", "converse"}),
        ("evaluate.generation.temperature=0.5", {"evaluate"}),
        ("data.negatives=random", {"cso", "reward"}),
        ("data.step_pairs=3", {"cso"}),
        ("data.step_dialogues=3", {"sft"}),
        # Nothing of a result depends on these.
        *((word, set()) for word in ("logger=none", "tags=[a]", "output_root=elsewhere", "cache_dir=elsewhere")),
        *((word, set()) for word in ("trainer.devices='2'", "search.concurrency=3", "optimize_metric=x")),
    ],
)
def test_what_users_write_changes_the_results_that_one_expects(word, stages):
    plain, changed = settings(), settings(word)
    assert stages_that_differ(plain, changed) == stages


def test_settings_by_their_dotted_names():
    older = {"seed": 3, "data": {"limit": {"test": 2}}, "model": {"path": "x", "gone": 1}}
    chosen = [KEYS[name] for name in ("seed", "data.limit", "data.path", "model.path", "trainer.precision")]
    assert select(older, chosen) == {"seed": 3, "data.limit": {"test": 2}, "model.path": "x"}
    assert flatten({"a": {"b": 1, "c": {}}, "d": [{}]}) == {"a.b": 1, "a.c": {}, "d": [{}]}


def test_the_schema_has_every_field():
    def names(node: Any, prefix: str = "") -> list[str]:
        found = []
        for entry in fields(node):
            value = getattr(node, entry.name)
            found += names(value, f"{prefix}{entry.name}.") if is_dataclass(value) else [f"{prefix}{entry.name}"]
        return found

    assert names(settings()) == list(KEYS)


# --- code


def test_a_stage_has_the_code_that_it_imports_and_no_other():
    needed = import_closure("esc_lab.stages.sft")
    assert {"esc_lab.training.sft", "esc_lab.tokens.trie", "esc_lab.models.load", "esc_lab.config"} <= set(needed)
    rooms = {name.split(".")[1] for name in needed if "." in name}
    assert rooms.isdisjoint({"search", "comparison", "judging", "runs", "tracking", "cli"})
    assert "esc_lab.stages.run_stage" not in needed
    assert "esc_lab.search.mcts" in import_closure("esc_lab.stages.search")


@pytest.fixture
def package(tmp_path) -> Path:
    for name in ("errors.py", "stages/one.py", "stages/two.py", "models/load.py", "models/more/a.jinja", "unused.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    for folder in (".", "stages", "models"):
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "stages" / "one.py").write_text(
        "from esc_lab.models import (\n    load,\n)\n\ndef run():\n    import esc_lab.errors as errors\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("stages/one.py", {"one"}),
        ("models/load.py", {"one"}),
        ("models/__init__.py", {"one"}),
        ("models/more/a.jinja", {"one"}),
        ("errors.py", {"one"}),
        ("stages/two.py", {"two"}),
        ("unused.py", set()),
    ],
)
def test_a_change_of_code_changes_the_stages_that_import_it(package, file, stages):
    before = {stage: code_version(stage, package) for stage in ("one", "two")}
    assert before["one"] != before["two"]
    copy = package.parent / f"{package.name}_changed"
    shutil.copytree(package, copy)
    with (copy / file).open("a") as changed:
        changed.write("# changed\n")
    assert {stage for stage in before if code_version(stage, copy) != before[stage]} == stages
