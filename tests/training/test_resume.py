"""An interrupted training that another run goes on with ends as if nothing had happened, to the last bit."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from esc_lab.data.corpora import write_dialogues
from esc_lab.runs.layout import CHECKPOINT
from esc_lab.runs.resume import count_steps
from esc_lab.training.cso import CSOModule
from esc_lab.training.module import TrainingModule
from esc_lab.training.sft import SFTModule
from tests.conftest import CACHE, HANGS_S, ROOT
from tests.e2e.conftest import SEARCH, Outcome, execute
from tests.training.modules import add_values

SHORT = CACHE / "tests" / "short_valued.jsonl"
# Three steps an epoch, with all that has a state: dropout, Adam's moments, a schedule.
WORDS = (
    "stage=sft", "adapter.dropout=0.3", "optimizer.lr=0.02", "data.step_dialogues=2", "trainer.save_every=1",
    "data=jsonl", f"data.path={SHORT}", "data.limit={train: 6, val: 2, test: 1}",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def short_dialogues(sample_dialogues) -> None:
    """The beginnings of the sample's dialogues: many trainings here, of which only the steps matter."""
    write_dialogues([replace(one, turns=tuple(map(add_values, one.turns[:4]))) for one in sample_dialogues], SHORT)


@dataclass
class Watch:
    """What the steps of all runs were, and where the next run is to be interrupted."""

    steps: dict[tuple[type, int], tuple] = field(default_factory=dict)
    dialogues: tuple[str, ...] = ()
    at: int | None = None
    act: object = None

    def take(self) -> dict[tuple[type, int], tuple]:
        taken, self.steps = self.steps, {}
        return taken


@pytest.fixture
def watch(monkeypatch) -> Iterator[Watch]:
    """Notes step, loss and learning rate of each step; `act(module)` is called before step `at` (from 0)."""
    seen = Watch()
    optimize = TrainingModule.optimize

    def watched(self, losses, rows, tokens, dialogues):
        step, seen.dialogues = self.trainer.global_step, dialogues
        if step == seen.at:
            seen.act(self)
        values = (optimize(self, losses, rows, tokens, dialogues), self.lr_schedulers().get_last_lr()[0], dialogues)
        assert seen.steps.setdefault((type(self), step), values) == values
        return values[0]

    monkeypatch.setattr(TrainingModule, "optimize", watched)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield seen
    for number, handler in handlers.items():
        signal.signal(number, handler)


def crash(module: TrainingModule) -> None:
    raise RuntimeError("crash")


def crash_in(wanted: type[TrainingModule], module: TrainingModule) -> None:
    if isinstance(module, wanted):
        crash(module)


def interrupt(module: TrainingModule) -> None:
    raise KeyboardInterrupt


def terminate(module: TrainingModule) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def run(root: Path, *words: str) -> Outcome:
    """One run in a directory of its own below `root`."""
    own = {word.split("=")[0] for word in words}
    number = len(list(root.glob("sft/*")))
    default = [word for word in WORDS if word.split("=")[0] not in own]
    return execute(root, *default, *words, f"hydra.run.dir={root}/sft/{number:02d}")


def stopped(watch: Watch, at: int, act, root: Path, *words: str, status: int = 1) -> Outcome:
    watch.at, watch.act = at, act
    outcome = run(root, *words)
    watch.at = None
    assert outcome.status == status, outcome.errors
    assert not (outcome.path / "metrics.json").exists()
    return outcome


@pytest.fixture(scope="module")
def uninterrupted() -> dict[tuple[str, ...], tuple[Outcome, dict]]:
    """Runs by their words, for the tests that compare others with them."""
    return {}


@pytest.fixture
def whole_run(watch, uninterrupted, tmp_path_factory):
    """`whole_run(*words)` -> the uninterrupted run of these words, and its steps."""

    def get(*words: str) -> tuple[Outcome, dict]:
        if words not in uninterrupted:
            uninterrupted[words] = run(tmp_path_factory.mktemp("whole"), *words), watch.take()
        return uninterrupted[words]

    return get


