"""Stage `classifier` on a tiny random model: it learns, keeps what it learnt, and says early what is wrong."""

from __future__ import annotations

import json
import re

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from esc_lab.cli.help import help_text
from esc_lab.config import DataConfig
from esc_lab.data.corpora import ReadReport, read_splits
from esc_lab.data.strategies import load_inventory
from esc_lab.scorers.adherence import labelled_replies
from esc_lab.scorers.classifier import choose_strategies
from esc_lab.scorers.classifier_files import load_classifier
from esc_lab.scorers.classifier_training import ClassifierModule
from tests.conftest import CACHE
from tests.e2e.conftest import execute
from tests.e2e.test_bad_input import complaint
from tests.e2e.test_stages import check_run_directory

ESCONV = load_inventory("esconv")
# Replies that tell their strategy by one word of their own.
WORDS = ("what", "again", "feel", "myself", "good", "try", "people", "hello")
SPLIT = ("data.split=proportion", "data.proportions={train: 0.6, val: 0.2, test: 0.2}", "data.limit={}")


def turn(speaker: str, text: str, *strategies: str) -> dict:
    return {"speaker": speaker, "text": text, **({"strategies": list(strategies)} if strategies else {})}


def write_corpus(path, dialogues: int) -> str:
    lines = []
    for number in range(dialogues):
        turns = [turn("seeker", f"I lost {number} of them.")]
        for shift, (name, word) in enumerate(zip(ESCONV.names, WORDS, strict=True)):
            label = f"({name}) " if shift == 0 else ""
            turns.append(turn("supporter", f"{label}{'so ' * ((number + shift) % 4)}{word} {number}", name, "Others"))
        turns += [turn("supporter", "so so"), turn("supporter", "(Information)", "Information")]
        lines.append(json.dumps({"format": "esc-lab/1", "inventory": "esconv", "turns": turns}))
    path.write_text("\n".join(lines))
    return f"data.path={path}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> str:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", 30)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, corpus):
    words = ("trainer.max_epochs=5", "optimizer.lr=0.01", "classifier.batch=8")
    return execute(tmp_path_factory.mktemp("learnt"), "stage=classifier", "data=jsonl", corpus, *SPLIT, *words)


def test_it_learns_separable_replies(learnt):
    check_run_directory(learnt)
    metrics = learnt.metrics
    assert metrics["classifier/accuracy"] > 0.9
    assert metrics["classifier/Q"] > 0.9
    assert metrics["classifier/majority_accuracy"] == pytest.approx(1 / 8)
    assert metrics["classifier/n"] == 6 * 8
    assert metrics["train/steps"] == 5 * 18
    assert {"train/loss", "train/seconds", "train/parameters", "val/loss"} <= metrics.keys()
    counts = {"replies": 8, "stripped": 1, "empty": 1, "unlabelled": 1, "cut": 0}
    for split, dialogues in (("train", 18), ("val", 6), ("test", 6)):
        assert {name: metrics[f"data/{split}_{name}"] / dialogues for name in counts} == counts
    assert "accuracy " in learnt.output


def test_the_table_has_a_row_for_each_strategy(learnt):
    rows = learnt.read("strategies.json")
    assert [row["strategy"] for row in rows] == list(ESCONV.names)
    assert sum(row["support"] for row in rows) == sum(row["predicted"] for row in rows) == 48
    right = sum(row["recall"] * row["support"] for row in rows)
    assert right / 48 == pytest.approx(learnt.metrics["classifier/accuracy"])


def test_what_it_saved_has_the_accuracy_that_it_says(learnt, corpus):
    settings = DataConfig(
        name="corpus", path=corpus.removeprefix("data.path="), format="jsonl", merge="none", split="proportion",
        proportions={"train": 0.6, "val": 0.2, "test": 0.2},
    )  # fmt: skip
    examples, _ = labelled_replies(read_splits(settings, "esconv", ReadReport())["test"], ESCONV)
    loaded = load_classifier(learnt.path, ESCONV, CACHE)
    predicted = choose_strategies(loaded.predict([example.text for example in examples])).tolist()
    right = sum(found == example.strategy for found, example in zip(predicted, examples, strict=True))
    assert right / len(examples) == loaded.accuracy == learnt.metrics["classifier/accuracy"]
    files = {path.name for path in (learnt.path / "classifier").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "classifier.json"} <= files


