"""Runs of W&B, read back from what they write offline: names, groups, tags, settings, metrics, tables, artifacts."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from esc_lab.cli.compositions import CONF  # which registers the schema
from esc_lab.config import Config, typed
from esc_lab.runs import manifest
from esc_lab.stages.run_stage import run_stage
from esc_lab.tracking.artifacts import input_artifacts, output_artifacts
from esc_lab.tracking.links import list_links
from esc_lab.tracking.results import log_results
from esc_lab.tracking.run import current_run, log_curve, wandb_run
from tests.conftest import HANGS_S, ROOT
from tests.tracking.wandb_files import OfflineRun, read_offline_run
from tests.tracking.wandb_server import serving

METRICS = {"strategy/Q": 0.5, "strategy/B": 1.25, "train/loss": 0.75, "val/loss": 2.0}
SECRETS = {"WANDB_API_KEY": "local0123456789abcdef0123456789abcdef01234", "OPENAI_API_KEY": "sk-very-secret-key"}


def configured(directory: Path, *words: str) -> Config:
    """The configuration of a run in `directory`, written there as every run does."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = typed(compose("config", ["model=tiny_llama", "logger=wandb", *words]))
    cfg.run_dir = str(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(cfg)))
    return cfg


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def trained(directory: Path, *words: str) -> Config:
    """A finished training: its adapter is a few bytes."""
    cfg = configured(directory, *words)
    write_json(directory / "metrics.json", METRICS | {"text/perplexity": math.nan})
    (directory / "adapter").mkdir()
    (directory / "adapter" / "adapter_model.safetensors").write_bytes(f"weights of {directory.name}".encode())
    return cfg


