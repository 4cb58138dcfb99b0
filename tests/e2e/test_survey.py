"""Stage `survey` from the command line, and votes of people as data of trainings."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import execute
from tests.judging.surveys import fill_in, preferring, read_key, save, write_templates

SPLIT = ("data.split=proportion", "data.proportions={train: 0.6, val: 0.2, test: 0.2}", "data.limit={}")


@pytest.fixture(scope="module")
def votes(tmp_path_factory):
    """The run that read ratings."""
    root = tmp_path_factory.mktemp("votes")
    runs = write_templates(root, ("standard", "c1_hf"))
    made = execute(root / "make", "stage=survey", f"survey.runs=[{runs[0]},{runs[1]}]", "survey.items=null")
    assert made.status == 0, made.errors
    assert made.metrics["survey/items"] == made.metrics["survey/most_of_runs"]
    key = read_key(made.path)
    raters = ("rater_1", "rater_2")
    files = [save(root / name, key, name, fill_in(key, name, preferring(1.0, n))) for n, name in enumerate(raters)]
    words = (f"survey.directory={made.path}", f"survey.results=[{files[0]},{files[1]}]", "survey.draws=50")
    found = execute(root / "read", "stage=survey", *words)
    assert found.status == 0, found.errors
    assert "What people prefer" in found.output
    assert {"survey.json", "survey.md", "ratings.jsonl", "set_aside.jsonl", "metrics.json"} <= {
        path.name for path in found.path.iterdir()
    }
    return found


def test_votes_train_cso(votes, tmp_path):
    outcome = execute(
        tmp_path, "stage=cso", "data=jsonl", f"data.path={votes.path / 'preferences.jsonl'}", *SPLIT,
        "trainer.max_steps=2",
    )  # fmt: skip
    assert outcome.status == 0, outcome.errors
    assert outcome.metrics["data/train_pairs"] > 10


@pytest.mark.parametrize("kind", ["rated", "rejected"])
def test_votes_train_a_reward_model(votes, tmp_path, kind):
    outcome = execute(
        tmp_path, "stage=reward", "data=jsonl", f"data.path={votes.path / 'preferences.jsonl'}", *SPLIT,
        f"reward.kinds={{{kind}: 1.0}}", "trainer.max_steps=2", "reward.check=4",
    )  # fmt: skip
    assert outcome.status == 0, outcome.errors
    assert ("reward/rated/auc" in outcome.metrics) is (kind == "rated")


def test_bad_settings_are_told_at_once(tmp_path):
    for words, told in [
        ((), "stage=survey needs run directories of evaluations, or what raters gave back. Fix: survey.runs="),
        (("survey.runs=[.]", "survey.results=[setup]"), "survey.runs and survey.results are both given. Fix: "),
        (("survey.runs=[nowhere]",), "survey.runs: nowhere: no such directory"),
        (("survey.results=[nowhere]",), "survey.results: nowhere: no such file"),
        (("survey.runs=[.]", "survey.ratings=3"), "survey.ratings=3: there are 2 raters"),
        (("survey.runs=[.]", "survey.judge=."), "survey.judge=.: which replies it judged"),
    ]:
        outcome = execute(tmp_path, "stage=survey", *words)
        assert outcome.status != 0
        assert told in outcome.errors