SMALL = ("stage=classifier", "data.limit={train: 6, val: 2, test: 2}", "trainer.max_epochs=2", "trainer.save_every=1")


def test_an_interrupted_training_goes_on(tmp_path, monkeypatch):
    words = (*SMALL, "adapter.dropout=0.2", "optimizer.lr=0.01")
    whole = execute(tmp_path, *words, f"hydra.run.dir={tmp_path}/whole/0")
    step = ClassifierModule.training_step

    def crash(module, batch, number):
        if module.trainer.global_step == 4:
            raise RuntimeError("crash")
        step(module, batch, number)

    with monkeypatch.context() as patched:
        patched.setattr(ClassifierModule, "training_step", crash)
        assert execute(tmp_path, *words, f"hydra.run.dir={tmp_path}/parts/0").status == 1
    resumed = execute(
        tmp_path, *words, "resume=auto", f"output_root={tmp_path}/parts", f"hydra.run.dir={tmp_path}/parts/1"
    )
    assert (whole.status, resumed.status) == (0, 0), resumed.errors
    assert OmegaConf.load(tmp_path / "parts/1/config.yaml").resume == f"{tmp_path}/parts/0"
    runs = [tmp_path / "whole/0", tmp_path / "parts/1"]
    metrics = [json.loads((run / "metrics.json").read_text()) for run in runs]
    kept = [{k: v for k, v in each.items() if not k.endswith("seconds")} for each in metrics]
    assert kept[0] == kept[1]
    weights = [load_file(run / "classifier/adapter_model.safetensors") for run in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_all_weights_and_no_test_split(command):
    outcome = command(*SMALL, "adapter=full", "data.limit={train: 3, val: 0, test: 0}", "trainer.max_steps=2")
    check_run_directory(outcome)
    assert not [name for name in outcome.metrics if name.startswith(("classifier/", "val/"))]
    assert "nobody will know how far to trust" in outcome.errors + (outcome.path / "run.log").read_text()
    assert outcome.read("classifier/classifier.json")["accuracy"] is None
    assert load_classifier(outcome.path, ESCONV, CACHE).predict(["What?"]).sum() == pytest.approx(1)


def test_a_dry_run_of_the_experiment(command):
    check_run_directory(command("experiment=classifier", "trainer=dev"))


def write_turns(path, *turns: dict) -> tuple[str, ...]:
    record = {"format": "esc-lab/1", "inventory": "esconv", "turns": [turn("seeker", "I lost my job."), *turns]}
    path.write_text("\n".join([json.dumps(record)] * 3))
    return (
        "stage=classifier",
        "data=jsonl",
        f"data.path={path}",
        "data.limit={}",
        "data.proportions={train: 1, val: 0, test: 0}",
    )


def test_a_strategy_without_examples_is_a_warning(command, tmp_path):
    words = write_turns(tmp_path / "one.jsonl", turn("supporter", "Why?", "Question"))
    outcome = command(*words, "trainer.max_steps=1")
    check_run_directory(outcome)
    names = ", ".join(ESCONV.names[1:])
    assert f"no reply to learn these strategies from: {names}" in (outcome.path / "run.log").read_text()


@pytest.mark.parametrize("reply", [turn("supporter", "Why?"), turn("supporter", "(Question)", "Question")])
def test_nothing_to_learn_from(command, tmp_path, reply):
    outcome = command(*write_turns(tmp_path / "none.jsonl", reply))
    assert "the train split has no reply with a strategy" in complaint(outcome)


def test_wrong_settings_are_told_at_once(command, tmp_path):
    words = ("model.quantization=4bit", "model.trust_remote_code=true", "trainer.devices=2", "classifier.batch=0")
    others = (f"checkpoint={tmp_path}", f"init_from={tmp_path}", "data.strategy_weights={Question: 2.0}")
    outcome = command("stage=classifier", *words, *others)
    assert (outcome.status, outcome.directory) == (1, None)
    assert "error: 7 things are wrong" in outcome.errors
    for word in (*words, *others):
        assert re.search(rf"^  {re.escape(word.partition('=')[0])}\b.*", outcome.errors, re.M), word
    line = complaint(command("stage=classifier", "classifier.bacth=2"))
    assert "'classifier.bacth'; did you mean 'classifier.batch'" in line


def test_help_shows_the_keys():
    shown = help_text(["classifier"])
    assert "classifier.batch  (int; default 16)" in shown
    assert "classifier.reply_tokens" in shown
