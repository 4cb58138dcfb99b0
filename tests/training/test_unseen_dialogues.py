"""Evaluations on dialogues that the model was trained on are refused unless asked for."""

from __future__ import annotations

import json

import pytest

from esc_lab.config import Config
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.errors import UserError
from esc_lab.runs.layout import CONFIG, TRAINING_TREES
from esc_lab.runs.lineage import find_training_trees
from esc_lab.training.datamodule import check_unseen


@pytest.fixture
def trainings(tmp_path):
    """A run that went on from another, and what each was trained on; the first run, `old`, does not say."""
    for name, origin, trees in (("old", None, None), ("sft", "old", ["a", "b"]), ("cso", "sft", ["b", "c"])):
        run = tmp_path / name
        run.mkdir()
        start = f"init_from: {tmp_path / origin / 'adapter'}\n" if origin else ""
        (run / CONFIG).write_text(f"stage: sft\n{start}")
        if trees:
            (run / TRAINING_TREES).write_text(json.dumps(trees))
    return tmp_path


def talks(*trees):
    turns = (Turn("seeker", Reply("Hi.")), Turn("supporter", Reply("Hello.")))
    return [Dialogue(turns, "esconv", tree_id=tree, where=f"test.jsonl:{n}") for n, tree in enumerate(trees, 1)]


def settings(checkpoint, **evaluate):
    cfg = Config(stage="evaluate", checkpoint=checkpoint and str(checkpoint))
    for name, value in evaluate.items():
        setattr(cfg.evaluate, name, value)
    return cfg


def test_trees_of_a_training_and_of_those_before_it(trainings):
    runs = {tree: run.name for tree, run in find_training_trees(trainings / "cso").items()}
    assert runs == {"a": "sft", "b": "cso", "c": "cso"}
    assert find_training_trees(trainings / "old") == {}


def test_dialogues_that_were_trained_on_are_refused(trainings):
    cfg = settings(trainings / "cso")
    with pytest.raises(UserError) as caught:
        check_unseen(cfg, talks("x", "a", "c"))
    assert "evaluate.split=test: 2 of 3 dialogues are of trees that" in str(caught.value)
    assert "sft was trained on, such as test.jsonl:2. Fix: " in str(caught.value)
    cfg.data.overlap = "allow"
    assert check_unseen(cfg, talks("x", "a", "c")) == 2


def test_evaluations_that_are_as_they_should_be(trainings):
    assert check_unseen(settings(trainings / "cso" / "adapter"), talks("x", "y")) == 0
    assert check_unseen(settings(trainings / "cso", split="train"), talks("a", "b")) == 0  # asked for
    assert check_unseen(settings(None), talks("a")) == 0
    assert check_unseen(settings(trainings / "old"), talks("a")) == 0
