"""`sweeps/` is written from the experiments: the same jobs, all of which compose, and which run."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from esc_lab.cli.compositions import CONF
from esc_lab.cli.sweeps import sweep_files
from esc_lab.config.checks import problems
from esc_lab.runs import manifest as multirun
from tests.cli.test_run import finished_run
from tests.conftest import CACHE, ROOT
from tests.e2e.conftest import execute
from tests.tracking.wandb_files import read_offline_run

SWEEPS = {path.stem: path for path in sorted((ROOT / "sweeps").glob("*.yaml"))}
DRAWN = [name for name, path in SWEEPS.items() if "method: bayes" in path.read_text()]
GRIDS = [name for name in SWEEPS if name not in DRAWN]
# Seconds on a tiny model.
SMALL = (
    "model=tiny_llama", "model@llm.local.model=tiny_llama", "trainer.fast_dev_run=true",
    "data.limit={train: 2, val: 2, test: 1}", "evaluate.generation.enabled=false", "evaluate.sra.enabled=false",
    "mcts.min_iterations=2", "mcts.max_iterations=2", "search.seeds=1", "search.judge_check=2",
    "mcts.preferences.lower=false", "mcts.preferences.rejected_max=1.0", "mcts.preferences.extend_rejected=true",
    "search.cache=false", "search.pages=0", "llm.supporter.max_tokens=4", "llm.seeker.max_tokens=4",
)  # fmt: skip
# Of a search that trained roles play.
FEW_ROLES = ("search.seeker_check=0", "reward.check=2", "data.limit={train: 2, val: 2, test: 2}")


def composed(*jobs: list[str], hydra: bool = False) -> list[DictConfig]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return [compose("config", words, return_hydra_config=hydra) for words in jobs]


def parsed(words: Iterable[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(words))


def own_sweep(name: str) -> list[Override]:
    """What the experiment sweeps over."""
    (cfg,) = composed([f"experiment={name}"], hydra=True)
    return parsed(f"{key}={value}" for key, value in cfg.hydra.sweeper.params.items())


def local_jobs(name: str) -> list[list[str]]:
    """Overrides of all jobs of `run.py -m experiment=NAME`, by Hydra's own expansion."""
    return BasicSweeper.split_arguments([*parsed([f"experiment={name}"]), *own_sweep(name)], None)[0]


def sweep(name: str) -> dict[str, Any]:
    return yaml.safe_load(SWEEPS[name].read_text())


def command(name: str, args: dict[str, Any]) -> list[str]:
    """What `wandb agent` would run for these values, by W&B's own expansion of the command."""
    made = create_sweep_command_args({"args": {key: {"value": value} for key, value in args.items()}})
    made |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep(name)["program"]]}
    words: list[str] = []
    for part in create_sweep_command(list(sweep(name)["command"])):
        words += made[part[2:-1]] if part.startswith("${") else [part]
    return words


def agent_jobs(name: str) -> Iterator[list[str]]:
    """Overrides of every combination of values; of a range its ends."""
    parameters = sweep(name)["parameters"]
    values = [one["values"] if "values" in one else [one["min"], one["max"]] for one in parameters.values()]
    for chosen in itertools.product(*values):
        words = command(name, dict(zip(parameters, chosen, strict=True)))
        assert words[:3] == ["/usr/bin/env", "python", "run.py"]
        yield words[3:]


def meant(jobs: Iterable[list[str]]) -> list[dict[str, Any]]:
    """What overrides say, whichever way numbers are written, but for where W&B is told of it."""
    said = [{one.key_or_group: one.value() for one in parsed(words)} for words in jobs]
    return sorted(({key: one[key] for key in sorted(one) if key != "logger.mode"} for one in said), key=str)


def test_sweeps_are_as_make_sweeps_writes_them():
    assert {path.name: path.read_text() for path in SWEEPS.values()} == sweep_files()


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_and_its_twin_are_the_same_jobs(name):
    local, agent = local_jobs(name), list(agent_jobs(name))
    assert meant(local) == meant(agent)
    configurations = composed(*agent)
    assert [problems(cfg) for cfg in configurations] == [[]] * len(agent)
    assert len({OmegaConf.to_yaml(cfg) for cfg in configurations}) == len(agent) > 1


