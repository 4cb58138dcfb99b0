"""The shortcuts in Hydra's composition: what comes out is what Hydra would compose without them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import Container, OmegaConf

from esc_lab.cli.compositions import CONF, compose_config
from tests.conftest import ROOT

# Composes by Hydra alone: `esc_lab.cli`, where the shortcuts are, is not imported.
PLAIN = """
import json, sys
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from esc_lab import config
from esc_lab.config.files import CONF
ConfigStore.instance().store(name="schema", node=config.schema())
found = []
for words in json.loads(sys.argv[1]):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found.append(OmegaConf.to_yaml(compose("config", words, return_hydra_config=True)))
assert "esc_lab.cli" not in sys.modules
print(json.dumps(found))
"""
LINES = (
    ["stage=sft"],
    ["stage=pipeline", "experiment=demo", "pairs=trained"],
    ["experiment=base_models", "objective=ipo", "+trainer.callbacks.a._target_=wandb.Image"],
    ["stage=search", "model@llm.local.model=tiny_llama", "model=tiny_llama", "llm=openai", "rubric=safety"],
    ["stage=data", "data=file", "data.limit={test: 3}", "data.path=x", "hydra.job.name=${stage}"],
)


def composed(words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", words, return_hydra_config=True)


def test_compositions_are_those_of_hydra_alone():
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, json.dumps(LINES)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    plain = json.loads(done.stdout)
    for _ in range(2):  # read from the files, and from what was kept of them
        assert [OmegaConf.to_yaml(composed(line)) for line in LINES] == plain


@pytest.mark.parametrize("line", [LINES[0], LINES[3]], ids=["sft", "search"])
def test_every_node_knows_its_parent_and_its_flags(line):
    nodes = [composed(line)]
    assert OmegaConf.is_struct(nodes[0].trainer)
    assert not OmegaConf.is_struct(nodes[0].data.limit)  # its keys are the user's own
    while nodes:
        node = nodes.pop()
        content = node._value()
        children = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
        assert all(child._get_parent() is node for child in children)
        nodes += [child for child in children if isinstance(child, Container)]


def test_what_is_done_to_one_composition_is_not_seen_by_the_next():
    first = composed(["stage=sft"])
    first.data.limit["test"] = 7
    first.trainer.max_steps = 5
    assert (second := composed(["stage=sft"])).data.limit != first.data.limit
    assert second.trainer.max_steps != 5


def test_a_printed_configuration_is_composed_once(monkeypatch, capsys):
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    from esc_lab.cli import main

    counted = []
    load = ConfigLoaderImpl._load_configuration_impl
    monkeypatch.setattr(
        ConfigLoaderImpl, "_load_configuration_impl", lambda *a, **k: (counted.append(1), load(*a, **k))[1]
    )
    monkeypatch.setattr(sys, "argv", ["run.py", "stage=sft", "seed=7", "--cfg", "job"])
    assert main.main() == 0
    assert len(counted) == 1
    printed = OmegaConf.create(capsys.readouterr().out)
    assert printed == OmegaConf.create(OmegaConf.to_yaml(compose_config("stage=sft", "seed=7").cfg))
    assert printed.seed == 7
