"""`latest` and `latest:STAGE` on the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from esc_lab.cli.latest import complete_latest, name_latest_runs, run_keys
from esc_lab.config import keys
from esc_lab.errors import UserError


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Runs whose metrics get newer from line to line, so that names do not decide."""
    monkeypatch.chdir(tmp_path)
    files = [
        "sft/2026-02/metrics.json",
        "sft/2026-01/metrics.json",
        "evaluate/2026-01/metrics.json",
        "multirun/2026-03/0_seed=1/metrics.json",
        "multirun/2026-03/manifest.jsonl",
        "pipeline/2026-01/cso_2/metrics.json",
        "pipeline/2026-01/metrics.json",
        "sft/2026-03/config.yaml",
    ]
    for second, name in enumerate(files):
        path = tmp_path / "outputs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (second, second))
    return tmp_path


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("checkpoint=latest", "checkpoint='outputs/pipeline/2026-01/cso_2'"),
        ("checkpoint=latest:sft", "checkpoint='outputs/sft/2026-01'"),
        ("init_from=latest:sft,latest:cso", "init_from='outputs/sft/2026-01','outputs/pipeline/2026-01/cso_2'"),
        ("data.path=latest:sft/esc_pro", "data.path='outputs/sft/2026-01/esc_pro'"),
        ("compare.runs=[latest:sft, x/latest]", "compare.runs=['outputs/sft/2026-01', x/latest]"),
        ("+compare.runs=['latest:multirun']", "+compare.runs=['outputs/multirun/2026-03']"),
        ("llm.judge.checkpoint=latest:evaluate", "llm.judge.checkpoint='outputs/evaluate/2026-01'"),
        ("resume=latest:sft", "resume='outputs/sft/2026-03'"),  # the one that has not ended
        ("resume=auto", "resume=auto"),
        ("tags=[latest]", "tags=[latest]"),
        (f"compare.runs=[{'x' * 300}]", f"compare.runs=[{'x' * 300}]"),
        ("compare.runs=[latest-one,my-latest,latest.old]", "compare.runs=[latest-one,my-latest,latest.old]"),
    ],
)
def test_what_they_stand_for(root, word, named):
    assert name_latest_runs([word]) == [named]


def test_every_key_that_names_a_run_is_among_them():
    named = {key.name for key in keys() if "run director" in key.doc or "run of stage" in key.doc}
    assert named - {"output_root", "export.directory", "convert.path"} <= run_keys() <= {key.name for key in keys()}


def test_where_they_are_looked_for(root):
    (root / "latest").mkdir()
    assert name_latest_runs(["checkpoint=latest"]) == ["checkpoint=latest"]  # what is there has its name
    (root / "outputs").rename(root / "other runs")
    words = ["checkpoint=latest:sft", "output_root='other runs'"]
    assert name_latest_runs(words) == ["checkpoint='other runs/sft/2026-01'", words[1]]


def test_jobs_of_a_multirun_are_runs(root):
    jobs = root / "outputs/multirun/2026-04"
    for second, (name, stage) in enumerate([("0_seed=1", "sft"), ("1_seed=2", "pipeline")], start=10):
        for directory in (jobs / name, *([jobs / name / "cso"] if stage == "pipeline" else [])):
            directory.mkdir(parents=True)
            (directory / "config.yaml").write_text(f"seed: 1\nstage: {stage}\n")
            (directory / "metrics.json").touch()
            os.utime(directory / "metrics.json", (second, second))
    named = name_latest_runs([f"checkpoint=latest{stage}" for stage in (":sft", ":cso", ":pipeline", "")])
    expected = ["0_seed=1", "1_seed=2/cso", "1_seed=2", "1_seed=2/cso"]
    assert named == [f"checkpoint='outputs/multirun/2026-04/{path}'" for path in expected]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("checkpoint=latest:stf", "latest:stf: no such stage; did you mean 'sft'? Fix: "),
        ("checkpoint=latest:search", "latest:search: no finished run of stage=search below outputs. Fix: "),
        ("resume=latest:search", "latest:search: no run of stage=search below outputs. Fix: "),
    ],
)
def test_what_is_not_there(root, word, said):
    with pytest.raises(UserError) as caught:
        name_latest_runs([word])
    assert str(caught.value).startswith(said)


def test_plain_latest_is_the_newest_run_that_fits_the_key(root):
    """However many runs of other stages came later; and what a search has left is found in its directory."""
    files = [
        "search/2026-05/metrics.json",
        "search/2026-05/esc_pro/train.jsonl",
        "search/2026-05/config.yaml",
        "data/2026-06/metrics.json",
    ]
    for second, file in enumerate(files, start=20):
        path = root / "outputs" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (second, second))
    named = {
        "arena.sft=latest": "outputs/sft/2026-01",
        "judge.runs=[latest]": "outputs/evaluate/2026-01",
        "compare.runs=[latest]": "outputs/pipeline/2026-01",
        "data.path=latest": "outputs/search/2026-05/esc_pro",
        "data.path=latest:search": "outputs/search/2026-05/esc_pro",
        "export.safety=latest:data": "outputs/data/2026-06",
    }
    for word, path in named.items():
        (found,) = name_latest_runs([word])
        assert found.split("=", 1)[1].strip("[]") == f"'{path}'"
    assert name_latest_runs(["stage=sft", "resume=latest"])[1] == "resume='outputs/sft/2026-03'"
    with pytest.raises(UserError, match=r"a run of stage=data leaves nothing that data\.path could name\. Fix: "):
        name_latest_runs(["data.path=latest:data"])
    with pytest.raises(UserError, match=r"latest:reward: no finished run of stage=reward below outputs"):
        name_latest_runs(["objective.reward=latest"])


def test_the_tab_key_completes_them(root):
    whole = ["checkpoint=latest", "checkpoint=latest:sft", "checkpoint=latest:cso"]
    assert complete_latest("esc-lab stage=chat checkpoint=lat") == whole
    assert complete_latest("esc-lab checkpoint=latest:c") == whole[2:]
    assert complete_latest("esc-lab judge.runs=[l") == ["judge.runs=[latest", "judge.runs=[latest:evaluate"]
    for line in ("objective.reward=lat", "seed=lat", "checkpoint=", "checkpoint=out", "output_root=x checkpoint=lat"):
        assert complete_latest(f"esc-lab {line}") == []