@pytest.mark.parametrize("name", DRAWN)
def test_a_search_and_its_twin_have_the_same_ranges(name):
    found = {}
    for override in own_sweep(name):
        value = override.value()
        assert isinstance(value, IntervalSweep)
        assert value.tags == {"log"}
        found[override.key_or_group] = {"distribution": "log_uniform_values", "min": value.start, "max": value.end}
    assert found == sweep(name)["parameters"]
    assert not any(map(problems, composed(*agent_jobs(name))))
    sweeper = composed([f"experiment={name}", "hydra/sweeper=bayes"], hydra=True)[0].hydra.sweeper
    assert (sweeper.n_trials, sweeper.direction) == (sweep(name)["run_cap"], "maximize")


@pytest.mark.parametrize("name", SWEEPS)
def test_what_wandb_needs_of_a_file(name):
    found = sweep(name)
    (cfg,) = composed([f"experiment={name}"])
    assert found["metric"] == {"name": cfg.optimize_metric, "goal": "maximize"}
    assert (found["name"], found["project"], cfg.experiment) == (name, cfg.logger.project, name)
    assert "logger.mode=online" in found["command"]
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert f"python run.py -m experiment={name}" in SWEEPS[name].read_text()
    assert f"{len(local_jobs(name)) if name in GRIDS else found['run_cap']} jobs" in text


# --- they run


def small(*words: str) -> list[str]:
    """The words, and those of `SMALL` that they do not name."""
    named = {word.split("=")[0] for word in words}
    return [*words, *(word for word in SMALL if word.split("=")[0] not in named)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("base_models", ("model=tiny_gemma3", "adapter=full")),
        ("objectives", ("objective=kto", *FEW_ROLES)),
        ("objectives", ("objective=grpo", *FEW_ROLES)),
        ("negatives", ("pairs=random_search",)),
        ("negatives", ("pairs=gold_contrast",)),
        ("mcts", ("mcts.c=2.0",)),
        ("beta", ("objective.beta=0.01",)),
    ],
)
def test_one_job(name, words, tmp_path):
    outcome = execute(tmp_path, *small(f"experiment={name}", *words))
    assert outcome.status == 0, outcome.errors
    assert math.isfinite(outcome.metrics[composed([f"experiment={name}"])[0].optimize_metric])
    assert "-m runs them all" not in outcome.errors


def test_objectives_have_one_search_and_one_budget():
    """Trained roles play it, all siblings are kept, and no objective has other updates, steps or batches in a row."""
    *jobs, trained = composed(*local_jobs("objectives"), ["experiment=demo", "pairs=trained", "stage=pipeline"])
    assert len({cfg.objective.name for cfg in jobs}) == 11
    for cfg in jobs:
        assert cfg.pipeline.stages == trained.pipeline.stages == ["reward", "sft", "seeker", "search", "cso"]
        assert (cfg.llm, cfg.mcts, cfg.reward) == (trained.llm, trained.mcts, trained.reward)
        assert (cfg.llm.judge.client, cfg.mcts.preferences.rejected_max) == ("reward", 1.0)
        assert (cfg.objective.updates, cfg.objective.iterations, cfg.data.step_pairs) == (12, 1, 60)
        assert (cfg.data.balance_pairs, cfg.data.shuffle_pairs) == (False, False)
        assert (cfg.trainer, cfg.optimizer, cfg.search) == (jobs[0].trainer, jobs[0].optimizer, jobs[0].search)


def test_a_search_of_two_trials(tmp_path):
    words = ("-m", "experiment=beta_search", "hydra/sweeper=bayes", "hydra.sweeper.n_trials=2", "pipeline.stages=[cso]")
    outcome = execute(tmp_path, *small(*words))
    assert outcome.status == 0, outcome.errors
    (found,) = tmp_path.glob("multirun/*/optimization_results.yaml")
    best = yaml.safe_load(found.read_text())
    assert 0.01 <= best["best_params"]["objective.beta"] <= 1.0
    done = multirun.read_jobs(found.parent)
    assert [job.status for job in done] == ["done", "done"]
    assert len({job.overrides for job in done}) == 2
    assert max((job.metrics or {})["cso/strategy/Q"] for job in done) == best["best_value"]


