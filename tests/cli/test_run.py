"""`python run.py` as users start it: what it imports, where it writes, multiruns, exit status, returned metric."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

import esc_lab
from esc_lab import config
from esc_lab.cli import compositions
from esc_lab.cli.compositions import CONF, native_dtype, override_name
from esc_lab.cli.main import run_job as job
from esc_lab.runs import manifest as multirun
from tests.conftest import ROOT
from tests.e2e.conftest import execute

# Runs run.py as the main module and says at the end which heavy modules are there.
PROBE = """
import runpy, sys
sys.argv = ["run.py", *sys.argv[1:]]
try:
    runpy.run_path({path!r}, run_name="__main__")
finally:
    heavy = {{"torch", "numpy", "rich", "transformers", "pytorch_lightning", "peft", "wandb"}}
    print("heavy:", *sorted(heavy & set(sys.modules)))
"""


def start(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROBE.format(path=str(ROOT / "run.py")), *words],
        cwd=cwd, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def finished_run(directory: Path, **metrics: float) -> Path:
    """A run directory as an evaluation leaves it."""
    directory.mkdir(parents=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["stage=evaluate", "model=tiny_llama"])
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    (directory / "metrics.json").write_text(json.dumps(metrics))
    return directory


@pytest.fixture
def good(tmp_path):
    return finished_run(tmp_path / "good", **{"strategy/Q": 0.25})


@pytest.fixture
def broken(tmp_path):
    """It passes the first check, and fails when it is read."""
    return finished_run(tmp_path / "broken")


def test_the_configurations_of_all_jobs_are_printed(tmp_path):
    words = ("-m", "stage=sft", "model=tiny_llama,tiny_qwen2", "seed=1,2", "--cfg", "job")
    done = start(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text, heavy = done.stdout.rsplit("heavy:", 1)
    assert heavy.split() == []
    documents = text.split("---\n")
    jobs = [OmegaConf.create(document) for document in documents]
    expected = [("tiny-llama", 1), ("tiny-llama", 2), ("tiny-qwen2", 1), ("tiny-qwen2", 2)]
    assert [(job.model.name, job.seed) for job in jobs] == expected
    assert documents[1].startswith("# job 1 of 4: stage=sft model=tiny_llama seed=2\n")
    assert list(tmp_path.iterdir()) == []


def test_pickles_are_not_loaded(tmp_path):
    """Hydra's `--experimental-rerun` loads one."""
    ran = tmp_path / "ran"
    (tmp_path / "config.pickle").write_bytes(f"cbuiltins\nopen\n(V{ran}\nVw\ntR.".encode())
    done = start("--experimental-rerun", str(tmp_path / "config.pickle"), cwd=tmp_path)
    assert done.returncode == 1
    assert "error: --experimental-rerun loads a pickle, and a pickle can run any code. Fix: " in done.stderr
    assert not ran.exists()


def test_printing_the_configuration_imports_nothing_heavy_and_writes_nothing(tmp_path):
    # Overrides may stand on both sides of an option.
    done = start("stage=sft", "--cfg", "job", "model=tiny_llama", "data.limit={test: 3}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text, heavy = done.stdout.rsplit("heavy:", 1)
    assert heavy.split() == []
    cfg = OmegaConf.create(text)
    assert (cfg.stage, cfg.model.name, cfg.data.limit) == ("sft", "tiny-llama", {"test": 3})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 1, "error: no stage chosen: add stage=STAGE"),
        (["-m"], 1, "no stage chosen"),
        (["-m", "seed=1,2", "objective.beta=x"], 1, "(stage=pipeline)\nerror: Error merging override objective.beta=x"),
        (["stage=sft", "+trainer.max_epoch=2", "--cfg", "job"], 1, "did you mean 'trainer.max_epochs'?"),
        (["--help"], 0, "Commands to copy"),
        (["--help", "optimizer"], 0, "peak learning rate"),
        (["--help", "nothing=1"], 1, "error: no help on 'nothing': no group, option or key of this name"),
        (["--version"], 0, f"esc-lab {esc_lab.__version__}\n"),
        (["-h", "nothing_like_this"], 1, "no group, option or key of this name. Fix: `python run.py --help` lists"),
        (["-h", "lr"], 0, "  optimizer.lr  (float; default "),
        (["-h", "latest"], 0, "latest:STAGE  "),
        (["-h", "learning"], 1, "keys whose description has it: objective.peak_lr, optimizer.lr"),
        (["stage=cso", "objective=foo"], 1, "objective=foo: no such option. Fix: one of cso, dpo, "),
        (["-h", "modle"], 1, "error: no help on 'modle': no group, option or key of this name; did you mean 'model'?"),
    ],
)
def test_answers_without_running(tmp_path, words, status, said):
    done = start(*words, cwd=tmp_path)
    assert done.returncode == status
    assert said in (done.stderr if status else done.stdout)
    assert done.stdout.endswith("heavy:\n")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
    if not words:
        for name, doc in config.STAGES.items():
            assert f" {name} {doc} " in f"{' '.join(done.stderr.split())} "