def evaluated(directory: Path, *words: str) -> Config:
    """A finished evaluation of two strategies."""
    cfg = configured(directory, "stage=evaluate", *words)
    write_json(directory / "metrics.json", METRICS | {"text/perplexity": math.nan})
    rows = [{"strategy": name, "f1": 0.5, "preference": value} for name, value in (("Question", 0.4), ("Others", 1.6))]
    confusion = {"classes": ["Question", "Others"], "predicted_by_gold": [[3, 1], [0, 2], [1, 0]]}
    write_json(directory / "strategies.json", {"strategy": {"per_strategy": rows, "confusion": confusion}})
    means = {"log_sra": -1.0, "sham_net": 0.5, "n": 2.0}
    by = {"strategy": {"Question": means}, "depth": {"10": means | {"log_sra": -3.0}, "2": means}}
    write_json(directory / "sra.json", {"measure": "paper/name", "by": by})
    line = {
        "dialogue": "d", "tree": "d", "turn": 1, "problem": "job crisis", "emotion": "fear", "gold": ["Question"],
        "gold_reply": "Why?", "prompted": None, "template": "cso", "reply": "I see.",
    }  # fmt: skip
    judged = line | {
        "sra": {"paper/name": {"sra": 0.5, "control": 0.1, "relative": 2.0}},
        "adheres": True,
        "reply": "Oh.",
    }
    others = [{"reply": None}, judged, judged | {"turn": 4, "adheres": False, "sra": None}, judged | {"turn": 4}]
    lines = [line, *(line | other for other in others)]
    (directory / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pairs = [{"log_probs": [-3.0, -4.5], "rewards": [0.25, 0.5]}, {"log_probs": [-2.0, -1.0], "rewards": [1.0, 0.5]}]
    (directory / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return cfg


def logged(cfg: Config) -> OfflineRun:
    """What a finished run logs, read back."""
    with wandb_run(cfg) as run:
        assert run is not None
        log_results(run, cfg)
    (path,) = Path(cfg.run_dir).glob(f"wandb/*run-*/run-{run.id}.wandb")
    return read_offline_run(path.parent)


def offline(directory: Path) -> OfflineRun:
    (found,) = (directory / "wandb").glob("offline-run-*")
    return read_offline_run(found)


def numbers(run: OfflineRun) -> dict[str, object]:
    return {name: value for name, value in run.summary.items() if not isinstance(value, dict)}


def test_an_evaluation(tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    cfg = evaluated(tmp_path / "run", "tags=[mine]", "logger.group=study", "data.limit={test: 3}")
    run = logged(cfg)
    assert (run.name, run.group, run.job_type, run.project) == ("tiny-llama base", "study", "evaluate", "esc-lab")
    assert run.tags == ["evaluate", "tiny-llama", "sample", "cso", "mine"]
    assert run.exit_code == 0
    # Flat, one name for each setting, and complete.
    assert run.config["model.name"] == "tiny-llama"
    assert run.config["data.limit.test"] == 3
    assert run.config["method"] == "base"
    assert not [name for name, value in run.config.items() if isinstance(value, dict)]
    assert {key for key, _ in flat_yaml(tmp_path / "run" / "config.yaml")} <= set(run.config)
    # The summary's numbers are the metrics, and nothing else.
    assert numbers(run) == METRICS
    replies = run.table("replies")["data"]
    assert replies[0] == ["d", 1, "job crisis", "Question", "Why?", "", "(none)", "", "", "I see."]
    assert [row[-1] for row in replies] == ["I see.", "Oh.", "Oh.", "Oh."]
    assert run.table("strategy/confusion_table")["data"] == [
        ["Question", "Question", 3], ["Others", "Question", 1], ["Question", "Others", 0], ["Others", "Others", 2],
        ["Question", "(none)", 1], ["Others", "(none)", 0],
    ]  # fmt: skip
    assert run.table("strategy/preference_by_strategy_table")["data"] == [["Question", 0.4], ["Others", 1.6]]
    assert [row[0::2] for row in run.table("sra/log_sra_by_depth_table")["data"]] == [[2, -1.0], [10, -3.0]]
    assert {"strategy/confusion", "sra/log_sra_by_depth"} <= set(run.charts)
    # Adherence over the depth, attention by adherence, margins of held-out pairs.
    assert [row[0::2] for row in run.table("adherence/by_depth_table")["data"]] == [[1, 1.0], [4, 0.5]]
    assert run.table("sra/by_adherence_table")["data"] == [["follows its strategy", pytest.approx(math.log(0.5)), 2]]
    assert run.table("preference/log_probs_table")["data"] == [[1.5], [-1.0]]
    assert run.table("preference/rewards_table")["data"] == [[-0.25], [0.5]]
    for path in (tmp_path / "run" / "wandb").rglob("*"):
        if path.is_file():
            assert not [name for name, secret in SECRETS.items() if secret.encode() in path.read_bytes()], path


def flat_yaml(path: Path) -> list[tuple[str, object]]:
    def leaves(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return list(leaves(yaml.safe_load(path.read_text())))


def test_curves_leave_the_summary_alone(tmp_path):
    cfg = trained(tmp_path / "run", "stage=sft")
    with wandb_run(cfg) as run:
        assert current_run() is run
        for step in range(3):
            run.log({"train/loss": 9.0 - step, "val/accuracy": 0.1, "tokens_per_s": 5.0, "trainer/global_step": step})
        log_curve({"progress/iteration": 4, "progress/calls": 7})
        log_results(run, cfg)
    assert current_run() is None
    found = offline(tmp_path / "run")
    assert numbers(found) == METRICS
    assert [point["train/loss"] for point in found.history if "train/loss" in point] == [9.0, 8.0, 7.0]
    assert any(point.get("progress/calls") == 7 for point in found.history)
    assert found.name == "tiny-llama SFT training"


def test_a_reused_training_has_its_curves(tmp_path):
    """They are in the file that the training left, and logged again; a training that ran here has logged them."""
    cfg = trained(tmp_path / "run", "stage=sft")
    (tmp_path / "run" / "metrics.csv").write_text("epoch,step,train/loss,val/loss\n0,1,9.0,\n0,2,8.0,\n0,2,,7.5\n")
    assert not any("train/loss" in point for point in logged(cfg).history)
    write_json(tmp_path / "run" / "reused.json", {"from": "store", "run": "outputs/sft/first"})
    run = logged(cfg)
    points = [{key: value for key, value in point.items() if key[0] != "_"} for point in run.history]
    assert [point for point in points if "epoch" in point] == [
        {"trainer/global_step": 1, "epoch": 0, "train/loss": 9.0},
        {"trainer/global_step": 2, "epoch": 0, "train/loss": 8.0},
        {"trainer/global_step": 2, "epoch": 0, "val/loss": 7.5},
    ]
    assert run.config["reused/run"] == "outputs/sft/first"
    assert numbers(run) == METRICS


def test_the_intensity_of_talks(tmp_path):
    cfg = configured(tmp_path / "run", "stage=converse")
    write_json(tmp_path / "run" / "metrics.json", {"converse/relief": 1.5})
    write_json(tmp_path / "run" / "measures.json", {"intensity": [[0, 4.0, 3], [1, 2.5, 2]]})
    run = logged(cfg)
    assert [row[0::2] for row in run.table("talks/intensity_table")["data"]] == [[0, 4.0], [1, 2.5]]
    assert numbers(run) == {"converse/relief": 1.5}


def test_a_comparison_links_its_runs(tmp_path):
    made = [evaluated(tmp_path / name, "logger.entity=team", "logger.project=a b") for name in ("one", "two")]
    ids = [logged(cfg).path.stem.removeprefix("run-") for cfg in made]
    silent = evaluated(tmp_path / "silent", "logger=none")
    runs = ",".join(str(cfg.run_dir) for cfg in (*made, silent))
    compared = configured(tmp_path / "compare", "stage=compare", f"compare.runs=[{runs}]")
    write_json(tmp_path / "compare" / "metrics.json", {})
    table = logged(compared).table("runs")
    assert table["columns"] == ["run", "stage", "model", "method", "id", "link"]
    rows = {row[0]: row[1:] for row in table["data"]}
    for name, number in zip(("one", "two"), ids, strict=True):
        *known, link = rows[name]
        assert known == ["evaluate", "tiny-llama", "base", number]
        assert link.endswith(f"/team/a%20b/runs/{number}")
        assert link.startswith("http")
    assert rows["silent"][-2:] == ["", ""]
    # A run directory that was logged twice has the id of the last time, and one that is nobody's has no address.
    again = logged(replace(made[0], logger=replace(made[0].logger, entity=None)))
    (tmp_path / "one" / "config.yaml").write_text(
        (tmp_path / "one" / "config.yaml").read_text().replace("entity: team", "entity: null")
    )
    assert list_links(compared, "https://w.b", None)[0][4:] == [again.path.stem.removeprefix("run-"), ""]


def test_a_multirun_names_its_jobs_by_what_varies(tmp_path):
    directory = tmp_path / "2026-11-22_sweep" / "3_job"
    cfg = configured(directory, "stage=cso", "objective=ipo", "seed=2")
    asked = ["stage=cso", "model=tiny_llama", "objective=ipo,dpo", "seed=range(1,4)", "data.path=/some/a.json,/b.json"]
    manifest.write_overrides(directory.parent, asked, common=["stage", "model"])
    task = ["stage=cso", "model=tiny_llama", "objective=ipo", "seed=2", "data.path=/some/where/d.json"]
    task.append("optimizer.lr=0.1")  # chosen by a sweeper of its own
    record = {"job": 3, "overrides": task, "directory": str(directory), "status": "running"}
    manifest.append_record(directory.parent, record)
    with wandb_run(cfg):
        pass
    run = offline(directory)
    assert run.group == "2026-11-22_sweep"
    assert run.name == "objective=ipo seed=2 data.path=d.json optimizer.lr=0.1"
    assert run.tags == ["cso", "tiny-llama", "sample", "lora", "ipo"]
    with wandb_run(replace(cfg, experiment="ablation", run_dir=str(tmp_path / "other"))):
        pass
    assert offline(tmp_path / "other").group == "ablation"


def test_steps_of_a_pipeline_are_runs_of_its_group(tmp_path):
    outer = configured(tmp_path / "pipe", "stage=pipeline")
    inner = configured(tmp_path / "pipe" / "sft", "stage=sft")
    silent = configured(tmp_path / "pipe" / "judge", "stage=classifier", "logger=none")
    with wandb_run(outer) as run:
        with wandb_run(inner) as step:
            assert current_run() is step
        with wandb_run(silent) as nothing:
            assert nothing is None
            assert current_run() is None
        assert current_run() is run
    assert (offline(tmp_path / "pipe" / "sft").name, offline(tmp_path / "pipe" / "sft").group) == ("sft", "pipe")
    assert offline(tmp_path / "pipe").group == "pipe"


def test_an_agent_of_a_sweep_waits_for_the_outer_run(tmp_path):
    """`wandb agent` names a run by variables of the environment; the steps inside that run are none of the sweep's."""
    script = f"""
from tests.tracking.test_run import *
root = Path({str(tmp_path)!r})
with wandb_run(configured(root / "pipe", "stage=pipeline", "logger.group=g")), wandb_run(
    configured(root / "pipe" / "sft", "stage=sft")
):
    pass
"""
    environment = {**os.environ, "WANDB_SWEEP_ID": "sweep", "WANDB_RUN_ID": "fromagent"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    outer, inner = offline(tmp_path / "pipe"), offline(tmp_path / "pipe" / "sft")
    assert (outer.path.stem, outer.sweep) == ("run-fromagent", "sweep")
    assert inner.path.stem != outer.path.stem
    assert (inner.sweep, inner.group) == ("", "g")


def test_a_failed_run_is_marked(tmp_path):
    cfg = configured(tmp_path / "run", "stage=sft")
    with pytest.raises(RuntimeError, match="out of memory"), wandb_run(cfg):
        raise RuntimeError("out of memory")
    assert offline(tmp_path / "run").exit_code == 1
    assert current_run() is None


@pytest.mark.parametrize("words", [["logger=none"], ["logger=csv"], ["logger.mode=disabled"], ["trainer=dev"]])
def test_no_run_where_none_is_wanted(tmp_path, words):
    with wandb_run(configured(tmp_path / "run", "stage=sft", *words)) as run:
        assert run is None
    assert not (tmp_path / "run" / "wandb").exists()


def test_what_wandb_does_not_take_costs_nothing_else(tmp_path, caplog):
    cfg = evaluated(tmp_path / "run")
    (tmp_path / "run" / "strategies.json").write_text("{")
    (tmp_path / "run" / "predictions.jsonl").write_text("{}\n{")
    run = logged(cfg)
    assert numbers(run)["strategy/Q"] == 0.5
    assert {record.args[0] for record in caplog.records if record.name == "esc_lab.tracking.run"} >= {
        "strategies: not logged",
        "replies: not logged",
    }


def test_lineage_from_search_to_comparison(tmp_path):
    search = configured(tmp_path / "search", "stage=search")
    write_json(tmp_path / "search" / "metrics.json", {"search/calls": 1.0})
    for name in ("train.jsonl", "valid.jsonl", "test.jsonl", "pairs.json", "README.md"):
        path = tmp_path / "search" / "esc_pro" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{name}\n")
    corpus = f"data.path={tmp_path / 'search' / 'esc_pro'}"
    sft = trained(tmp_path / "sft", "stage=sft", "data=jsonl", corpus)
    cso = trained(tmp_path / "cso", "stage=cso", "data=jsonl", corpus, f"init_from={tmp_path / 'sft'}")
    judged = evaluated(tmp_path / "eval", f"checkpoint={tmp_path / 'cso' / 'adapter'}", "data=jsonl", corpus)
    compared = configured(tmp_path / "compare", "stage=compare", f"compare.runs=[{tmp_path / 'eval'}]")
    write_json(tmp_path / "compare" / "metrics.json", {})
    (tmp_path / "compare" / "comparison.csv").write_text("run,Q\nbase,0.5\n")
    runs = [logged(cfg) for cfg in (search, sft, cso, judged, compared)]
    made = [{one.name: one.digest for one in run.artifacts if is_own(one, used=False)} for run in runs]
    used = [{one.name: one.digest for one in run.artifacts if is_own(one, used=True)} for run in runs]
    names = ["esc-pro-sample", "tiny-llama-SFT", "tiny-llama-CSO", "tiny-llama-CSO-evaluation", "compare"]
    assert [list(found) for found in made] == [[name] for name in names]
    assert list(used[0]) == ["sample"]
    assert used[1] == made[0]
    assert used[2] == {**made[0], **made[1]}
    assert used[3] == {**made[0], **made[2]}
    assert used[4] == made[3]
    # The corpus's own dialogues are no part of what the search found.
    (esc_pro,) = (one for one in runs[0].artifacts if one.name == "esc-pro-sample")
    assert {entry.path for entry in esc_pro.manifest.contents} == {"train.jsonl", "pairs.json", "README.md"}
    assert runs[4].table("comparison") == {"columns": ["run", "Q"], "data": [["base", 0.5]]}


def test_continuations_are_what_their_training_uses(tmp_path):
    extend = configured(tmp_path / "extend", "stage=extend")
    for name in ("train.jsonl", "valid.jsonl", "test.jsonl", "README.md"):
        path = tmp_path / "extend" / "continuations" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{name}\n")
    (left,) = output_artifacts(extend)
    assert (left.name, left.metadata["template"], len(left.files)) == ("continuations-sample", "c1_hf", 4)
    training = configured(tmp_path / "sft", "stage=sft", "data=jsonl", f"data.path={path.parent}")
    assert input_artifacts(training) == [left]


def is_own(one, *, used: bool) -> bool:
    return one.type != "run_table" and one.use_after_commit == used


def test_corpora_and_full_models_stay_here_unless_asked_for(tmp_path):
    corpus = tmp_path / "esconv.json"
    corpus.write_text("[a private dialogue]")
    words = ("stage=sft", "data=jsonl", f"data.path={corpus}", "data.name=ESConv")
    for artifacts, entries in (("[]", {"checksums.json"}), ("[corpus,adapter]", None)):
        cfg = trained(tmp_path / artifacts, *words, f"logger.artifacts={artifacts}")
        found = {one.name: one for one in logged(cfg).artifacts}
        for name, own in (("ESConv", "esconv.json"), ("tiny-llama-SFT", "adapter_model.safetensors")):
            assert {entry.path for entry in found[name].manifest.contents} == (entries or {own})


def test_sync_uploads_each_version_once_and_records_who_used_it(tmp_path, monkeypatch):
    """The real `wandb sync`, against a server of ours; in the worst order, the user before the maker."""
    sft = trained(tmp_path / "sft", "stage=sft")
    judged = evaluated(tmp_path / "eval", f"checkpoint={tmp_path / 'sft'}")
    made, user = logged(sft), logged(judged)
    with serving() as server:
        for run in (user, made):
            sync(run, server.address)
        weights = server.artifact("tiny-llama-SFT")
        assert server.refused == []
    ids = [run.path.stem.removeprefix("run-") for run in (made, user)]
    assert weights.committed
    assert weights.files == {"adapter_model.safetensors": b"weights of sft"}
    assert weights.used_by == [ids[1]]
    assert [run for run in weights.logged_by if run] == [ids[0]]
    summary = {name: value for name, value in server.summaries[ids[1]].items() if not isinstance(value, dict)}
    assert {name: value for name, value in summary.items() if name[0] != "_"} == METRICS
    assert {"replies", "strategy/confusion_table"} <= set(server.summaries[ids[1]])


def test_the_lines_of_the_docs_from_the_root(tmp_path):
    """Where `outputs/` is: the upload of all runs, in the order in which they were started, and a look at one."""
    sft = trained(tmp_path / "outputs/sft/RUN", "stage=sft")
    judged = evaluated(tmp_path / "outputs/evaluate/RUN", f"checkpoint={tmp_path / 'outputs/sft/RUN'}")
    started = [logged(cfg).path.parent.name.removeprefix("offline-run-") for cfg in (sft, judged)]
    lines = (ROOT / "docs/wandb.md").read_text(encoding="utf-8").splitlines()
    upload = next(line for line in lines if line.startswith("find "))
    look = next(line for line in lines if line.startswith("wandb leet")).partition("  #")[0]
    look = look.replace("wandb leet", "wandb leet inspect --summary").replace("pipeline/RUN/sft", "sft/RUN")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with serving() as server:
        environment = {**os.environ, "PATH": path, "WANDB_BASE_URL": server.address, "WANDB_API_KEY": "x" * 40}
        for line in (upload, look):
            done = subprocess.run(
                ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=HANGS_S,
                check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    # W&B names runs by the second that they were started in: of two in the same one either may be the first.
    assert [*server.summaries] == [name.partition("-")[2] for name in sorted(started)]
    assert "tiny-llama" in done.stdout


def sync(run: OfflineRun, address: str) -> None:
    environment = {**os.environ, "WANDB_BASE_URL": address, "WANDB_API_KEY": "x" * 40}
    command = [sys.executable, "-m", "wandb", "sync", str(run.path.parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGS_S, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reused_result_has_the_same_run_without_torch(tmp_path):
    """Both through `run_stage`: the first computes (here: nothing is there to compute with), the second reuses."""
    script = f"""
import sys
from pathlib import Path
from tests.tracking.test_run import *
import esc_lab.stages.run_stage as record
def compute(cfg):
    evaluated(Path(cfg.run_dir), *words)
    return METRICS
record._import_and_run = compute
words = ["cache_dir={tmp_path / "cache"}", "logger.group=g"]
for name in ("first", "second"):
    run_stage(configured(Path({str(tmp_path)!r}) / name, "stage=evaluate", *words))
print("heavy:", sorted({{"torch", "pytorch_lightning", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("heavy: []\n")
    assert done.stderr == ""
    first, second = offline(tmp_path / "first"), offline(tmp_path / "second")
    assert (tmp_path / "second" / "reused.json").exists()
    assert numbers(first) == numbers(second) == METRICS
    assert (first.name, first.group, first.tags) == (second.name, second.group, second.tags)
    reused = {name: second.config.pop(name) for name in list(second.config) if name.startswith("reused/")}
    assert reused["reused/run"] == str(tmp_path / "first")
    assert first.path.stem == "run-" + reused["reused/wandb"].removeprefix("offline run ")
    assert first.config | {"run_dir": ""} == second.config | {"run_dir": ""}
    assert set(first.summary) == set(second.summary)
    for key, value in first.summary.items():
        if isinstance(value, dict):
            assert first.table(key) == second.table(key)
    assert run_stage is not None
