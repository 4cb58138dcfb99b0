"""Whole stages on tiny random models: what they return, what they leave, and that it fits together."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
import socket

import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from esc_lab.data.corpora import read_dialogues
from esc_lab.data.strategies import load_inventory
from esc_lab.metrics.predictions import Prediction
from esc_lab.prompts import parse_reply
from tests.conftest import FAMILIES
from tests.e2e.conftest import LIMITS
from tests.tracking.wandb_files import read_offline_run

NAMES = load_inventory("esconv").names
TWO_STEPS = "trainer.max_steps=2"
SAMPLED = ("evaluate.generation.temperature=1.0", "evaluate.generation.decisions=4")


def check_run_directory(outcome) -> None:
    """What every stage leaves, and that its metrics are numbers."""
    assert outcome.status == 0, outcome.errors
    assert outcome.metrics
    assert all(isinstance(value, float) and math.isfinite(value) for value in outcome.metrics.values())
    environment = outcome.read("environment.json")
    assert {"git_commit", "device", "python"} <= environment.keys()
    assert environment["packages"]["torch"] == torch.__version__
    config = OmegaConf.load(outcome.path / "config.yaml")
    assert config.run_dir == str(outcome.path)
    assert "${" not in (outcome.path / "config.yaml").read_text()
    assert str(outcome.path) in (outcome.path / "run.log").read_text()
    assert not list(outcome.path.glob(".*.*"))  # no temporary files


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """An evaluation of the trained tiny llama."""
    from tests.e2e.conftest import execute

    return execute(tmp_path_factory.mktemp("evaluated"), "stage=evaluate", f"checkpoint={trained.path}")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An evaluation of the tiny llama as it is."""
    from tests.e2e.conftest import execute

    return execute(tmp_path_factory.mktemp("base"), "stage=evaluate")


