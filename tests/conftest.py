"""Shared fixtures: tiny random models of every supported family, made once per machine, and the repository's paths."""

from __future__ import annotations

import gc
import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from omegaconf import OmegaConf

from esc_lab.config.files import option_files
from esc_lab.config.model import ModelConfig
from esc_lab.data.strategies import load_inventory
from esc_lab.prompts import load_layout
from tests import tables

ROOT = Path(__file__).parents[1]
tables.note_tables()  # before anybody imports what prints them

# Two test processes on two cores: one thread and no further processes each are faster than two that fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Processes that tests start run this code, wherever they start and whatever is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

# The same examples on every machine, however slow it is.
settings.register_profile("anywhere", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("anywhere")

CACHE = Path(os.environ.get("ESC_LAB_CACHE", ROOT / ".cache"))
# Processes that a test starts to kill, or to share work: what takes seconds to import is imported once for all.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["run", "esc_lab.stages.search", "esc_lab.stages.sft", "esc_lab.stages.cso", "esc_lab.stages.evaluate",
     "esc_lab.search.clients.replica", "aiohttp", "tests.training.processes"]
)  # fmt: skip
HANGS_S = 1800  # a process that takes longer hangs: no machine is that slow
INVENTORIES = {name: load_inventory(name) for name in option_files("inventory")}
LAYOUTS = {name: load_layout(name) for name in option_files("prompt")}
FAMILIES = ("llama", "qwen2", "gemma2", "gemma3")


def model_config(name: str, *overrides: str) -> ModelConfig:
    """The settings in `esc_lab/conf/model/<name>.yaml`, with overrides such as `dtype=float32`."""
    from esc_lab.cli.compositions import CONF  # after `note_tables`; it registers what the files call

    file = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), file, OmegaConf.from_dotlist(list(overrides)))
    return OmegaConf.to_object(merged)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    tables.printed.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """No test prints a table with a column that is told nowhere below its tables."""
    result = yield
    assert not (untold := tables.find_unexplained(tables.printed)), "; ".join(untold)
    return result


def pytest_collection_finish() -> None:
    """Garbage is looked for among what tests make, not again and again among all that torch and Hydra brought along."""
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.fixture(scope="session", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def tiny_models():
    """`tiny_models(family)` -> LoadedModel with float32 weights; loaded once per process. Do not change its weights."""
    from esc_lab.models.load import load_model

    loaded = {}

    def get(family: str):
        if family not in loaded:
            loaded[family] = load_model(model_config(f"tiny_{family}"), CACHE)
        return loaded[family]

    return get


@pytest.fixture(scope="session")
def sample_dialogues():
    from esc_lab.data.corpora import read_dialogues, sample_path

    return read_dialogues(sample_path())
