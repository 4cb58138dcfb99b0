"""Every command of README, docs and CONTRIBUTING composes as it stands; the small ones run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from esc_lab.cli.compositions import use_config_dirs
from esc_lab.cli.latest import name_latest_runs
from esc_lab.cli.overrides import check
from esc_lab.cli.projects import write_project
from tests.conftest import ROOT
from tests.e2e.conftest import execute
from tests.e2e.test_own_configs import write_own_configs

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
_INLINE = re.compile(r"`(?:python run\.py|esc-lab) ([^`]+)`")
_LINE = re.compile(r"^\s*(?:\$ )?(?:\w+=\S+ )*(?:(?:\.venv/bin/)?python run\.py|esc-lab)(?: (.*))?$", re.M)
_NO_RUN = ("init", "--version", "-sc")  # tests/cli/test_installed.py runs them


def commands() -> list[tuple[str, str]]:
    """Page and arguments of each command, in code blocks and in the text."""
    found = []
    for page in PAGES:
        text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
        lines = [re.split(r"\s+#\s", match.group(1) or "")[0] for match in _LINE.finditer(text)]
        found += [(page.name, arguments.strip()) for arguments in [*lines, *_INLINE.findall(text)]]
    unique = dict.fromkeys(found)
    return [(page, words) for page, words in unique if "..." not in words and not words.startswith(_NO_RUN)]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """A directory in which the runs, corpora and files that commands name are there: DIR holds ESConv's split files."""
    root = tmp_path_factory.mktemp("docs")
    records = [json.loads(line) for line in (ROOT / "esc_lab/data/corpora/sample.jsonl").read_text().splitlines()]
    for name, part in (("train", records[:4]), ("valid", records[4:5]), ("test", records[5:6])):
        text = "".join(f"{json.dumps(esconv_record(record))}\n" for record in part)
        (_made(root / "DIR") / f"{name}.txt").write_text(text)
    for name in ("FILE", "talks.jsonl"):
        shutil.copy(ROOT / "esc_lab/data/corpora/sample.jsonl", root / name)
    write_own_configs(root / "DIR")
    write_project([str(root / "project")])
    shutil.copytree(root / "project", root, dirs_exist_ok=True)  # where `cd DIR` would lead
    options = {
        "experiment/NAME": "# @package _global_\ndefaults: [{override /stage: sft}]\n",
        "model/NAME": "name: NAME\npath: NAME\n",
    }
    options["prompt/mine"] = yaml_block("prompts.md", "train: {template: mine")
    options["trainer/mine"] = yaml_block("own-configs.md", "extra: {")
    options["wording/mine"] = (ROOT / "conf/wording/default.yaml").read_text()
    for name, text in options.items():
        (_made((root / "DIR" / name).parent) / f"{Path(name).name}.yaml").write_text(text)
    searches = ["search", "extend", "cards", "converse", "chat"]
    others = ["pipeline", "classifier", "reward", "sra", "survey"]
    for step in ("sft", "classifier"):
        directory = _made(root / "outputs/pipeline/RUN" / step)
        (directory / "config.yaml").write_text(f"stage: {step}\n")
        _made(directory / "adapter")
    for path in (
        "cso/OLD/metrics.json",
        "sft/OLD/metrics.json",
        "classifier/OLD/metrics.json",
        "multirun/OLD/manifest.jsonl",
    ):  # `latest` finds them
        (_made((root / "outputs" / path).parent) / Path(path).name).touch()
    for stage in ("cso", "sft"):
        (root / f"outputs/{stage}/OLD/config.yaml").write_text(f"stage: {stage}\n")
        _made(root / f"outputs/{stage}/OLD/adapter")
    for stage in [*searches, *others, "sft", "cso", "evaluate", "judge", "multirun"]:
        for run in ("RUN", "RUN1", "RUN2"):
            directory = _made(root / "outputs" / stage / run)
            (directory / "config.yaml").write_text(f"stage: {stage}\n")
            _made(directory / "adapter")
            _made(directory / "esc_pro")
            _made(directory / "continuations")
            for name in ("preferences.jsonl", "talks.jsonl", "cards.yaml"):
                (directory / name).touch()
    return root


def yaml_block(page: str, start: str) -> str:
    """A file as a page shows it."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.S)
    return next(block for block in blocks if start in block)


def esconv_record(record: dict) -> dict:
    turns = []
    for turn in record["turns"]:
        speaker = "usr" if turn["speaker"] == "seeker" else "sys"
        turns.append({"text": turn["text"], "speaker": speaker})
        if speaker == "sys":
            turns[-1]["strategy"] = (turn.get("strategies") or ["Others"])[0]
    return {"emotion_type": "sadness", "problem_type": "work", "situation": record["situation"], "dialog": turns}


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@pytest.mark.parametrize(("page", "arguments"), commands(), ids=lambda text: text[:60])
def test_command_composes(page, arguments, places, monkeypatch):
    monkeypatch.chdir(places)
    words = shlex.split(arguments)
    options = {"-m", "--multirun", "--cfg", "job", "--help"}
    if "--help" in words:
        return
    directory = words[words.index("--config-dir") + 1] if "--config-dir" in words else None
    overrides = name_latest_runs([word for word in words if word not in {*options, "--config-dir", directory}])
    assert all("=" in word for word in overrides), page
    try:
        check(use_config_dirs(overrides, directory), multirun="-m" in words)
    finally:
        use_config_dirs([])


def test_pages_have_commands():
    assert len(commands()) > 50
    assert {page for page, _ in commands()} >= {
        "README.md",
        "use.md",
        "experiments.md",
        "search.md",
        "sra.md",
        "cso.md",
    }


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run.py"), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [a for _, a in commands() if "--help" in a or a.startswith("--cfg")])
def test_command_that_only_tells_runs(arguments, places):
    result = run(*shlex.split(arguments), cwd=places)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_first_commands_run(places, tmp_path, monkeypatch):
    """Fine-tuning and evaluation as the page of first commands has them, shrunk to a tiny model and a step."""
    shown = [shlex.split(arguments) for page, arguments in commands() if page == "use.md"]
    small = ("model=tiny_llama", "data.limit={train: 2, val: 1, test: 1}", "output_root=outputs")
    shutil.copytree(places / "DIR", tmp_path / "DIR")
    monkeypatch.chdir(tmp_path)
    sft = next(words for words in shown if words[0] == "stage=sft")
    result = execute(tmp_path, *sft, *small, "trainer.max_steps=1", "hydra.run.dir=outputs/sft/RUN")
    assert result.status == 0, result.errors
    evaluate = next(words for words in shown if words[0] == "stage=evaluate")
    short = ("evaluate.generation.decisions=1", "evaluate.generation.max_new_tokens=4")
    result = execute(tmp_path, *evaluate, *small, *short)
    assert result.status == 0, result.errors
    assert list(tmp_path.glob("outputs/evaluate/*/metrics.json"))