def test_sft_leaves_an_adapter(trained):
    check_run_directory(trained)
    assert trained.metrics["train/steps"] == 3  # 2 dialogues in one step an epoch, 3 epochs
    assert trained.read("environment.json")["device"]
    weights = load_file(trained.path / "adapter" / "adapter_model.safetensors")
    assert any(name.endswith("lora_B.weight") and tensor.any() for name, tensor in weights.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_sft_of_each_family(command, family):
    outcome = command("stage=sft", f"model=tiny_{family}", TWO_STEPS)
    check_run_directory(outcome)
    assert outcome.metrics["train/steps"] == 2


def test_full_fine_tuning_can_be_evaluated(command):
    outcome = command("stage=sft", "adapter=full", TWO_STEPS)
    check_run_directory(outcome)
    assert outcome.metrics["train/parameters"] > 200_000
    assert not (outcome.path / "adapter").exists()
    scored = command("stage=evaluate", f"checkpoint={outcome.path}", "evaluate.generation.enabled=false")
    check_run_directory(scored)


def test_the_loss_falls(command):
    words = ("stage=sft", "trainer.max_epochs=4", "data.step_dialogues=2", "scheduler.name=constant", LIMITS)
    outcome = command(*words, "optimizer.lr=0.03", "logger=csv", "trainer.validate_every=1.0")
    check_run_directory(outcome)
    with (outcome.path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    # As the terminal counts: a step that was done is one.
    assert [int(row["step"]) for row in rows if row.get("train/loss")] == list(range(1, 9))
    assert [int(row["step"]) for row in rows if row.get("val/loss")] == [2, 4, 6, 8]
    assert "step 8/8" in outcome.errors
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.5


def test_same_seed_same_results(command):
    training = ("stage=sft", "trainer.max_steps=1", "adapter.dropout=0.2")
    runs = [command(*training), command(*training)]
    scored = [command("stage=evaluate", f"checkpoint={r.path}", *SAMPLED) for r in runs]
    for first, second in (runs, scored):
        kept = [{k: v for k, v in run.metrics.items() if not k.endswith("seconds")} for run in (first, second)]
        assert kept[0] == kept[1]
    assert (scored[0].path / "predictions.jsonl").read_text() == (scored[1].path / "predictions.jsonl").read_text()
    assert command(*training, "seed=2").metrics["val/loss"] != runs[0].metrics["val/loss"]


def test_evaluate_base_model(base):
    check_run_directory(base)
    metrics = base.metrics
    assert {"strategy/Q", "strategy/Q_W", "strategy/B", "text/perplexity", "text/rouge_l"} <= set(metrics)
    assert ("generated/Q" in metrics) == (metrics["generated/unparsable"] < 1)
    predictions = base.lines("predictions.jsonl")
    assert len(predictions) == metrics["decisions"] == metrics["strategy/n"] == metrics["text/replies"]
    evaluated = {dialogue.id: dialogue for dialogue in read_dialogues(base.path / "dialogues.jsonl")}
    replies = [evaluated[line["dialogue"]].turns[line["turn"]].reply for line in predictions]
    assert [reply.text for reply in replies] == [line["gold_reply"] for line in predictions]
    fields = [field.name for field in dataclasses.fields(Prediction)]
    for line in predictions:
        assert list(line) == fields
        assert sum(line["distribution"].values()) == pytest.approx(1)
        assert set(line["distribution"]) == set(NAMES)
        assert set(line["gold"]) <= set(NAMES)
        assert line["sampling"]["max_new_tokens"] == 8
    places = [(line["dialogue"], line["turn"]) for line in predictions]
    assert len(set(places)) == len(places)
    log_prob, tokens = (sum(line[key] for line in predictions) for key in ("log_prob", "tokens"))
    assert metrics["text/perplexity"] == pytest.approx(math.exp(-log_prob / tokens), rel=1e-6)
    chosen = [max(line["distribution"], key=line["distribution"].get) for line in predictions]
    right = sum(name in line["gold"] for name, line in zip(chosen, predictions, strict=True))
    assert metrics["strategy/accuracy"] == pytest.approx(right / len(predictions))
    assert "Q " in base.output


def test_evaluate_a_run(base, evaluated):
    check_run_directory(evaluated)
    assert evaluated.metrics["text/perplexity"] < base.metrics["text/perplexity"]
    tables = evaluated.read("strategies.json")
    assert [row["strategy"] for row in tables["strategy"]["per_strategy"]] == list(NAMES)


@pytest.mark.parametrize("prompt", ["standard", "c1_hf"])
def test_prompts_that_name_the_strategy_measure_no_choice(command, prompt):
    outcome = command("stage=evaluate", f"prompt={prompt}")
    check_run_directory(outcome)
    assert not [name for name in outcome.metrics if name.startswith(("strategy/", "generated/"))]
    for line in outcome.lines("predictions.jsonl"):
        assert line["prompted"] == line["gold"][0]
        assert line["distribution"] == {}


@pytest.mark.parametrize("inference", ["cot", "direct_refine", "self_refine", "with_example"])
def test_prompting_baselines(command, inference):
    words = ("evaluate.generation.decisions=3", "data.limit={train: 1, val: 1, test: 1}")
    outcome = command("stage=evaluate", f"prompt.inference={inference}", *words)
    check_run_directory(outcome)
    assert outcome.metrics["generated/n"] == 3
    assert ("strategy/Q" in outcome.metrics) == (inference == "with_example")
    generated = [line for line in outcome.lines("predictions.jsonl") if line["reply"] is not None]
    assert [line["sampling"]["inference"] for line in generated] == [inference] * 3


def test_supporter_turns_kept_apart(command, tmp_path):
    turns = [
        {"speaker": "seeker", "text": "I lost my job."},
        {"speaker": "supporter", "text": "I am sorry.", "strategies": ["Reflection of feelings"]},
        {"speaker": "supporter", "text": "What happened?", "strategies": ["Question"]},
    ]
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps({"format": "esc-lab/1", "inventory": "esconv", "turns": turns}))
    words = ("stage=evaluate", "data=jsonl", f"data.path={path}", "data.proportions={train: 0, val: 0, test: 1}")
    golds = {}
    for merge in ("none", "set"):
        outcome = command(*words, f"data.merge={merge}", "evaluate.generation.enabled=false")
        check_run_directory(outcome)
        golds[merge] = [line["gold"] for line in outcome.lines("predictions.jsonl")]
    feelings, question = "Reflection of feelings", "Question"
    assert golds == {"none": [[feelings], [question]], "set": [[feelings, question]]}


def test_exported_model_is_the_adapter_model(command, trained):
    outcome = command("stage=export", f"checkpoint={trained.path}")
    check_run_directory(outcome)
    exported = AutoModelForCausalLM.from_pretrained(outcome.path / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(outcome.path / "model")
    from esc_lab.models.load import load_model
    from tests.conftest import CACHE, model_config

    loaded = load_model(model_config("tiny_llama"), CACHE, checkpoint=trained.path)
    assert isinstance(loaded.model, PeftModel)
    chat = [{"role": "user", "content": "I lost my job."}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert tokenizer.chat_template.endswith(loaded.encoder.tokenizer.chat_template)
    loaded.model.get_base_model().set_attn_implementation("eager")
    with torch.inference_mode():
        expected = loaded.model(input_ids=ids["input_ids"]).logits
        with loaded.model.disable_adapter():
            without = loaded.model(input_ids=ids["input_ids"]).logits
        found = exported(input_ids=ids["input_ids"]).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (without - expected).abs().max() > 1e-2
    card = (outcome.path / "model" / "README.md").read_text()
    assert f"| val/loss | {trained.metrics['val/loss']:.4g} |" in card


def test_transformers_alone_replies_as_the_run_did(command, trained, evaluated):
    """The exported directory by its defaults: the history as chat, greedily, without esc-lab's prompts or encoder."""
    exported = command("stage=export", f"checkpoint={trained.path}", "prompt=c1_hf").path / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    dialogues = {dialogue.id: dialogue for dialogue in read_dialogues(evaluated.path / "dialogues.jsonl")}
    replies = 0
    for line in evaluated.lines("predictions.jsonl"):
        chat = []
        for turn in dialogues[line["dialogue"]].turns[: line["turn"]]:
            label = f"({turn.reply.strategies[0]}) " if turn.speaker == "supporter" and turn.reply.strategies else ""
            role = "user" if turn.speaker == "seeker" else "assistant"
            chat.append({"role": role, "content": label + turn.reply.text})
        if [message["role"] for message in chat] != ["user", "assistant"] * (len(chat) // 2) + ["user"]:
            continue  # an opening of the supporter, or consecutive turns
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        written = model.generate(**ids)[0, ids["input_ids"].shape[1] :]
        content = tokenizer.decode(written, skip_special_tokens=True)
        assert parse_reply(content, load_inventory("esconv"))[1] == line["reply"]
        replies += 1
    assert replies > 5


def test_cards_tell_of_the_training_and_can_be_read_by_others(command, trained):
    """Not of the command that exports: other words of it change nothing."""
    words = ("prompt=c1_hf", "inventory=cso", "data.name=theirs", "data.licence=theirs", "model.licence=theirs")
    exported = command("stage=export", f"checkpoint={trained.path}", *words).path / "model"
    for directory in (exported, trained.path / "adapter"):
        card = (directory / "README.md").read_text()
        assert "`cso` layout over the 8 strategies of `esconv`" in card
        assert "supervised fine-tuning on the supporter's turns, on sample; licence of sample: Apache-2.0" in card
        assert "Base model: tiny-llama; licence of its weights: not stated" in card
        assert "Answer in the form (<strategy>) <response>" in card
        assert "theirs" not in card
        assert str(trained.path.parent) not in card
        assert {file.stat().st_mode & 0o777 for file in directory.rglob("*")} == {0o644}
        assert directory.stat().st_mode & 0o777 == 0o755
    adapter = json.loads((trained.path / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "tiny_llama"


def test_export_needs_the_run_that_trained(command, trained, tmp_path):
    shutil.copytree(trained.path / "adapter", tmp_path / "adapter")
    outcome = command("stage=export", f"checkpoint={tmp_path}/adapter")
    assert outcome.status == 1
    assert "the run that trained it is not there. Fix: name the run directory itself" in outcome.errors


def test_exported_model_can_be_evaluated(command, trained, evaluated):
    exported = command("stage=export", f"checkpoint={trained.path}")
    words = ("model=directory", "model.name=exported", f"model.path={exported.path}/model", "model.dtype=float32")
    outcome = command("stage=evaluate", *words)
    check_run_directory(outcome)
    assert outcome.metrics["text/perplexity"] == pytest.approx(evaluated.metrics["text/perplexity"], rel=1e-4)


def test_compare(command, trained, base, evaluated):
    outcome = command("stage=compare", f"compare.runs=[{base.path},{evaluated.path},{trained.path}]")
    check_run_directory(outcome)
    lines = (outcome.path / "comparison.md").read_text().split("\n\n")[0].splitlines()
    assert [line.split("|")[1].strip() for line in lines] == [
        "run", "---", "tiny-llama base (cso)", "tiny-llama SFT (cso)", "tiny-llama SFT training (cso)",
    ]  # fmt: skip
    assert len({line.count("|") for line in lines}) == 1
    with (outcome.path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["text/perplexity"]) for row in rows[:2]] == [
        base.metrics["text/perplexity"], evaluated.metrics["text/perplexity"],
    ]  # fmt: skip
    assert float(rows[2]["val/loss"]) == trained.metrics["val/loss"]
    assert outcome.metrics["tiny-llama base (cso)/strategy/Q"] == base.metrics["strategy/Q"]
    assert "comparison" in outcome.output


def test_pipeline(command):
    outcome = command("stage=pipeline", "pipeline.stages=[sft]", TWO_STEPS, "evaluate.generation.enabled=false")
    check_run_directory(outcome)
    for name, stage in {
        "evaluate_base": "evaluate",
        "sft": "sft",
        "evaluate_sft": "evaluate",
        "compare": "compare",
    }.items():
        step = dataclasses.replace(outcome, directory=outcome.path / name)
        check_run_directory(step)
        assert OmegaConf.load(step.path / "config.yaml").stage == stage
    assert outcome.metrics["sft/text/perplexity"] < outcome.metrics["base/text/perplexity"]
    assert (outcome.path / "compare" / "comparison.md").exists()
    # Each step's log is its own.
    assert "saved" in (outcome.path / "sft" / "run.log").read_text()
    assert "saved" not in (outcome.path / "evaluate_sft" / "run.log").read_text()


def test_wandb_offline(command, monkeypatch):
    import wandb

    def refuse(self, address, *rest):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(
            ("127.", "::1", "localhost")
        ):
            raise AssertionError(f"the network is asked for: {address}")
        return connect(self, address, *rest)

    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    outcome = command("stage=sft", TWO_STEPS, "logger=wandb")
    check_run_directory(outcome)
    assert "WANDB_MODE" not in os.environ
    assert wandb.run is None
    runs = list((outcome.path / "wandb").glob("offline-run-*"))
    assert len(runs) == 1
    run = read_offline_run(runs[0])
    assert run.exit_code == 0
    assert {name: value for name, value in run.summary.items() if not isinstance(value, dict)} == outcome.metrics
    points = [point for point in run.history if "train/loss" in point]
    # As the terminal counts: a step that was done is one.
    assert [point["trainer/global_step"] for point in points] == [1, 2]
    assert f"step {len(points)}/2" in outcome.errors
    assert [(one.name, one.use_after_commit) for one in run.artifacts] == [("sample", True), ("tiny-llama-SFT", False)]


def test_wandb_run_is_closed_when_a_stage_fails(command, monkeypatch):
    import wandb

    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("esc_lab.stages.sft.fit", fail)
    outcome = command("stage=sft", "logger=wandb")
    assert outcome.status == 1
    assert wandb.run is None
    (run,) = (outcome.path / "wandb").glob("offline-run-*")
    assert read_offline_run(run).exit_code == 1


def test_training_without_validation(command, recwarn):
    outcome = command("stage=sft", TWO_STEPS, "data.limit={train: 4, val: 0, test: 0}")
    check_run_directory(outcome)
    assert "val/loss" not in outcome.metrics
    assert not [str(warning.message) for warning in recwarn if "pytorch_lightning" in warning.filename]
    assert (outcome.path / "adapter").exists()


def test_dry_run(command):
    outcome = command("stage=sft", "trainer=dev", "logger=wandb")
    check_run_directory(outcome)
    assert outcome.metrics["train/steps"] == 1
    assert not (outcome.path / "wandb").exists()


def test_going_on_from_a_checkpoint(command, trained):
    outcome = command("stage=sft", TWO_STEPS, f"init_from={trained.path}", "optimizer.lr=0")
    check_run_directory(outcome)
    assert outcome.metrics["val/loss"] == pytest.approx(trained.metrics["val/loss"], abs=1e-4)
