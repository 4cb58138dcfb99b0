"""Config groups in directories of the user's own: named on the command line, listed, checked and kept in the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf

from esc_lab.cli import sweeps
from esc_lab.cli.compositions import CONF, compose_config, use_config_dirs
from esc_lab.cli.help import help_text
from esc_lab.cli.overrides import check
from esc_lab.errors import UserError
from tests.cli.test_run import finished_run, start

MODEL = """# A model of mine.
name: mine
source: random
path: mine
shape: {model_type: llama}
"""
EXPERIMENT = """# @package _global_
# What I ask.
defaults:
  - override /stage: sft
  - override /model: mine
experiment: question
seed: 7
"""


@pytest.fixture
def own(tmp_path):
    """A directory with a model and an experiment."""
    return write(tmp_path / "my configs, of 2026", {"model/mine": MODEL, "experiment/question": EXPERIMENT})


@pytest.fixture(autouse=True)
def no_directories_remain():
    yield
    use_config_dirs([])


def write(directory: Path, options: dict[str, str]) -> Path:
    for name, text in options.items():
        file = directory / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return directory


def test_a_file_that_has_changed_is_read_again(own):
    words = use_config_dirs(["model=tiny_llama", "experiment=question"], str(own))
    for seed in (7, 8888):
        (own / "experiment" / "question.yaml").write_text(EXPERIMENT.replace("seed: 7", f"seed: {seed}"))
        compose_config.cache_clear()
        assert compose_config(*words).cfg.seed == seed


def complaint(directory: Path, *words: str, multirun: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        check(use_config_dirs(["stage=sft", *words], str(directory)), multirun=multirun)
    return str(caught.value)


def test_sweeps_of_experiments_of_ones_own(own, capsys):
    text = EXPERIMENT.replace("question", "sizes") + "hydra: {sweeper: {params: {adapter.r: '8,16', seed: '1,2'}}}\n"
    write(own, {"experiment/sizes": text})
    assert sweeps.main(["--config-dir", str(own)]) == 0
    (file,) = (own / "sweeps").glob("*.yaml")
    sweep = yaml.safe_load(file.read_text())
    assert (file.name, sweep["method"], "metric" in sweep) == ("sizes.yaml", "grid", False)
    assert sweep["parameters"] == {"adapter.r": {"values": [8, 16]}, "seed": {"values": [1, 2]}}
    assert sweep["command"][3:6] == ["--config-dir", str(own), "experiment=sizes"]
    assert "# What I ask.\n" in file.read_text()
    assert sweeps.main(["--config-dir", str(own / "absent")]) == 1
    assert "no such directory" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["--config-dir", "hydra.searchpath", "config_dirs"])
def test_options_of_a_directory_compose(tmp_path, own, form):
    relative = own.relative_to(tmp_path)
    words = ["--config-dir", str(relative)] if form == "--config-dir" else [f"{form}=['{relative}']"]
    done = start("experiment=question", *words, "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text, heavy = done.stdout.rsplit("heavy:", 1)
    cfg = OmegaConf.create(text)
    assert (cfg.model.name, cfg.experiment, cfg.seed, cfg.config_dirs) == ("mine", "question", 7, [str(own)])
    assert heavy.split() == []


def test_a_package_and_several_directories(tmp_path, own, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = write(tmp_path / "my_package" / "conf", {"model/packaged": MODEL})
    words = use_config_dirs(["stage=sft", "model=packaged", f"hydra.searchpath=[pkg://my_package.conf,'file://{own}']"])
    check(words)
    check([*words, "model=mine"])
    assert words[:2] == ["stage=sft", "model=packaged"]
    check(["stage=sft", words[2], "model=glob(*d)", "seed=1,2"], multirun=True)
    assert words[2] == f"config_dirs=['{package}','{own}']"


def test_help_lists_them_and_says_where_they_are(own):
    use_config_dirs([], str(own))
    assert f"tiny_qwen2, mine ({own})" in help_text()
    assert f"question ({own})" in help_text()
    (line,) = (line for line in help_text(["model"]).splitlines() if line.startswith("  mine "))
    assert line.split(maxsplit=1)[1] == f"A model of mine. ({own})"


def test_names_that_are_not_there(own):
    assert "model=min: no such option; did you mean 'mine'?" in complaint(own, "model=min")
    assert "experiment=questoin: no such option; did you mean 'question'?" in complaint(own, "experiment=questoin")
    assert "model=min: no such" in complaint(own, "model=mine,min", multirun=True)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("model/bad", "nmae: x\nsource: hub\npath: x", "unknown config key 'model.nmae'; did you mean 'model.name'?"),
        ("model/bad", "name: x\npath: [1\nb: }", "expected ',' or ']'"),
        ("model/bad", "context_tokens: many", "model.context_tokens: Value 'many' of type 'str' could not be"),
        ("experiment/bad", "seed: 1", "begin it with the line `# @package _global_`"),
        ("experiment/bad", "# @package _global_\nseed: x", "seed: Value 'x'"),
        ("experiment/bad", "# @package _global_\ntrainer: {max_epoch: 2}", "did you mean 'trainer.max_epochs'?"),
        ("experiment/bad", "# @package _global_\ndefaults:\n  - override /modle: mine", "did you mean 'model'?"),
    ],
)
def test_what_is_wrong_in_a_file(own, name, text, message):
    write(own, {name: text})
    found = complaint(own, name.replace("/", "="))
    assert message in found
    assert f"{own / name}.yaml:" in found


def test_an_experiment_that_names_an_absent_option(own):
    write(own, {"experiment/bad": "# @package _global_\ndefaults:\n  - override /model: mien"})
    assert "model=mien: no such option; did you mean 'mine'?" in complaint(own, "experiment=bad")


def test_directories_that_cannot_be_used(tmp_path, own):
    assert complaint(tmp_path / "absent").startswith(f"config directory {tmp_path / 'absent'}: no such directory")
    (tmp_path / "empty").mkdir()
    assert "no options of config groups in it" in complaint(tmp_path / "empty")
    assert "no such directory" in complaint(own, "hydra.searchpath=[pkg://no_such_package]")
    same = write(tmp_path / "same", {"model/tiny_llama": MODEL})
    assert complaint(same).startswith(f"{same}/model/tiny_llama.yaml: {CONF}/model/tiny_llama.yaml has the same name")
    other = write(tmp_path / "other", {"model/mine": MODEL})
    assert f"{own}/model/mine.yaml has the same name" in complaint(own, f"config_dirs=['{other}']")


def test_they_are_searched_after_a_multirun_in_the_same_process(own):
    Singleton.set_state(Singleton.get_state())  # as Hydra's launchers do for each job
    check(use_config_dirs(["stage=sft", "model=mine"], str(own)))


def test_jobs_of_a_multirun_keep_them(tmp_path, own):
    """In processes of their own too; going on with the multirun does not depend on where the directory lies."""
    write(own, {"experiment/two": "# @package _global_\ndefaults:\n  - override /stage: compare\nexperiment: two"})
    good = finished_run(tmp_path / "good", **{"strategy/Q": 0.25})
    words = ("-m", "experiment=two", f"compare.runs=[{good}]", "model=glob(m*)", "seed=1,2")
    words += ("logger=none", "hydra.launcher.n_jobs=2")
    done = start(*words, "--config-dir", own.name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (directory,) = tmp_path.glob("outputs/multirun/*")
    records = [json.loads(line) for line in (directory / "manifest.jsonl").read_text().splitlines()]
    assert {record["status"] for record in records} == {"running", "done"}
    for path in directory.glob("*/config.yaml"):
        cfg = OmegaConf.load(path)
        assert (cfg.model.name, cfg.experiment, cfg.config_dirs) == ("mine", "two", [str(own)])
        assert path.parent.name.endswith(f"model=mine+seed={cfg.seed}")
    moved = own.rename(tmp_path / "moved")
    again = start(*words, f"hydra.searchpath=['{moved}']", "resume=auto", cwd=tmp_path)
    assert f"going on with outputs/multirun/{directory.name}" in again.stderr


def test_a_configuration_named_by_its_path_keeps_the_directories_too(own, tmp_path):
    """Lightning starts further processes that way; a directory that has a say is named in the run all the same."""
    words = ("--config-path", str(CONF), "--config-name", "config", "--config-dir", str(own), "--cfg", "job")
    done = start("stage=sft", "model=mine", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert OmegaConf.create(done.stdout.rsplit("heavy:", 1)[0]).config_dirs == [str(own)]
