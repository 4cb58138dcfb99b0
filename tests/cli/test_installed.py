"""The wheel in an environment of its own: the command, its data, and a project of one's own, away from the checkout."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import esc_lab
from esc_lab.cli.projects import TEMPLATE, write_project
from esc_lab.errors import UserError
from tests.conftest import CACHE, HANGS_S, ROOT

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "esc_lab", "conf")
BUILD = "import setuptools.build_meta as backend, sys; print(getattr(backend, f'build_{sys.argv[1]}')(sys.argv[2]))"


def build(kind: str, source: Path, target: Path) -> Path:
    """A wheel or an sdist, by the backend that pyproject.toml names."""
    command = [sys.executable, "-c", BUILD, kind, str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=HANGS_S)
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


def files(names: list[str]) -> set[str]:
    return {name for name in names if name.startswith("esc_lab/") and not name.endswith("/")}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what is built, so that nothing is written into the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        path = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        if path.is_dir():
            shutil.copytree(path, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(path, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel in it; it finds the dependencies, but not the checkout, where they are."""
    root = tmp_path_factory.mktemp("installed")
    venv.create(root, with_pip=False, symlinks=True)
    python = root / "bin" / "python"
    # A checkout that is installed itself has an egg-info, by which pip would take the wheel for installed.
    options = ("--no-deps", "--no-index", "--ignore-installed")
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANGS_S)
    assert done.returncode == 0, done.stderr
    libraries = Path(sysconfig.get_path("purelib", vars={"base": str(root), "platbase": str(root)}))
    (libraries / "dependencies.pth").write_text("\n".join([*site.getsitepackages(), site.getusersitepackages()]))
    return root


