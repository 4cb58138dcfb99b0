"""The benchmarks, which no other test runs, keep up with the code."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import HANGS_S, ROOT

BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_what_a_benchmark_imports_is_there(path):
    """A name in a module, or a module in a package."""
    found = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("esc_lab", "tests")
        for alias in node.names
    ]
    for module, name in found:
        if not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")


def test_check_of_a_gpu_runs_small_on_the_cpu(tmp_path):
    """All parts, and one that fails does not hide the others: TRL and bitsandbytes may be there or not."""
    command = [sys.executable, "benchmarks/gpu_check.py", "--shrunk", "--out", str(tmp_path / "out.json")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGS_S, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads((tmp_path / "out.json").read_text())
    families = found["families"]["values"]
    assert {"states", "gradient", "probe", "boost_share", "engine_log_probs", "tokens_other"} <= families.keys()
    assert max(families.values()) < 1e-3
    for part in ("sft", "cso"):
        values = found[part]["values"]
        assert values["mfu"] > 0
        assert values["recompiles"] == values["syncs_of_a_step"] == 0
    against = found["trl"]["values"]
    assert against["tree_pairs_per_s_700"] > 0
    if find_spec("trl"):
        assert against["speedup_700"] > 0
        assert against["loss_difference_700"] < 1e-2
    assert "sft_mfu: " in run.stdout
    assert "(goal >= 0.35)" in run.stdout


def test_weights_of_four_bits_are_counted_as_what_they_stand_for(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    count = importlib.import_module("_gpu_training").count_weights
    packed = SimpleNamespace(shape=(6, 1), quant_state=SimpleNamespace(shape=(3, 4)))
    assert count(packed) == count(SimpleNamespace(shape=(3, 4))) == 12
