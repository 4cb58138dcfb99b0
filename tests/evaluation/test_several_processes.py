"""Two processes share an evaluation: the first leaves, to the byte, what one process leaves, and the other nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from esc_lab.errors import UserError
from esc_lab.evaluation import module as module_file
from esc_lab.evaluation.module import EvaluationModule
from esc_lab.training.datamodule import share_batches
from tests.e2e.conftest import execute
from tests.training.processes import train_together

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo over fork")

COMMON = (
    "stage=evaluate", "model=tiny_llama", "logger=none", "reuse=false", "trainer.accelerator=cpu",
    "data.limit={train: 2, val: 1, test: 5}", "evaluate.generation.max_new_tokens=6", "evaluate.generation.batch=4",
)  # fmt: skip
DRAWN = ("evaluate.generation.temperature=1.0", "evaluate.generation.samples=2")
EVALUATIONS = {
    "chooses": DRAWN,
    "prompted": (
        "prompt=c1_hf", "evaluate.prompted=random", "evaluate.replies=gold", "evaluate.sra.enabled=true",
        "evaluate.sra.heat_maps=2",
    ),
    "best_of": ("prompt.inference=best_of_n", "evaluate.best_of.replies=2", "evaluate.generation.decisions=9"),
    "one_dialogue": (*DRAWN, "data.limit={train: 2, val: 1, test: 1}", "evaluate.generation.batch=16"),
}  # fmt: skip
OWN = ("config.yaml", "environment.json", "run.log")  # of each process or run


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Each evaluation by one process, in `one`, and by two, in `0` and `1`."""
    root = tmp_path_factory.mktemp("evaluations")
    judges = {}
    for stage, steps in (("classifier", "trainer.max_steps=2"), ("reward", "trainer.max_steps=1")):
        outcome = execute(root, f"stage={stage}", steps, "data.limit={train: 4, val: 0, test: 0}")
        assert outcome.status == 0, outcome.errors
        judges[stage] = outcome.path
    words = {
        name: (
            *dict((word.split("=")[0], word) for word in (*COMMON, *own)).values(),
            f"evaluate.classifier={judges['classifier']}", f"evaluate.best_of.reward={judges['reward']}",
        )
        for name, own in EVALUATIONS.items()
    }  # fmt: skip
    for name, own in words.items():
        outcome = execute(root, *own, f"hydra.run.dir={root}/one/{name}")
        assert outcome.status == 0, outcome.errors
    several = ("trainer.devices=2", "trainer.strategy=ddp", "optimize_metric=decisions")
    places = [f"hydra.run.dir={root}/${{oc.env:RANK}}/{name}" for name in words]
    train_together(root, *((*own, *several, place) for own, place in zip(words.values(), places, strict=True)))
    return root


def read_files(run: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(run)): path for path in run.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(".") and name not in OWN}


def measured(content: bytes) -> dict[str, float]:
    return {name: value for name, value in json.loads(content).items() if name != "evaluate/seconds"}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_two_processes_leave_what_one_leaves(root, name):
    one, two = read_files(root / "one" / name), read_files(root / "0" / name)
    assert measured(one.pop("metrics.json")) == measured(two.pop("metrics.json"))
    assert one.keys() == two.keys() >= {"predictions.jsonl", "strategies.json", "dialogues.jsonl"}
    assert [name for name in one if one[name] != two[name]] == []
    assert read_files(root / "1" / name) == {}


def test_they_had_something_to_share(root):
    for name, batches in (("chooses", range(2, 5)), ("one_dialogue", [1])):
        logs = [(root / rank / name / "run.log").read_text() for rank in ("one", "0", "1")]
        assert ["evaluated batch" in log for log in logs] == [True, True, False]
        assert any(f"evaluated batch {count}/{count}" in logs[1] for count in batches)
    assert {"sra.json", "sra_heads.safetensors", "heat_map_2.html"} <= {*read_files(root / "0" / "prompted")}
    best, prompted = (json.loads(read_files(root / "0" / name)["metrics.json"]) for name in ("best_of", "prompted"))
    assert best["best_of/gain"] > 0
    chosen = read_files(root / "0" / "best_of")["predictions.jsonl"].decode().splitlines()
    assert sum(json.loads(line)["reply"] is not None for line in chosen) == 9
    assert prompted["adherence/n"] > 0


def test_batches_are_shared_by_their_tokens():
    batches = [[SimpleNamespace(end=end)] for end in (5, 1, 9, 3, 2, 4)]
    shares = share_batches(batches, 3)
    assert [[batch[0].end for batch in share] for share in shares] == [[9], [5, 1, 2], [3, 4]]
    assert share_batches(batches[:1], 3) == [batches[:1], [], []]


def test_what_one_process_meets_ends_all(monkeypatch):
    error = UserError("no number", where="dialogue a, turn 1", fix="another checkpoint")
    module = SimpleNamespace(
        _error=None,
        predictions=[],
        replied=[],
        best_of=None,
        trainer=SimpleNamespace(is_global_zero=True, world_size=2),
    )

    def measure(batch: object) -> None:
        raise error

    module._measure = measure
    with pytest.raises(UserError, match="no number"):  # one process is told at once
        EvaluationModule.test_step(module, ["a decision"], 0)
    with monkeypatch.context() as together:
        together.setattr(dist, "is_initialized", lambda: True)
        EvaluationModule.test_step(module, ["a decision"], 0)
    assert module._error is error
    monkeypatch.setattr(module_file, "gather_objects", lambda own: [(None, *own[1:]), own])
    with pytest.raises(UserError, match=r"dialogue a, turn 1: no number\. Fix: another checkpoint"):
        EvaluationModule._gather(module)
    module.trainer.is_global_zero = False
    with pytest.raises(SystemExit):
        EvaluationModule._gather(module)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stage=evaluate", "trainer.strategy=fsdp2"], "fsdp2: an evaluation has the whole model on each device. Fix:"),
        (
            ["stage=evaluate", "model=endpoint", "llm.openai.model=x", "trainer.devices=2"],
            "one process asks an endpoint",
        ),
        (["experiment=sra_templates", "trainer.strategy=fsdp2"], "stage=sra runs on one device"),
    ],
)
def test_what_cannot_be_shared_is_refused(tmp_path, words, message):
    outcome = execute(tmp_path, *words)
    assert outcome.status == 1
    assert message in outcome.errors
