"""The notebook, as a reader runs it, with a tiny model."""

from __future__ import annotations

import json

import pytest

from tests.conftest import CACHE, ROOT


@pytest.fixture
def cells() -> list[dict]:
    cells = json.loads((ROOT / "docs/tour.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_it_shows_what_the_default_model_gave(cells):
    """In the file and on its page: every cell but that of the imports has printed something, none an error."""
    pytest.importorskip("mkdocs", reason="the site needs the extra docs: pip install 'esc-lab[docs]'")
    from docs.pages import write_notebook

    page = write_notebook({"cells": cells})
    for number, cell in enumerate(cells):
        assert cell["execution_count"] == number + 1
        assert bool(cell["outputs"]) == (number > 0)
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "execute_result")
            shown = "".join(output.get("text") or output["data"]["text/plain"]).rstrip()
            assert shown in page


def test_the_notebook_runs(cells, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESC_LAB_CACHE", str(CACHE))
    small = {'"smollm2_135m"': '"tiny_llama"', "STEPS = 12": "STEPS = 2", "max_new_tokens=40": "max_new_tokens=4",
             "train: 24, val: 1, test: 3": "train: 2, val: 1, test: 1"}  # fmt: skip
    code = "\n".join("".join(cell["source"]) for cell in cells)
    for shown, tiny in small.items():
        assert shown in code
        code = code.replace(shown, tiny)
    known: dict = {}
    exec(compile(code, "tour.ipynb", "exec"), known)
    assert {"base", "SFT"} == {*known["results"]}
    assert known["looks"].measures
    assert "chosen" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}
