"""Whatever is in a file that a user brings (corpora, models, options): it is read, or told in one line by its name."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esc_lab.artifacts import read_yaml
from esc_lab.comparison.judgements import read_judgements
from esc_lab.comparison.search_judges import read_search_judge
from esc_lab.config.training import AdapterConfig
from esc_lab.data.corpora import read_dialogues, write_dialogues
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.evaluation.read_table import read_table
from esc_lab.metrics.predictions import write_predictions
from esc_lab.models.load import add_adapter, load_model, save_trained
from esc_lab.models.sources import locate_model
from esc_lab.prompts import load_layout
from esc_lab.report.comparison_figures import read_curve
from esc_lab.runs.lineage import find_training_trees
from esc_lab.sra.sample import read_measured_replies
from esc_lab.stages.export import _read_metrics as read_metrics
from esc_lab.training.reference import stored_log_probs
from tests.comparison.synthetic import predictions
from tests.comparison.test_judgements import RATE
from tests.conftest import CACHE, ROOT, model_config
from tests.data.corpora.test_reading import EXTES, OWN, PUBLISHED, RAW
from tests.runs.test_broken_files import as_lines, corruptions, write

SURVEYED = {**OWN, "format": "esc-lab/2", "survey": {"initial_intensity": 4, "final_intensity": 2, "empathy": 5}}
PAIR = {"dialogue": "d0", "turn": 1, "reply": 0, "log_probs": [-1.0, -2.0], "tokens": [3, 4], "rewards": [0.1, 0.2],
        "log_ratios": [0.1, 0.0]}  # fmt: skip
JUDGED = {
    "judge": {"models": ["m"]}, "forced": [], "baseline": "a",
    "runs": [{"label": "a", "predictions": "f", "pairwise": None},
             {"label": "b", "predictions": "g", "pairwise": {"win_rate": RATE, "length_controlled": RATE,
              "consistency": RATE, "wins": 1, "ties": 1, "losses": 1}}],
}  # fmt: skip
JUDGEMENT = {"kind": "rubric", "run": "a", "dialogue": "d", "turn": 1, "overall": 2.5}
CHECK = {"models": ["m"], "believed": True, "verdict": "is believed"}
CURVE = b"step,epoch,train/loss\n1,0,0.5\n2,0,\n3,0,0.25\n"
Read = Callable[[Path], object]


def _preferences(form: str) -> bytes:
    """A file in a form of ESC-Pro."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "in.jsonl").write_bytes(as_lines(OWN))
        write_dialogues(read_dialogues(place / "in.jsonl"), place / "out.json", f"esc_pro_{form}")
        return as_lines(json.loads((place / "out.json").read_text()))


def _option(group: str, name: str) -> bytes:
    """An option of `conf/` as JSON, which is YAML, and whose values can be exchanged."""
    return as_lines({**read_yaml(ROOT / "conf" / group / f"{name}.yaml"), "name": "own"})


def _measured() -> bytes:
    prediction = asdict(predictions(skill=0.4, seed=1)[0])
    sra = {"paper/name": {"sra": 0.1, "control": 0.1, "relative": 1.0}}
    return as_lines(prediction | {"sra": sra, "neutral": {"phrase": "x", "place": "y"}})


def _table(place: Path) -> None:
    write_predictions(place / "predictions.jsonl", predictions(skill=0.4, seed=1))
    read_table(place / "predictions.jsonl", load_inventory("esconv").names, sra="paper/name", texts=False)


def _corpus(format: str, inventory: str | None = None) -> Read:
    return lambda place: read_dialogues(place / "corpus", format, inventory=inventory)


READERS: dict[str, tuple[str, Callable[[], bytes], Read]] = {
    "esconv": ("corpus", lambda: as_lines([PUBLISHED, RAW]), _corpus("auto")),
    "extes": ("corpus", lambda: as_lines(EXTES, EXTES), _corpus("extes")),
    "esc_pro dialogues": ("corpus", lambda: _preferences("dialogues"), _corpus("esc_pro", "esconv")),
    "esc_pro pairs": ("corpus", lambda: _preferences("pairs"), _corpus("auto", "esconv")),
    "esc_pro kto": ("corpus", lambda: _preferences("kto"), _corpus("esc_pro", "esconv")),
    "own format, with a survey": ("corpus", lambda: as_lines(OWN, SURVEYED), _corpus("auto")),
    "results of a judge": ("judge.json", lambda: as_lines(JUDGED), read_judgements),
    "judgements": ("judgements.jsonl", lambda: as_lines(JUDGEMENT, JUDGEMENT), read_judgements),
    "preference pairs": ("pairs.jsonl", lambda: as_lines(PAIR, PAIR), _table),
    "inventory": ("inventory/own.yaml", lambda: _option("inventory", "extes"), lambda p: load_inventory("own", [p])),
    "layouts": ("prompt/own.yaml", lambda: as_lines({"layouts": {"own": {"system": ["role", "choice"], "baselines":
                {"cot": "Think of {strategies}."}}}}), lambda place: load_layout("own", [place])),
    "trees of a training": ("training_trees.json", lambda: as_lines(["a", "b"]), find_training_trees),
    "check of a search's judge": ("judge_check.json", lambda: as_lines(CHECK), read_search_judge),
    "curves": ("metrics.csv", lambda: CURVE, lambda place: read_curve(place / "metrics.csv", "train/loss")),
    "measured replies": ("predictions.jsonl", _measured, lambda place: read_measured_replies(place, "a", "paper/name")),
}  # fmt: skip


