"""A sweep whose jobs share what they can, as its user runs it: two processes, then once more, then compared."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from esc_lab import multirun
from tests.conftest import CACHE, ROOT
from tests.e2e.conftest import LIMITS, SEARCH, execute
from tests.test_run import PROBE

SWEEP = (
    "-m", "stage=pipeline", "model=tiny_llama", "objective=cso,simpo",
    "hydra.launcher.n_jobs=2", "logger=none", "trainer.max_steps=1", "evaluate.generation.enabled=false", LIMITS,
    *SEARCH,
)  # fmt: skip


def start(root: Path, output: str) -> subprocess.CompletedProcess[str]:
    words = (*SWEEP, f"output_root={root / output}", f"cache_dir={root / 'cache'}")
    return subprocess.run(
        [sys.executable, "-c", PROBE.format(path=str(ROOT / "run.py")), *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    (root / "cache").mkdir()
    (root / "cache" / "random_models").symlink_to(CACHE / "random_models")
    return root, start(root, "first")


def found(root: Path, output: str) -> tuple[Path, list[multirun.Job]]:
    (directory,) = (root / output / "multirun").iterdir()
    return directory, multirun.jobs(directory)


def test_each_shared_input_is_computed_once(sweep):
    root, done = sweep
    assert done.returncode == 0, done.stderr
    _, jobs = found(root, "first")
    assert [job.status for job in jobs] == ["done"] * 2
    computed = Counter(stage for job in jobs for stage, reused in job.stages.items() if not reused)
    assert computed == {
        "search": 1, "evaluate_base": 1, "sft": 1, "evaluate_sft": 1, "cso": 2, "evaluate_cso": 2,
    }  # fmt: skip
    splits = 3  # training, validation, and the pairs that are held out for the test
    assert len(list((root / "cache" / "reference_log_probs_v2").glob("[!.]*/"))) == splits
    assert [job.directory.name for job in jobs] == ["0_objective=cso", "1_objective=simpo"]


def test_the_second_time_everything_is_reused_without_torch(sweep):
    root, _ = sweep
    again = start(root, "second")
    assert again.returncode == 0, again.stderr
    _, before = found(root, "first")
    _, jobs = found(root, "second")
    assert [job.status for job in jobs] == ["reused"] * 2
    assert [job.metrics for job in jobs] == [job.metrics for job in before]
    # Jobs run in processes of their own; one in this process shows what a job imports.
    words = [word for word in SWEEP if not word.startswith(("-m", "objective", "hydra"))]
    single = subprocess.run(
        [sys.executable, "-c", PROBE.format(path=str(ROOT / "run.py")), *words, "objective=simpo",
         f"output_root={root / 'single'}", f"cache_dir={root / 'cache'}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert single.returncode == 0, single.stderr
    assert single.stdout.endswith("heavy:\n")


def test_a_multirun_is_compared_as_a_whole(sweep, tmp_path):
    root, _ = sweep
    directory, _ = found(root, "second")
    outcome = execute(tmp_path, "stage=compare", f"compare.runs=[{directory}]", "compare.draws=100")
    assert outcome.status == 0, outcome.errors
    names = [f"tiny-llama {method} (cso)" for method in ("base", "SFT", "CSO", "SimPO")]
    assert [name for name in names if f"{name}/strategy/Q" in outcome.metrics] == names
    # Base and SFT are the same in all jobs: they count once.
    assert "2 directories hold the same predictions" in outcome.output
