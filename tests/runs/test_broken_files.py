"""Whatever is in a file that the product reads: it is read, or told in one line with the file's name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esc_lab.artifacts import read_yaml
from esc_lab.comparison.result import compute_comparison
from esc_lab.config import Config
from esc_lab.config.search import MCTSConfig
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.metrics.predictions import read_predictions
from esc_lab.models.checkpoint_files import find_checkpoint
from esc_lab.runs import manifest
from esc_lab.runs.layout import CHECKPOINT
from esc_lab.runs.lineage import find_searches
from esc_lab.runs.resume import count_steps, resolve_resume
from esc_lab.scorers.classifier_files import load_classifier
from esc_lab.search.builder import load_tree
from esc_lab.search.clients.replay import ReplayClient
from esc_lab.search.journal import FORMAT, Journal, read_journal_config
from tests.cli.test_run import finished_run
from tests.conftest import model_config
from tests.runs.test_resume import interrupted_run
from tests.runs.test_resume import settings as training

ODD = st.sampled_from([None, True, -1, 1e308, "", "x", [], {}, [[]], {"x": {}}])


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in parts for place in _places(part, (*path, key)))]


def _put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = _put(copy[path[0]], path[1:], new)
    return copy


@st.composite
def corruptions(draw: st.DrawFn, content: bytes) -> bytes:
    """The content cut short, with bytes flipped, nested without end, or with a value of another type."""
    kind = draw(st.sampled_from(["truncate", "flip", "nest", "retype", "replace"]))
    if kind == "truncate":
        return content[: draw(st.integers(0, len(content)))]
    if kind == "flip":
        places = draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4))
        flipped = bytearray(content)
        for place in places:
            flipped[place] ^= draw(st.integers(1, 255))
        return bytes(flipped)
    if kind == "nest":
        return draw(st.sampled_from([b"[" * 200_000, b'{"a":' * 200_000, b"a: &a [*a]\n", b"- " * 5000]))
    if kind == "replace":
        return draw(st.sampled_from([b"", b"[]", b"{}", b"null", b"1e999", b"\xff\xfe", b"{}\n[]\n"]))
    try:
        lines = [json.loads(line) for line in content.splitlines()]
    except ValueError:
        return content[1:]
    number = draw(st.integers(0, len(lines) - 1))
    lines[number] = _put(lines[number], draw(st.sampled_from(_places(lines[number]))), draw(ODD))
    return "\n".join(map(json.dumps, lines)).encode()


JOB = {"job": 0, "overrides": ["seed=1"], "directory": "/x/0", "status": "done", "seconds": 1.5, "metrics": {"a": 1.0}}
PREDICTION = {
    "dialogue": "a", "turn": 1, "gold": ["Question"], "chosen": "Question", "distribution": {"Question": 1.0},
}  # fmt: skip
ANSWER = {"text": "hello", "model": "m", "prompt_tokens": 1, "completion_tokens": 1}
NOTE = {"model": {"name": "m", "source": "random", "path": ""}, "inventory": "esconv", "strategies": ["Question"],
        "reply_tokens": 8, "accuracy": 0.5}  # fmt: skip


def as_lines(*records: Any) -> bytes:
    return "\n".join(map(json.dumps, records)).encode() + b"\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[str, bytes]:
    """Files of a finished run."""
    run = finished_run(tmp_path_factory.mktemp("finished") / "run", **{"strategy/Q": 0.5})
    config = json.dumps(read_yaml(run / "config.yaml")).encode()  # JSON is YAML, and its values can be exchanged
    return {
        "config.yaml": config,
        "metrics.json": (run / "metrics.json").read_bytes(),
        "environment.json": b'{"a": "2"}',
    }


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> dict[str, bytes]:
    """Files of an interrupted training."""
    run = interrupted_run(tmp_path_factory.mktemp("interrupted") / "run", 2)
    return {name: (run / name).read_bytes() for name in ("config.yaml", str(CHECKPOINT))}


@pytest.fixture(scope="module")
def new_training(tmp_path_factory) -> Config:
    return training(tmp_path_factory.mktemp("new"))


def write(directory: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def _classifier(place: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (place / name).write_bytes(b"{}")
    load_classifier(place, load_inventory("esconv"), place)


def _base_model(place: Path) -> None:
    find_checkpoint(model_config("tiny_llama"), place)


def _replay(place: Path) -> None:
    ReplayClient(place / "r.jsonl", identity={}, scores=False)


def _compare(place: Path) -> None:
    compute_comparison([place])


READERS: dict[str, tuple[str, bytes, Callable[[Path], object]]] = {
    "manifest": ("manifest.jsonl", as_lines(JOB, {**JOB, "job": 1, "status": "failed"}), manifest.read_jobs),
    "multirun": ("multirun.json", as_lines({"words": ["seed=1"], "common": ["model"]}), manifest.read_overrides),
    "predictions": ("p.jsonl", as_lines(PREDICTION), lambda place: [*read_predictions(place / "p.jsonl")]),
    "note of a base model": ("adapter/base_model.json", as_lines({"name": "m"}), _base_model),
    "note of a classifier": ("classifier.json", as_lines(NOTE), _classifier),
    "tree": ("t.json", as_lines({"grown_with": "f", "counts": {}, "settings": {}}),
             lambda place: load_tree(place / "t.json", "f", MCTSConfig())),
    "recording": ("r.jsonl", as_lines({"key": "k", "answer": ANSWER}), _replay),
    "journal": ("j.jsonl", as_lines({"format": FORMAT, "config": {}}, {"key": "k", "answer": ANSWER, "at": "t",
                "role": "judge", "cached": False}), lambda place: Journal(place / "j.jsonl", {})),
    "head of a journal": ("j.jsonl", as_lines({"config": {}}), lambda place: read_journal_config(place / "j.jsonl")),
    "metrics": ("metrics.json", b"", _compare),
    "environment": ("environment.json", b"", _compare),
    "configuration": ("config.yaml", b"", _compare),
    "origins": ("config.yaml", b"", find_searches),
    "checkpoint": (str(CHECKPOINT), b"", lambda place: count_steps(place / CHECKPOINT)),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[*HealthCheck])
def test_a_broken_file_is_told_in_one_line(tmp_path_factory, finished, interrupted, name, data):
    file, content, read = READERS[name]
    place = write(tmp_path_factory.mktemp("broken"), {**interrupted, **finished} if not content else {})
    content = content or (place / file).read_bytes()
    write(place, {file: data.draw(corruptions(content))})
    message = str(place)
    try:
        read(place)
    except UserError as error:
        message = str(error)
    assert str(place) in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("file", ["config.yaml", str(CHECKPOINT)])
@given(data=st.data())
@settings(max_examples=15, suppress_health_check=[*HealthCheck])
def test_a_broken_run_stops_no_resume(tmp_path_factory, interrupted, new_training, file, data):
    root = tmp_path_factory.mktemp("runs")
    whole = write(root / "sft" / "whole", interrupted)
    broken = write(root / "sft" / "broken", interrupted | {file: data.draw(corruptions(interrupted[file]))})
    cfg = replace(new_training, run_dir=str(root / "sft" / "new"), output_root=str(root), resume="auto")
    assert resolve_resume(cfg).resume in (str(whole), str(broken))


def test_a_broken_multirun_stops_no_resume(tmp_path, caplog):
    manifest.write_overrides(tmp_path / "whole", ["seed=1"])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "multirun.json").write_text("[" * 200_000)
    assert manifest.find_multirun(tmp_path, ["seed=1"]) == tmp_path / "whole"
    assert f"left out: {tmp_path}/broken/multirun.json: not what a multirun was started with" in caplog.text


def test_trainings_that_go_on_from_each_other(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        interrupted_run(tmp_path / name, 1, f"init_from={tmp_path / other}")
    assert find_searches(tmp_path / "a") == ([], [])
