"""The package's face in Python: light to import, composed and checked as the command line does it."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import esc_lab
from esc_lab.errors import UserError
from tests.conftest import CACHE

SMALL = ("model=tiny_llama", "logger=none")


def test_the_package_is_light_and_composing_needs_no_torch(tmp_path):
    code = """
        import sys, esc_lab
        assert not {"numpy", "hydra", "omegaconf"} & {*sys.modules}
        config = esc_lab.compose(["stage=sft", "model=tiny_llama"])
        assert "torch" not in sys.modules
        print(*sorted(esc_lab.__all__), config.stage)
    """
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(map(str.strip, code.splitlines()))],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "Supporter compose load read_run run sft\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_other_name():
    with pytest.raises(AttributeError, match="nothing"):
        esc_lab.nothing  # noqa: B018


def test_compose_is_what_the_command_line_composes(tmp_path):
    config = esc_lab.compose(["stage=evaluate", *SMALL, "data.limit={test: 2}", f"output_root={tmp_path}"])
    assert (config.model.name, config.data.limit, config.stage) == ("tiny-llama", {"test": 2}, "evaluate")
    assert Path(config.run_dir).parent == tmp_path / "evaluate"
    assert esc_lab.compose(["stage=sft", "hydra.run.dir=here"]).run_dir == "here"
    assert HydraConfig.instance().cfg is None
    assert not GlobalHydra.instance().is_initialized()


def test_own_options(tmp_path):
    (tmp_path / "own/trainer").mkdir(parents=True)
    (tmp_path / "own/trainer/short.yaml").write_text("max_steps: 3\n")
    config = esc_lab.compose(["stage=sft", "trainer=short"], tmp_path / "own")
    assert (config.trainer.max_steps, config.config_dirs) == (3, [str(tmp_path / "own")])
    with pytest.raises(UserError, match="no such option"):
        esc_lab.compose(["stage=sft", "trainer=short"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stage=sft", "modle=x"], "did you mean 'model'"),
        (["model=tiny_llama"], "no stage chosen"),
        (["stage=sft", "seed=1,2"], "several values"),
        (["stage=sft", "init_from=latest:sft", "output_root=nowhere"], "no finished run of stage=sft below nowhere"),
        (["stage=sft", "x"], "mismatched|no viable|missing"),
    ],
)
def test_wrong_words(words, message):
    with pytest.raises(UserError, match=message):
        esc_lab.compose(words)


def test_a_value_that_was_changed_is_checked_before_anything_runs(tmp_path):
    config = esc_lab.compose(["stage=sft", *SMALL, f"output_root={tmp_path}"])
    config.trainer.max_steps, config.seed = -7, -1
    with pytest.raises(UserError, match=r"2 things are wrong:\n  seed=-1.*\n  trainer.max_steps=-7"):
        esc_lab.run(config)
    assert list(tmp_path.iterdir()) == []


def test_a_run_leaves_what_the_command_line_leaves(tmp_path, capfd):
    root = logging.getLogger()
    before = (root.handlers[:], logging.getLogger("esc_lab").level)
    words = ["stage=cards", "cards=corpus", "cards.limit=2", "logger=none", f"cache_dir={CACHE}"]
    config = esc_lab.compose([*words, f"output_root={tmp_path}"])
    metrics = esc_lab.run(config)
    directory = Path(config.run_dir)
    assert metrics
    assert {path.name for path in directory.iterdir()} >= {"config.yaml", "metrics.json", "environment.json", "run.log"}
    assert f"cards -> {directory}" in (directory / "run.log").read_text()
    assert (root.handlers, logging.getLogger("esc_lab").level) == before


def test_runs_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"no predictions\.jsonl in it"):
        esc_lab.read_run(tmp_path)
    with pytest.raises(UserError, match="no run there"):
        esc_lab.load(tmp_path)
    with pytest.raises(UserError, match="an endpoint's model"):
        esc_lab.load(esc_lab.compose(["stage=evaluate", "model=endpoint", "model.path=x"]))
