"""A sweep whose jobs share what they can, as its user runs it: two processes, then once more, then compared."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from esc_lab.runs import manifest as multirun
from tests.cli.test_run import PROBE
from tests.conftest import CACHE, ROOT
from tests.e2e.conftest import SEARCH, execute

SWEEP = (
    "-m", "stage=pipeline", "model=tiny_llama", "objective=cso,simpo",
    "hydra.launcher.n_jobs=2", "logger=none", "trainer.max_steps=1", "evaluate.generation.enabled=false",
    "data.limit={train: 2, val: 1, test: 2}",
    *SEARCH,
)  # fmt: skip


def start(root: Path, output: str, *own: str) -> subprocess.CompletedProcess[str]:
    words = (*own, f"output_root={root / output}", f"cache_dir={root / 'cache'}")
    return subprocess.run(
        [sys.executable, "-c", PROBE.format(path=str(ROOT / "run.py")), *words],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def found(root: Path, output: str) -> tuple[Path, list[multirun.Job]]:
    (directory,) = (root / output / "multirun").iterdir()
    return directory, multirun.read_jobs(directory)


def test_a_sweep_and_the_same_sweep_again(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "random_models").symlink_to(CACHE / "random_models")

    # Each shared input is computed once.
    done = start(tmp_path, "first", *SWEEP)
    assert done.returncode == 0, done.stderr
    _, first = found(tmp_path, "first")
    assert [job.status for job in first] == ["done"] * 2
    assert [job.directory.name for job in first] == ["0_objective=cso", "1_objective=simpo"]
    computed = Counter(stage for job in first for stage, reused in job.stages.items() if not reused)
    assert computed == {
        "search": 1, "evaluate_base": 1, "sft": 1, "evaluate_sft": 1, "cso": 2, "evaluate_cso": 2,
    }  # fmt: skip
    splits = 3  # training, validation, and the pairs that are held out for the test
    assert len(list((tmp_path / "cache" / "reference_log_probs_v4").glob("[!.]*/"))) == splits

    # The second time everything is reused.
    again = start(tmp_path, "second", *SWEEP)
    assert again.returncode == 0, again.stderr
    directory, second = found(tmp_path, "second")
    assert [job.status for job in second] == ["reused"] * 2
    assert [job.metrics for job in second] == [job.metrics for job in first]

    # Jobs run in processes of their own; one in this process shows what a job imports.
    words = [word for word in SWEEP if not word.startswith(("-m", "objective", "hydra"))]
    single = start(tmp_path, "single", *words, "objective=simpo")
    assert single.returncode == 0, single.stderr
    assert single.stdout.endswith("heavy: numpy rich\n")

    # A comparison of the whole multirun: base and SFT are the same in all jobs, so they count once.
    outcome = execute(tmp_path / "compare", "stage=compare", f"compare.runs=[{directory}]")
    assert outcome.status == 0, outcome.errors
    names = [f"tiny-llama {method} (cso)" for method in ("base", "SFT", "CSO", "SimPO")]
    assert [name for name in names if f"{name}/strategy/Q" in outcome.metrics] == names
    assert "2 evaluations lie in several directories with the same predictions" in outcome.output
