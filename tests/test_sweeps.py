"""`sweeps/` and the experiments that are their local twins: the same jobs, all of which compose, and which run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from esc_lab.config_checks import problems
from run import CONF, groups
from tests.conftest import ROOT
from tests.e2e.conftest import LIMITS, Outcome, execute

SWEEPS = {path.stem: path for path in sorted((ROOT / "sweeps").glob("*.yaml"))}
TWINS = [name for name in groups()["experiment"] if "params:" in (CONF / "experiment" / f"{name}.yaml").read_text()]
DRAWN = [name for name, path in SWEEPS.items() if "method: bayes" in path.read_text()]
GRIDS = [name for name in SWEEPS if name not in DRAWN]
# Seconds on tiny models. A sweep over models becomes one over tiny ones.
SMALL = (
    "trainer.fast_dev_run=true", "evaluate.generation.decisions=2", "evaluate.classifier=null",
    "model@llm.local.model=tiny_llama", "mcts.enough_iterations=2", "mcts.most_iterations=2", "search.seeds=2",
    "search.judge_check=2", "search.cache=false", "llm.supporter.max_tokens=4", "llm.seeker.max_tokens=4", LIMITS,
)  # fmt: skip


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


def test_every_sweep_has_a_local_twin():
    assert sorted(SWEEPS) == sorted(TWINS)


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
    first, text = SWEEPS[name].read_text().splitlines()[0], (CONF / "experiment" / f"{name}.yaml").read_text()
    assert f"python run.py -m experiment={name}" in first
    assert f"{len(local_jobs(name)) if name in GRIDS else found['run_cap']} jobs" in text


# --- they run: every setting that needs code of its own once


def outcome_of(root: Path, *words: str) -> Outcome:
    return execute(
        root, *words, *(word for word in SMALL if word.split("=")[0] not in {w.split("=")[0] for w in words})
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("base_models", ("model=tiny_gemma3", "adapter=full")),
        ("objectives", ("objective=kto",)),
        ("negatives", ("pairs=random_search",)),
        ("negatives", ("pairs=gold_contrast",)),
        ("mcts", ("mcts.c=2.0",)),
    ],
)
def test_one_job(name, words, tmp_path):
    outcome = outcome_of(tmp_path, f"experiment={name}", *words)
    assert outcome.status == 0, outcome.errors
    assert math.isfinite(outcome.metrics[composed([f"experiment={name}"])[0].optimize_metric])
    assert "-m runs them all" not in outcome.errors