def test_a_traceback_is_shown_on_request_only(tmp_path):
    for verbose in ("true", "false"):
        done = start("stage=sft", "foo=1", f"hydra.verbose={verbose}", cwd=tmp_path)
        assert done.returncode == 1
        assert "unknown config key 'foo'" in done.stderr
        assert ("Traceback" in done.stderr) == (verbose == "true")


def test_a_run_directory_says_stage_and_time(tmp_path, good):
    done = start("stage=compare", f"compare.runs=[{good}]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("heavy: numpy rich wandb\n")
    found = list((tmp_path / "outputs").glob("*/*"))
    assert len(found) == 1
    assert re.fullmatch(
        r"compare/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[0-9a-f]{6}", str(found[0].relative_to(tmp_path / "outputs"))
    )
    names = {path.name for path in found[0].iterdir()}
    assert names >= {"config.yaml", "metrics.json", "run.log", "environment.json", "comparison.md", "comparison.csv"}
    environment = json.loads((found[0] / "environment.json").read_text())
    assert environment["device"] is None
    assert re.fullmatch(r"[0-9a-f]{12}\+?", environment["git_commit"] or "0" * 12)


def test_a_multirun_in_processes_survives_a_failing_job(tmp_path, good, broken):
    words = ("stage=compare", f"compare.runs=[{good}],[{broken}],[{good},{good}]", "hydra.launcher.n_jobs=2")
    done = start("-m", *words, cwd=tmp_path)
    assert done.returncode == 1
    directories = list((tmp_path / "outputs" / "multirun").iterdir())
    assert len(directories) == 1
    assert f"1 of 3 jobs failed; {directories[0].relative_to(tmp_path)}/manifest.jsonl" in done.stderr
    assert "\nresume=auto runs what is missing, and leaves the others as they are\n" in done.stderr
    lines = (directories[0] / "manifest.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["job"] for line in lines if json.loads(line)["status"] == "running") == [0, 1, 2]
    by_job = {record["job"]: record for line in lines if (record := json.loads(line))["status"] != "running"}
    assert [by_job[number]["status"] for number in range(3)] == ["done", "failed", "done"]
    assert f"{broken}: none of its metrics can be compared" in by_job[1]["error"]
    for number, record in by_job.items():
        assert record["seconds"] >= 0
        assert f"compare.runs=[{(good, broken, good)[number]}" in record["overrides"][1]
        directory = tmp_path / record["directory"]
        assert directory.name.startswith(f"{number}_compare.runs=_")
        assert (directory / "run.log").exists()
        assert (directory / "metrics.json").exists() == (record["status"] == "done")
    assert by_job[0]["metrics"] == json.loads((tmp_path / by_job[0]["directory"] / "metrics.json").read_text())


def test_a_multirun_without_failures(tmp_path, good):
    done = start(
        "-m", "stage=compare", f"compare.runs=[{good}]", "seed=1,2", "hydra.sweep.dir=here, and there", cwd=tmp_path
    )
    assert done.returncode == 1  # the comma makes it a sweep over directories
    done = start(
        "-m", "stage=compare", f"compare.runs=[{good}]", "seed=1,2", "hydra.sweep.dir='here, = there'", "logger=none",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 of 2 jobs done; here, = there/manifest.jsonl" in done.stderr
    assert "compare them" not in done.stderr  # comparisons are not compared
    assert [job.status for job in multirun.read_jobs(tmp_path / "here, = there")] == ["done", "done"]


def test_resume_runs_what_is_missing(tmp_path, good, broken):
    words = ("-m", "stage=compare", f"compare.runs=[{good}],[{broken}]", "logger=none", "seed=1,2")
    first = start(*words, cwd=tmp_path)
    assert first.returncode == 1
    (directory,) = (tmp_path / "outputs" / "multirun").iterdir()
    written = {path: path.stat().st_mtime_ns for path in directory.glob("*/metrics.json")}
    assert len(written) == 2
    (broken / "metrics.json").write_text('{"strategy/Q": 0.5}')
    second = start(*words, "resume=auto", "hydra.launcher.n_jobs=2", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert list((tmp_path / "outputs" / "multirun").iterdir()) == [directory]
    assert [job.status for job in multirun.read_jobs(directory)] == ["done"] * 4
    assert [(job.metrics or {})["tiny-llama base (cso)/strategy/Q"] for job in multirun.read_jobs(directory)] == [
        0.25, 0.25, 0.5, 0.5,
    ]  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in written} == written  # these were left as they are
    assert "4 of 4 jobs done" in second.stderr
    # Other words are another multirun.
    third = start(*words[:2], f"compare.runs=[{good}]", "logger=none", "resume=auto", cwd=tmp_path)
    assert "no such multirun before" in third.stderr
    assert len(list((tmp_path / "outputs" / "multirun").iterdir())) == 2


def test_a_job_whose_process_is_killed(tmp_path, good, broken):
    """The others are told of, and the table has it; a pipe that nobody writes to keeps the job busy until then."""
    (broken / "metrics.json").unlink()
    os.mkfifo(broken / "metrics.json")
    words = ("-m", "stage=compare", f"compare.runs=[{good}],[{broken}]", "logger=none", "hydra.launcher.n_jobs=2")
    with subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *words],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while not (manifests := list(tmp_path.glob("outputs/multirun/*/manifest.jsonl"))) or {
            (job.number, job.status) for job in multirun.read_jobs(manifests[0].parent)
        } != {(0, "done"), (1, "running")}:
            assert process.poll() is None
            time.sleep(0.05)
        # Only the one that runs job 1, whose log it has open: the other may be about to send what it has.
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        logs = {worker: [link.resolve() for link in Path(f"/proc/{worker}/fd").iterdir()] for worker in workers}
        (busy,) = (worker for worker, files in logs.items() if any(file.match("1_*/run.log") for file in files))
        os.kill(int(busy), signal.SIGKILL)
        output, errors = process.communicate()
    assert process.returncode == 1
    assert "1 of 2 jobs failed" in errors
    assert errors.splitlines()[-1].startswith("error: a job's process died")
    assert re.search(r"\b1 .*did not finish.*killed", output)


def run_job(directory: Path, mode: str, *words: str) -> float | None:
    """Call the job function as Hydra's sweepers do."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        own = ["stage=compare", "logger=none", f"hydra.mode={mode}"]
        cfg = compose("config", [*own, *words], return_hydra_config=True)
    directory.mkdir()
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(directory / "job")
        cfg.hydra.sweep.dir = str(directory)
        cfg.hydra.job.num = 7
        HydraConfig.instance().set_config(cfg)
        task = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    return job(task)


def test_the_job_returns_the_metric_to_optimise(tmp_path, good, broken):
    name = "tiny-llama base (cso)/strategy/Q"
    runs = f"compare.runs=[{good}]"
    assert run_job(tmp_path / "a", "MULTIRUN", runs, f"optimize_metric='{name}'") == 0.25
    assert run_job(tmp_path / "b", "RUN", runs) is None
    # A failed trial has no value, so that a search goes on without it.
    assert run_job(tmp_path / "c", "MULTIRUN", f"compare.runs=[{broken}]", f"optimize_metric='{name}'") is None
    assert run_job(tmp_path / "d", "MULTIRUN", f"compare.runs=[{broken}]") is None
    assert run_job(tmp_path / "e", "MULTIRUN", runs, "optimize_metric=Q") is None
    record = json.loads((tmp_path / "e" / "manifest.jsonl").read_text().splitlines()[-1])
    assert (record["job"], record["status"]) == (7, "failed")
    assert "optimize_metric=Q: no such metric" in record["error"]
    assert record["metrics"] == {name: 0.25}


def test_a_failing_single_job_ends_with_status_1(tmp_path, broken):
    with pytest.raises(SystemExit) as stop:
        run_job(tmp_path / "a", "RUN", f"compare.runs=[{broken}]")
    assert stop.value.code == 1
    assert not (tmp_path / "a" / "manifest.jsonl").exists()
    assert not (tmp_path / "a" / "job" / "metrics.json").exists()


def test_a_refused_run_leaves_nothing(tmp_path, broken, monkeypatch):
    """Unless it is asked for a traceback, which is in its log, or something else is there."""
    words = ("stage=compare", f"compare.runs=[{broken}]")
    cases = [((), ()), ((), ("logger=wandb", "logger.mode=offline")), ((".hydra", "run.log"), ("hydra.verbose=true",))]
    for number, (left, options) in enumerate(cases):
        root = tmp_path / str(number) / "outputs"
        outcome = execute(root, *words, *options)
        assert (outcome.status, "none of its metrics can be compared" in outcome.errors) == (1, True)
        assert {path.name for path in outcome.path.iterdir()} >= {*left} if left else not root.exists()
    kept = tmp_path / "outputs" / "compare" / "kept"
    kept.mkdir(parents=True)
    (kept / "notes.txt").write_text("mine")
    assert execute(tmp_path / "outputs", *words, f"hydra.run.dir={kept}").status == 1
    assert (kept / "run.log").exists()
    (kept / "notes.txt").unlink()
    monkeypatch.setattr("esc_lab.runs.directory.is_owned", lambda directory: True)  # another process runs there
    assert execute(tmp_path / "outputs", *words, f"hydra.run.dir={kept}").status == 1
    assert (kept / "run.log").exists()


def test_a_single_run_is_as_hydra_has_it(tmp_path, good):
    """With `--run` Hydra composes anew what the checks have composed."""
    words = ("stage=compare", f"compare.runs=[{good}]", "seed=3", "hydra.job.name=mine")
    left = []
    for options in ([], ["--run"]):
        outcome = execute(tmp_path / "runs", *options, *words, f"hydra.run.dir={tmp_path}/runs/compare/one")
        assert outcome.status == 0, outcome.errors
        left.append({path.name: path.read_text() for path in (outcome.path / ".hydra").iterdir()})
    assert left[0].keys() == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert left[0] == left[1]


@pytest.mark.parametrize(
    ("told", "gpu", "dtype"),
    [
        ("flags\t: fpu avx512f avx512_bf16 avx512vl\n", None, "bfloat16"),
        ("flags\t: fpu avx2 amx_bf16 amx_tile\n", None, "bfloat16"),
        ("Features\t: fp asimd i8mm bf16 dgh\n", None, "bfloat16"),
        ("flags\t: fpu avx2 avx512f avx512vl\n", None, "float32"),
        ("flags\t: fpu avx2\n", "/usr/bin/nvidia-smi", "bfloat16"),
        (None, None, "float32"),
    ],
)
def test_embedded_models_have_the_type_that_is_computed_fastest(tmp_path, monkeypatch, told, gpu, dtype):
    monkeypatch.setattr(compositions.shutil, "which", lambda command: gpu if command == "nvidia-smi" else None)
    if told:
        (tmp_path / "cpuinfo").write_text(told)
    assert native_dtype(tmp_path / "cpuinfo") == dtype


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "defaults"),
        ("model=tiny_llama+seed=1", "model=tiny_llama+seed=1"),
        ("tags=[a,b]", "tags=_a_b_"),
        ("data.path=/a b/c.json", "data.path=_a_b_c.json"),
        ("data.limit={test: 3}", "data.limit=_test_3_"),
        ("model.name=ä", "model.name=_"),
    ],
)
def test_names_of_multirun_directories(text, name):
    assert override_name(text) == name


def test_long_names_of_multirun_directories_stay_apart():
    first, second = (override_name("tags=[" + ",".join(["word"] * 60) + last) for last in ("a]", "b]"))
    assert first != second
    assert len(first) <= 150