def assert_read_or_told(place: Path, read: Read, *names: str) -> None:
    """The error names a file below the place, or one of these names."""
    message = str(place)
    try:
        read(place)
    except UserError as error:
        message = str(error)
    assert any(name in message for name in (str(place), *names)), message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
@settings(max_examples=30, suppress_health_check=[*HealthCheck])
def test_a_broken_file_is_told_in_one_line(tmp_path_factory, name, data):
    file, content, read = READERS[name]
    around = {"judge.json": as_lines(JUDGED), "judgements.jsonl": as_lines(JUDGEMENT), "config.yaml": b"{}"}
    place = write(tmp_path_factory.mktemp("broken"), around | {file: data.draw(corruptions(content()))})
    assert_read_or_told(place, read, "prompt layout 'own'", "template=own")


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_read(tmp_path, name):
    file, content, read = READERS[name]
    around = {"judge.json": as_lines(JUDGED), "judgements.jsonl": as_lines(JUDGEMENT), "config.yaml": b"{}"}
    read(write(tmp_path, around | {file: content()}))


# --- models


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> dict[str, bytes]:
    """Files of a model and of an adapter on it."""
    config = model_config("tiny_llama")
    location = Path(locate_model(config, CACHE))
    place = tmp_path_factory.mktemp("model")
    loaded = load_model(config, CACHE)
    torch.manual_seed(0)
    save_trained(add_adapter(loaded, AdapterConfig(r=2), config), config, place)
    paths = {f"base/{path.name}": path for path in location.iterdir()}
    paths |= {f"adapter/{path.name}": path for path in (place / "adapter").iterdir()}
    # JSON in one line, whose values can be exchanged.
    return {
        name: as_lines(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()
        for name, path in paths.items()
    }


MODEL_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"]
ADAPTER = ["adapter_config.json", "adapter_model.safetensors", "base_model.json"]


@pytest.mark.parametrize("file", [f"base/{name}" for name in MODEL_FILES] + [f"adapter/{name}" for name in ADAPTER])
@given(data=st.data())
@settings(max_examples=8, suppress_health_check=[*HealthCheck])
def test_a_broken_model_is_told_in_one_line(tmp_path_factory, model, file, data):
    place = write(tmp_path_factory.mktemp("broken"), model | {file: data.draw(corruptions(model[file]))})
    config = model_config("tiny_llama")

    def read(place: Path) -> None:
        if file.startswith("base/"):
            load_model(replace(config, source="directory", path=str(place / "base")), CACHE)
        else:
            load_model(config, CACHE, checkpoint=place)

    assert_read_or_told(place, read)
    shutil.rmtree(place)


# --- entries of the store that are older than checksums


@dataclass
class _Split:
    sequences: tuple[int, ...] = (1, 2, 3)
    first_token: tuple[int, ...] = (0, 1, 3, 6)
    content: str = "c"


@given(data=st.data())
@settings(max_examples=30, suppress_health_check=[*HealthCheck])
def test_broken_reference_log_probs_are_told_in_one_line(tmp_path_factory, data):
    place = tmp_path_factory.mktemp("store")
    values = np.zeros(6, dtype=np.float32)
    split: Any = _Split()
    stored_log_probs(split, {}, lambda: values, place)
    (file,) = place.rglob("log_probs.safetensors")
    content = data.draw(corruptions(file.read_bytes()))
    for path in [*file.parent.iterdir()]:
        path.chmod(0o644)
    (file.parent / ".checksums.json").unlink()
    file.write_bytes(content)
    assert_read_or_told(place, lambda place: stored_log_probs(split, {}, lambda: values, place))


@given(data=st.data())
@settings(max_examples=30, suppress_health_check=[*HealthCheck])
def test_broken_metrics_of_an_exported_run_are_told_in_one_line(tmp_path_factory, data):
    place = write(tmp_path_factory.mktemp("run"), {"metrics.json": data.draw(corruptions(as_lines({"val/loss": 0.5})))})
    assert_read_or_told(place, lambda place: read_metrics(place / "metrics.json"))