@pytest.fixture
def run(installed, tmp_path):
    def call(*words: str, cwd: Path = tmp_path, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
        environment |= {"PATH": f"{installed}/bin:/usr/bin:/bin", "ESC_LAB_CACHE": str(CACHE), "COLUMNS": "200"}
        return subprocess.run(
            words, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=HANGS_S
        )

    return call


def test_the_wheel_has_all_files(source, wheel):
    """Those of `conf/` too, once; it is also built from the sdist."""
    tree = [path.relative_to(source) for path in source.rglob("*") if path.is_file() and "build" not in path.parts]
    expected = files([str(Path("esc_lab", path) if path.parts[0] == "conf" else path) for path in tree])
    assert files(zipfile.ZipFile(wheel).namelist()) == expected
    assert {"esc_lab/conf/config.yaml", "esc_lab/cli/project/data/dialogues.jsonl"} <= expected
    assert wheel.stat().st_size < 5e6


def test_the_sdist_has_what_the_wheel_is_built_of(source, tmp_path):
    with tarfile.open(build("sdist", source, tmp_path)) as sdist:
        names = [name.partition("/")[2] for name in sdist.getnames()]
    tree = {f"esc_lab/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert tree <= files(names)
    assert {"pyproject.toml", "README.md"} <= {*names}


def test_the_command_runs_from_anywhere(run, installed, tmp_path):
    assert run("esc-lab", "--version").stdout == f"esc-lab {esc_lab.__version__}\n"
    shown = run("esc-lab", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "usage: esc-lab stage=STAGE" in shown.stdout
    assert "run.py" not in shown.stdout
    composed = run("python", "-m", "esc_lab.cli", "stage=sft", "--cfg", "job")
    assert yaml.safe_load(composed.stdout)["model"]["name"] == "SmolLM2-135M"
    refused = run("esc-lab", "stage=sft", "modle=x")
    assert (refused.returncode, "did you mean 'model'?" in refused.stderr) == (1, True)
    assert "`esc-lab --help" in refused.stderr
    assert list(tmp_path.iterdir()) == []
    where = run("python", "-c", "from esc_lab.config.files import CONF; print(CONF)").stdout.strip()
    assert Path(where).is_relative_to(installed.resolve())
    sweeps = run("python", "-m", "esc_lab.cli.sweeps")
    assert (sweeps.returncode, "Fix: --config-dir DIR" in sweeps.stderr) == (1, True)


def test_a_project_of_ones_own_runs_as_it_is(run, installed, tmp_path):
    packaged = {path for path in installed.rglob("*") if path.suffix != ".pyc" and path.name != "__pycache__"}
    begun = run("esc-lab", "init", "mine")
    assert begun.returncode == 0, begun.stderr
    project = tmp_path / "mine"
    whole = run("esc-lab", "--config-dir", "conf", "experiment=peer_support", "--cfg", "job", cwd=project)
    assert yaml.safe_load(whole.stdout)["pipeline"]["stages"] == ["sft", "cso"]
    small = ("model=tiny_llama", "stage=sft", "trainer.max_steps=1", "logger=none", "reuse=false")
    words = ("esc-lab", "hydra.searchpath=[conf]", "experiment=peer_support", *small)
    trained = run(*words, cwd=project)
    assert trained.returncode == 0, trained.stderr
    # Jobs on several devices are run in processes of their own.
    several = ("-m", "stage=evaluate", "checkpoint=latest:sft", "trainer.devices=2", "trainer.accelerator=cpu")
    done = run(*words[:4], *several, "logger=none", "evaluate.generation.decisions=1", "seed=1", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(project.glob("outputs/multirun/*/*/predictions.jsonl"))
    assert {path.name for path in project.iterdir()} == {"README.md", "conf", "data", "outputs"}
    now = {path for path in installed.rglob("*") if path.suffix != ".pyc" and path.name != "__pycache__"}
    assert now == packaged


def test_commands_of_the_projects_readme(run, tmp_path):
    write_project([str(tmp_path / "mine")])
    text = (TEMPLATE / "README.md").read_text()
    commands = [line.split(" #")[0].split() for line in text.splitlines() if line.startswith("    esc-lab ")]
    assert len(commands) == 4
    for words in commands[:-1]:
        done = run(*words, "--cfg", "job", cwd=tmp_path / "mine")
        assert done.returncode == 0, done.stderr
        assert "experiment: peer_support" in done.stdout
    assert [line.split()[0] for line in text.splitlines() if line.startswith("    conf") or line.startswith("    data")]
    assert all((TEMPLATE / path).is_file() for path in re.findall(r"^    ((?:conf|data)/\S+)", text, re.M))


def test_the_tab_key(run, tmp_path):
    """As bash asks: with options, without a stage, in a directory of one's own."""
    write_project([str(tmp_path / "mine")])
    (tmp_path / "outputs" / "sft" / "1").mkdir(parents=True)
    (tmp_path / "outputs" / "sft" / "1" / "metrics.json").touch()
    script = """
        eval "$(esc-lab -sc install=bash)"
        own="--config-dir mine/conf"
        for line in "model=tiny_l" "$own -m experiment=pee" "trainer.max_e" "--config-dir m" "checkpoint=latest:s"; do
            COMP_LINE="esc-lab $line" COMP_POINT=99 COMP_WORDS=(esc-lab $line)
            COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            hydra_bash_completion
            echo "${COMPREPLY[@]}"
        done
    """
    done = run("bash", "-c", script)
    expected = ["model=tiny_llama", "experiment=peer_support", "trainer.max_epochs=", "mine", "checkpoint=latest:sft"]
    assert done.stdout.split() == expected, done.stderr


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "notes.txt").touch()
    for words in ([], ["a", "b"], ["--config-dir"], [str(tmp_path)], [str(tmp_path / "notes.txt")]):
        with pytest.raises(UserError, match="Fix: "):
            write_project(words)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_dockerfile_names_what_there_is():
    """It cannot be built here: what it copies is there and let in, and its extras are those of the package."""
    text = (ROOT / ".ci" / "Dockerfile").read_text()
    allowed = (ROOT / ".ci" / "Dockerfile.dockerignore").read_text().split()
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for name in line.split()]
    assert {f"!{name}" for name in copied} == {name for name in allowed if name.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (named,) = re.findall(r"^ARG EXTRAS=(.*)$", text, re.M)
    assert {*named.split(",")} <= {*extras}
