"""The tutorials as they stand, on a tiny model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from esc_lab.cli.projects import write_project
from tests.conftest import ROOT
from tests.e2e.conftest import execute

SMALL = (
    "data.limit={train: 6, val: 1, test: 2}", "trainer.max_steps=2", "evaluate.generation.decisions=2",
    "optimizer.lr=0.01",
)  # fmt: skip


def read(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")


def test_from_a_table_to_a_model(tmp_path: Path, monkeypatch) -> None:
    """From a stranger's table to a model that answers without esc-lab."""
    page = read("own-data")
    table = re.search(r"(?:^    .*,.*\n)+", page, re.M)
    assert table
    header, *rows = (line.strip() for line in table[0].splitlines())
    talks = [
        row.replace("1", str(number), 1).replace("my job", f"job {number}") for number in range(30) for row in rows
    ]
    (tmp_path / "FILE.csv").write_text("\n".join([header, *talks]) + "\n", encoding="utf-8")
    commands = [shlex.split(words) for words in re.findall(r"^    python run\.py (.*)$", page, re.M)]
    script = re.search(r"```python\n(.*?)```", page, re.S)
    assert script
    assert len(commands) + 1 <= 6
    monkeypatch.chdir(tmp_path)
    for words in commands:
        given = [word.replace("=FILE", "=FILE.csv") for word in words]
        small = SMALL if "stage=pipeline" in given else ()
        outcome = execute(Path("outputs"), *given, *small)
        assert outcome.status == 0, (words, outcome.errors)
    assert (tmp_path / "talks.jsonl").read_text(encoding="utf-8").count("\n") == 30
    assert list(tmp_path.glob("outputs/pipeline/*/compare/report.html"))
    said: list[object] = []
    exec(script[1], {"print": said.append})
    assert isinstance(said[0], str)


def test_strategies_of_ones_own(tmp_path: Path, monkeypatch) -> None:
    """The project as `init` writes it, and again with a strategy more, which one of its dialogues has."""
    page = read("own-strategies")
    begin, enter, *commands = (shlex.split(line) for line in re.findall(r"^    (esc-lab .*|cd .*)$", page, re.M))
    assert (begin, enter) == (["esc-lab", "init", "mine"], ["cd", "mine"])
    monkeypatch.chdir(tmp_path)
    write_project(begin[2:])
    monkeypatch.chdir("mine")
    first, look, whole = (words[1:] for words in commands)
    small = ("trainer.max_epochs=1", "evaluate.generation.decisions=2")
    assert execute(Path("outputs"), *first, *small).status == 0
    (strategy,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    inventory, dialogues = Path("conf/inventory/peer_support.yaml"), Path("data/dialogues.jsonl")
    inventory.write_text(inventory.read_text().replace("mappings:", f"{strategy}mappings:"))
    dialogues.write_text(dialogues.read_text().replace('["Open Question"]', '["scaling"]', 1))
    looked = execute(Path("outputs"), *look)
    assert looked.status == 0, looked.errors
    assert "Scaling Question" in looked.output
    done = execute(Path("outputs"), *whole, *small)
    assert done.status == 0, done.errors
    assert "CSO" in done.output
    assert list(Path("outputs").glob("pipeline/*/compare/report.html"))


def test_a_table_of_a_paper(tmp_path: Path, monkeypatch) -> None:
    command = re.search(r"^    python run\.py (experiment=sra_templates)$", read("paper-table"), re.M)
    assert command
    monkeypatch.chdir(tmp_path)
    few = ("sra.templates=[standard,c1_hf]", "evaluate.generation.decisions=2", "sra.draws=20")
    done = execute(Path("outputs"), command[1], *few)
    assert done.status == 0, done.errors
    assert done.read("metrics.json")
    assert {"standard", "c1_hf"} <= {path.parent.name for path in done.path.glob("*/predictions.jsonl")}