def assert_same_result(first: Outcome, second: Outcome) -> None:
    assert (first.status, second.status) == (0, 0), first.errors + second.errors
    for outcome in (first, second):
        assert not list(outcome.path.glob("checkpoints/last*"))
    kept = [{k: v for k, v in run.metrics.items() if not k.endswith("seconds")} for run in (first, second)]
    assert kept[0] == kept[1]
    weights = [load_file(run.path / "adapter" / "adapter_model.safetensors") for run in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


# Words, steps before which runs crash one after the other.
CASES = {
    "validation at the end of an epoch": (["trainer.max_epochs=3"], (2, 3, 7)),
    "validation inside an epoch": (["trainer.max_epochs=2", "trainer.validate_every=0.7"], (2, 3, 5)),
    "validation by steps": (["trainer.max_steps=8", "trainer.max_epochs=-1", "trainer.validate_every=4"], (4, 6, 7)),
    "steps end inside an epoch": (["trainer.max_steps=5", "trainer.save_every=2"], (2, 3)),
    "between two steps on the same trees": (
        ["stage=cso", "objective=grpo", "objective.iterations=3", "data.step_pairs=2", "trainer.max_steps=5"],
        (1, 2, 4),
    ),
    "no validation": (["trainer.max_epochs=2", "data.limit={train: 6, val: 0, test: 0}"], (1, 3)),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_training_is_the_uninterrupted_one(watch, whole_run, tmp_path, case):
    words, crashes = CASES[case]
    whole, expected = whole_run(*words)
    assert len(expected) == whole.metrics["train/steps"]
    for at in crashes:
        stopped(watch, at, crash, tmp_path / "parts", *words, "resume=auto")
    resumed = run(tmp_path / "parts", *words, "resume=auto")
    assert watch.steps == expected
    assert_same_result(whole, resumed)
    # Nothing is left that a later run could go on from.
    assert not list(tmp_path.rglob("last.ckpt*"))
    chain = [OmegaConf.load(path / "config.yaml").resume for path in sorted((tmp_path / "parts").glob("sft/*"))]
    assert chain == [None, *(str(tmp_path / f"parts/sft/{number:02d}") for number in range(len(crashes)))]


def test_best_weights_and_patience_survive(watch, tmp_path, monkeypatch):
    """The third validation is the best; training stops when three more have not been better."""
    planted = dict(zip(range(2, 19, 2), (5.0, 4.0, 3.0, 3.5, 6.0, 3.25, 1.0, 1.0, 1.0), strict=True))  # by step

    def validate(self):
        self.log("val/loss", planted[self.trainer.global_step])

    monkeypatch.setattr(SFTModule, "on_validation_epoch_end", validate)
    words = ("trainer.max_epochs=9", "trainer.patience=3", "data.limit={train: 4, val: 2, test: 1}")
    whole = run(tmp_path / "whole", *words)
    assert whole.metrics["train/steps"] == 12
    assert whole.metrics["val/loss"] == 3
    expected = watch.take()
    first = stopped(watch, 7, crash, tmp_path / "parts", *words)
    best = (first.path / "checkpoints" / "best.ckpt").read_bytes()
    resumed = run(tmp_path / "parts", *words, "resume=auto")
    assert watch.steps == expected
    assert_same_result(whole, resumed)
    for outcome in (first, resumed):
        assert (outcome.path / "checkpoints" / "best.ckpt").read_bytes() == best


TWO_EPOCHS = ("trainer.max_epochs=2", "logger=csv")


def test_resume_in_the_same_directory(watch, whole_run, tmp_path):
    words = (*TWO_EPOCHS, f"hydra.run.dir={tmp_path}/parts/sft/00")
    stopped(watch, 4, crash, tmp_path / "parts", *words)
    assert_same_result(whole_run(*TWO_EPOCHS)[0], run(tmp_path / "parts", *words, "resume=auto"))
    # Without `resume` the old checkpoint goes before the run starts.
    stopped(watch, 4, crash, tmp_path / "parts", *words)
    stopped(watch, 0, crash, tmp_path / "parts", *words)
    assert not (tmp_path / "parts/sft/00" / CHECKPOINT).exists()


@pytest.mark.parametrize(("act", "status", "step"), [(interrupt, 1, 4), (terminate, 143, 5)])
def test_ctrl_c_and_sigterm_write_a_checkpoint_and_fail(watch, whole_run, tmp_path, act, status, step):
    words = (*TWO_EPOCHS, "trainer.save_every=100")
    whole, expected = whole_run(*TWO_EPOCHS)
    first = stopped(watch, 4, act, tmp_path / "parts", *words, status=status)
    assert count_steps(first.path / CHECKPOINT) == step
    assert f"interrupted after step {step}; last checkpoint, for resume=auto: {first.path / CHECKPOINT}" in first.errors
    resumed = run(tmp_path / "parts", *words, f"resume={first.path}")
    assert watch.steps == expected
    assert_same_result(whole, resumed)


# Several rows of a step and of a validation: one for each dialogue.
SMALL_ROWS = ("data.limit={train: 6, val: 4, test: 1}", "data.row_tokens=700")


# There is no checkpoint before a validation that is due: after steps 2, 5 and 6.
@pytest.mark.parametrize(("signals", "kept"), [((0, 2, 4), 3), ((1, 3, 5), 5)])
def test_sigterm_in_any_step(watch, whole_run, tmp_path, signals, kept):
    """One run goes on after the other; the last step of all is included."""
    words = ("trainer.max_epochs=2", "trainer.validate_every=0.7", "trainer.save_every=100", *SMALL_ROWS)
    whole, expected = whole_run(*words)
    assert len(expected) == 6, whole.errors
    for at in signals:
        stopped(watch, at, terminate, tmp_path, *words, "resume=auto", status=143)
    last = run(tmp_path, *words, "resume=auto")
    assert f"going on from step {kept} of " in last.errors
    assert_same_result(whole, last)
    assert watch.steps == expected


@pytest.mark.parametrize("hook", ["setup", "on_validation_epoch_end", "on_fit_end"])
def test_sigterm_between_steps(watch, whole_run, tmp_path, monkeypatch, hook):
    words = ("trainer.max_epochs=1", *SMALL_ROWS)
    whole, _ = whole_run(*words)
    earlier = getattr(SFTModule, hook)

    def signalled(self, *args, **rest):
        terminate(self)
        return earlier(self, *args, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(SFTModule, hook, signalled)
        stopped(watch, -1, crash, tmp_path / "parts", *words, status=143)
    watch.at = None
    assert_same_result(whole, run(tmp_path / "parts", *words, "resume=auto"))


def test_ctrl_c_in_the_update_writes_no_mixture(watch, tmp_path, monkeypatch):
    """Half of the parameters may have been updated then."""
    step = torch.optim.AdamW.step
    calls = iter(range(100))

    def interrupted(self, *args, **rest):
        if next(calls) == 3:
            args[0]() if args else rest["closure"]()
            raise KeyboardInterrupt
        return step(self, *args, **rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    outcome = stopped(watch, -1, crash, tmp_path, "trainer.save_every=2")
    # After the validation of the first epoch, not in the fourth step.
    assert count_steps(outcome.path / CHECKPOINT) == 3


KILLED = """
import os, signal, sys
import torch
whole, written = torch.save, []

def cut_short(value, file, **rest):
    if file.name.endswith("last.ckpt.part"):
        written.append(file)
        if len(written) == 4:
            file.write(b"half of it")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    return whole(value, file, **rest)

torch.save = cut_short
sys.path.insert(0, {root!r})
sys.argv = ["run.py", *sys.argv[1:]]
import run
sys.exit(run.main())
"""


def test_killed_while_it_writes_a_checkpoint(watch, whole_run, tmp_path):
    words = [*WORDS, *TWO_EPOCHS, "model=tiny_llama", f"cache_dir={CACHE}", "reuse=false"]
    program = [sys.executable, "-c", KILLED.format(root=str(ROOT)), *words, f"hydra.run.dir={tmp_path}/parts/sft/00"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=HANGS_S)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (checkpoint,) = (tmp_path / "parts").rglob("last.ckpt")
    assert count_steps(checkpoint) == 3
    assert (checkpoint.parent / "last.ckpt.part").exists()
    whole, expected = whole_run(*TWO_EPOCHS)
    resumed = run(tmp_path / "parts", *TWO_EPOCHS, "resume=auto")
    assert watch.steps == {step: values for step, values in expected.items() if step[1] >= 3}
    assert_same_result(whole, resumed)
    # The logs of both parts make that of one training: same values at the same steps.
    assert logged(checkpoint.parents[1]) | logged(resumed.path) == logged(whole.path)


def logged(directory: Path) -> set[tuple[str, ...]]:
    """Step, epoch and losses of each line of the log."""
    with (directory / "metrics.csv").open() as file:
        rows = [(row["step"], row["epoch"], row["train/loss"], row["val/loss"]) for row in csv.DictReader(file)]
    return {row for row in rows if any(row[2:])}


# --- losses that are not finite


def poison(module: TrainingModule) -> None:
    next(parameter for parameter in module.parameters() if parameter.requires_grad).data.fill_(torch.nan)


def test_a_loss_that_is_not_finite_stops_before_the_step(watch, tmp_path):
    outcome = stopped(watch, 4, poison, tmp_path, "trainer.save_every=2", "logger=csv")
    assert len(watch.dialogues) == 2
    checkpoint = outcome.path / CHECKPOINT
    message = next(line for line in outcome.errors.splitlines() if line.startswith("error: "))
    assert message.startswith(
        f"error: optimizer step 5, dialogues {', '.join(watch.dialogues)}: loss nan, gradient norm"
    )
    assert f"Last checkpoint: {checkpoint} (step 4). Fix: lower optimizer.lr" in message
    assert "Traceback" not in outcome.errors
    state = torch.load(checkpoint, weights_only=True)
    assert state["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


# After one step the weights are not finite.
TOO_FAST = (
    "optimizer.name=sgd", "optimizer.lr=1e10", "optimizer.weight_decay=1e38", "trainer.gradient_clip=0",
    "scheduler.warmup=0",
)  # fmt: skip


def test_weights_that_are_not_finite_are_not_saved(watch, tmp_path):
    outcome = stopped(watch, -1, crash, tmp_path, *TOO_FAST)
    assert "optimizer step 2, dialogues" in outcome.errors
    assert "Last checkpoint: there is none yet" in outcome.errors
    assert not list(tmp_path.rglob("*.ckpt*"))


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over fork")
def test_all_processes_stop_at_a_loss_that_is_not_finite(tmp_path):
    command = [
        sys.executable, "run.py", *(word for word in WORDS if "optimizer" not in word), *TOO_FAST,
        "model=tiny_llama", "logger=none", "reuse=false", f"output_root={tmp_path}", f"cache_dir={CACHE}",
        "data.row_tokens=700",
        "trainer.accelerator=cpu", "trainer.strategy=ddp", "trainer.devices=2",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=HANGS_S)
    assert done.returncode == 1
    assert done.stderr.count("error: optimizer step 2, dialogues") == 1
    assert not list(tmp_path.rglob("metrics.json"))


# --- what it cannot go on from, and pipelines


def test_a_damaged_checkpoint_is_told(tmp_path, watch):
    old = stopped(watch, 1, crash, tmp_path / "runs").path
    content = (old / CHECKPOINT).read_bytes()
    for damaged in (b"", b"PK\x03\x04 and no more", content[: len(content) // 2]):
        (old / CHECKPOINT).write_bytes(damaged)
        outcome = stopped(watch, -1, crash, tmp_path / "runs", f"resume={old}")
        assert f"{CHECKPOINT}: not a whole checkpoint. Fix: delete it" in outcome.errors
        assert "Traceback" not in outcome.errors
        outcome = stopped(watch, 0, crash, tmp_path / "runs", "resume=auto")  # before its first step
        assert f"resume=auto leaves out {old / CHECKPOINT}: not a whole checkpoint" in outcome.errors
        assert "starting anew" in outcome.errors


def test_changed_data_are_told(tmp_path, watch):
    lines = (ROOT / "esc_lab/data/corpora/sample.jsonl").read_text().splitlines(keepends=True)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(lines[:20]))
    words = ("data=jsonl", f"data.path={corpus}")
    old = stopped(watch, 2, crash, tmp_path / "runs", *words).path
    corpus.write_text("".join(lines[20:40]))
    outcome = stopped(watch, -1, crash, tmp_path / "runs", *words, "resume=auto")
    assert f"{old / CHECKPOINT}: the training dialogues have changed since it was written" in outcome.errors


def test_a_pipeline_goes_on_inside_its_training(tmp_path, watch):
    """It crashes in one training, and the run that goes on crashes in the next one."""
    words = (
        *WORDS, "stage=pipeline", "trainer.max_epochs=1", "evaluate.generation.enabled=false", "data.step_pairs=8",
        "adapter.dropout=0.3", "search.seeds=3", *SEARCH,
    )  # fmt: skip
    whole = execute(tmp_path / "whole", *words)
    assert whole.status == 0, whole.errors
    crashed: list[Path] = []
    for step, module in (("sft", SFTModule), ("cso", CSOModule)):
        watch.at, watch.act = 1, partial(crash_in, module)
        watch.take()
        outcome = execute(tmp_path / step, *words, *(f"resume={path}" for path in crashed[-1:]))
        assert outcome.status == 1
        assert (outcome.path / step / CHECKPOINT).exists()
        assert all(f"going on from step 1 of {path / 'sft'}" in outcome.errors for path in crashed)
        crashed.append(outcome.path)
    watch.at = None
    watch.take()
    resumed = execute(tmp_path / "again", *words, f"resume={crashed[-1]}")
    assert f"going on from step 1 of {crashed[-1] / 'cso'}" in resumed.errors
    assert not list(tmp_path.rglob("last.ckpt*"))
    for name in ("sft", "cso"):
        parts = [Outcome(run.status, "", "", run.path / name) for run in (whole, resumed)]
        assert_same_result(*parts)
