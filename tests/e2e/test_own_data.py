"""docs/own-data.md as it stands, on a tiny model: from a stranger's table to a model that answers without esc-lab."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.conftest import ROOT
from tests.e2e.conftest import execute

PAGE = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
SMALL = (
    "data.limit={train: 6, val: 1, test: 2}", "trainer.max_steps=2", "evaluate.generation.decisions=2",
    "optimizer.lr=0.01",
)  # fmt: skip


def test_from_a_table_to_a_model(tmp_path: Path, monkeypatch) -> None:
    table = re.search(r"(?:^    .*,.*\n)+", PAGE, re.M)
    assert table
    header, *rows = (line.strip() for line in table[0].splitlines())
    talks = [
        row.replace("1", str(number), 1).replace("my job", f"job {number}") for number in range(30) for row in rows
    ]
    (tmp_path / "FILE.csv").write_text("\n".join([header, *talks]) + "\n", encoding="utf-8")
    commands = [shlex.split(words) for words in re.findall(r"^    python run\.py (.*)$", PAGE, re.M)]
    script = re.search(r"```python\n(.*?)```", PAGE, re.S)
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
