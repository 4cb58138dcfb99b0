"""Stage `arena`: what it trains, whose talks it holds and how; the stages themselves are played."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from esc_lab import config
from esc_lab.cli.compositions import CONF
from esc_lab.config import Config
from esc_lab.errors import UserError
from esc_lab.stages import arena

STEPS = ("base", "sft", "cso", "steerable")


@pytest.fixture
def steps(monkeypatch) -> dict[str, Config]:
    """The configurations of the steps that are taken, in order, by their places in the run directory."""
    taken: dict[str, Config] = {}

    def play(cfg: Config, directory: Path) -> dict[str, float]:
        taken["/".join(directory.parts[directory.parts.index("run") + 1 :])] = cfg
        return {"converse/turns": float(len(taken))} if cfg.stage == "converse" else {"other": 0.0}

    monkeypatch.setattr(arena, "run_substage", play)
    return taken


def settings(tmp_path: Path, *words: str) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = config.typed(compose("config", ["experiment=arena", *words]))
    cfg.run_dir = str(tmp_path / "run")
    return cfg


def test_what_is_not_named_is_trained_as_the_demo_does(steps, tmp_path):
    metrics = arena.run(settings(tmp_path, "arena.temperature=0.6", "data.label_weight=10"))
    assert [*steps] == ["training", "training/steerable", *STEPS, "compare"]
    assert steps["training"].stage == "pipeline"
    assert steps["training"].pipeline.stages == ["reward", "sft", "seeker", "search", "cso"]
    trained = steps["training/steerable"]
    assert (trained.stage, trained.prompt.train.template, trained.init_from) == ("sft", "standard", None)
    assert (steps["training"].data.label_weight, trained.data.label_weight) == (10, 1)  # its replies have no label
    root = tmp_path / "run"
    places = [None, f"{root}/training/sft", f"{root}/training/cso", f"{root}/training/steerable"]
    assert [steps[name].checkpoint for name in STEPS] == places
    assert [steps[name].prompt.eval.template for name in STEPS] == ["cso", "cso", "cso", "standard"]
    assert [len(steps[name].converse.strategies) for name in STEPS] == [0, 0, 0, 4]
    assert {steps[name].llm.seeker.checkpoint for name in STEPS} == {f"{root}/training/seeker"}
    assert steps["training"].llm.seeker.checkpoint is None
    assert {steps[name].stage for name in STEPS} == {"converse"}
    assert {steps[name].llm.supporter.temperature for name in STEPS} == {0.6}
    assert steps["training"].llm.supporter.temperature == 0.5
    assert steps["compare"].compare.runs == [str(root / name) for name in STEPS]
    assert metrics == {f"{name}/turns": float(number) for number, name in enumerate(STEPS, start=3)}


@pytest.mark.parametrize(
    ("words", "trained"),
    [
        (["arena.sft={run}", "arena.cso={run}", "arena.steerable={run}"], []),
        (["arena.supporters=[base,sft]"], ["training/sft"]),
        (["arena.supporters=[sft,steerable]", "arena.steerable={run}"], ["training/sft"]),
        (["arena.supporters=[base,prompted]"], []),
        (["arena.supporters=[cso]", "arena.cso={run}", "arena.steerable=/of/no/interest"], []),
    ],
    ids=lambda value: " ".join(value),
)
def test_nothing_else_is_trained(steps, tmp_path, words, trained):
    given = write_run(tmp_path / "given")
    cfg = settings(tmp_path, *(word.format(run=given) for word in words))
    arena.run(cfg)
    assert [*steps] == [*trained, *cfg.arena.supporters, "compare"]
    for name, checkpoint in (("sft", cfg.arena.sft), ("cso", cfg.arena.cso), ("steerable", cfg.arena.steerable)):
        if checkpoint and name in steps:
            assert steps[name].checkpoint == checkpoint
    # Told its card: no seeker is trained here.
    assert {steps[name].llm.seeker.checkpoint for name in cfg.arena.supporters} == {None}
    if "prompted" in steps:
        assert steps["prompted"].checkpoint is None
        assert steps["prompted"].prompt.eval.template == "standard"


def write_run(path: Path, *words: str) -> Path:
    """A run directory that says how its model is asked."""
    path.mkdir()
    (path / "config.yaml").write_text(config.to_yaml(settings(path, "stage=sft", *words)))
    return path


def test_another_inventory_is_refused_before_anybody_talks(steps, tmp_path):
    other = write_run(tmp_path / "other", "inventory=extes_sra")
    expected = f"arena.steerable={other}: it was trained on the strategies of 'extes_sra', and these are 'esconv'"
    with pytest.raises(UserError, match=re.escape(expected)):
        arena.run(settings(tmp_path, f"arena.steerable={other}"))
    assert not steps


@pytest.mark.parametrize("words", [["llm.seeker.checkpoint=OWN"], ["llm.seeker.client=openai"]])
def test_a_seeker_of_choice_is_not_replaced(steps, tmp_path, words):
    cfg = settings(tmp_path, *words)
    arena.run(cfg)
    assert {steps[name].llm.seeker.checkpoint for name in STEPS} == {cfg.llm.seeker.checkpoint}


def test_the_last_of_several_rounds_talks(steps, tmp_path):
    arena.run(settings(tmp_path, "pipeline.rounds=3", "arena.supporters=[cso]"))
    assert str(steps["cso"].checkpoint).endswith("training/cso_3")