def test_the_command_of_an_agent(tmp_path):
    """As `wandb agent` starts it, but offline; its run is the one that the agent waits for."""
    judge = execute(tmp_path, *small("stage=classifier", "trainer.fast_dev_run=false", "trainer.max_steps=1"))
    own = (
        "trainer.fast_dev_run=false",
        "evaluate.generation.enabled=true",
        "evaluate.generation.max_new_tokens=8",
        f"evaluate.classifier={judge.path}",
    )
    places = (f"output_root={tmp_path / 'agent'}", f"cache_dir={CACHE}", "logger.mode=offline", "reuse=false")
    words = command("templates", {"prompt": "c1_hf"})
    done = subprocess.run(
        [*words, *small(*own, *places)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "WANDB_RUN_ID": "waited-for"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("agent/evaluate/*/wandb/offline-run-*-waited-for/run-waited-for.wandb")
    assert sweep("templates")["metric"]["name"] in read_offline_run(run.parent).summary


# --- sweepers and launchers, on jobs of no time


def test_a_search_goes_on_after_failed_trials(tmp_path):
    """And with resume=auto the same seed draws what it has drawn before, of which nothing is done again."""
    words = ("-m", "stage=compare", f"compare.runs=[{finished_run(tmp_path / 'good', **{'strategy/Q': 0.25})}]")
    words += ("hydra/sweeper=bayes", "compare.baseline=choice(base,absent)", "resume=auto")
    words += ("optimize_metric='tiny-llama base (cso)/strategy/Q'", f"hydra.sweep.dir={tmp_path}/study")
    first = execute(tmp_path, *words, "optimizer.lr=tag(log,interval(1e-4,1e-2))", "hydra.sweeper.n_trials=4")
    before = multirun.read_jobs(tmp_path / "study")
    assert first.status == 1
    assert {job.status for job in before} == {"done", "failed"}, first.errors
    again = execute(tmp_path, *words, "optimizer.lr=tag(log,interval(1e-4,1e-2))", "hydra.sweeper.n_trials=5")
    after = multirun.read_jobs(tmp_path / "study")
    assert [job.overrides for job in after][:4] == [job.overrides for job in before]
    assert len(after) == 5
    assert again.errors.count("done before") == sum(job.status == "done" for job in before)
    assert yaml.safe_load((tmp_path / "study" / "optimization_results.yaml").read_text())["best_value"] == 0.25


def test_jobs_of_the_local_launcher(tmp_path):
    runs = [finished_run(tmp_path / name, **metrics) for name, metrics in {"a": {"strategy/Q": 0.5}, "b": {}}.items()]
    words = ("-m", "stage=compare", f"compare.runs=[{runs[0]}],[{runs[1]}]", "hydra/launcher=slurm_local")
    done = subprocess.run(
        [sys.executable, ROOT / "run.py", *words, "logger=none"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "1 of 2 jobs failed" in done.stderr
    (directory,) = tmp_path.glob("outputs/multirun/*")
    assert [job.status for job in multirun.read_jobs(directory)] == ["done", "failed"]


def test_jobs_of_ray(tmp_path):
    """In a Ray on this machine that starts and ends with the command."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="pip install 'esc-lab[ray]'")
    runs = [finished_run(tmp_path / name, **metrics) for name, metrics in {"a": {"strategy/Q": 0.5}, "b": {}}.items()]
    words = ("-m", "stage=compare", f"compare.runs=[{runs[0]}],[{runs[1]}]", "hydra/launcher=ray")
    words += ("hydra.launcher.ray.init.num_cpus=1", "hydra.launcher.ray.init.include_dashboard=false", "logger=none")
    done = subprocess.run(
        [sys.executable, ROOT / "run.py", *words], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"},
    )  # fmt: skip
    assert "1 of 2 jobs failed" in done.stderr
    (directory,) = tmp_path.glob("outputs/multirun/*")
    assert [job.status for job in multirun.read_jobs(directory)] == ["done", "failed"]


@pytest.mark.skipif(find_spec("hydra_plugins.hydra_ray_launcher") is not None, reason="it is there")
def test_ray_that_is_not_installed(tmp_path):
    outcome = execute(tmp_path, "-m", "stage=sft", "seed=1,2", "hydra/launcher=ray")
    assert "error: hydra/launcher=ray: Ray is not installed. Fix: pip install 'esc-lab[ray]'" in outcome.errors


def test_the_slurm_launcher_composes():
    (cfg,) = composed(["stage=sft", "hydra/launcher=slurm", "hydra.launcher.partition=gpu"], hydra=True)
    launcher = instantiate(cfg.hydra.launcher)
    assert (launcher.params["gpus_per_node"], launcher.params["partition"]) == (1, "gpu")
