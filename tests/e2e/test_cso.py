"""Stage `cso` from the command line: every objective, every source of pairs, and what evaluation says of the result."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from esc_lab.cli.compositions import CONF
from esc_lab.comparison.result import compute_comparison
from esc_lab.config import TemplateConfig
from esc_lab.data.corpora import read_dialogues, read_splits, write_dialogues
from esc_lab.data.strategies import load_inventory
from esc_lab.metrics.prediction_table import PAIR_MEASURES
from esc_lab.prompts import Message, build_prompt, load_layout, reply_content
from tests.conftest import CACHE, model_config
from tests.e2e.conftest import SEARCH, execute
from tests.e2e.test_bad_input import complaint
from tests.e2e.test_stages import TWO_STEPS, check_run_directory
from tests.training.modules import add_values

ESCONV = load_inventory("esconv")
OBJECTIVES = sorted(file.stem for file in (CONF / "objective").glob("*.yaml"))
NO_TEXT = "evaluate.generation.enabled=false"


@pytest.fixture(scope="module")
def tuned(trained, tmp_path_factory):
    """CSO that starts from the fine-tuned tiny llama."""
    words = ("stage=cso", f"init_from={trained.path}", "trainer.max_steps=6", "optimizer.lr=0.01")
    outcome = execute(tmp_path_factory.mktemp("tuned"), *words)
    assert outcome.status == 0, outcome.errors
    return outcome


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains(command, sample_dialogues, tmp_path, objective):
    data = []
    if objective in ("listwise", "grpo"):
        valued = [replace(one, turns=tuple(map(add_values, one.turns))) for one in sample_dialogues]
        write_dialogues(valued, tmp_path / "valued.jsonl")
        data = ["data=jsonl", f"data.path={tmp_path}/valued.jsonl"]
    words = (f"objective={objective}", TWO_STEPS, "data.step_pairs=8", "optimizer.lr=0.01")
    outcome = command("stage=cso", *words, *data)
    check_run_directory(outcome)
    assert {"train/loss", "train/accuracy", "train/reward_chosen", "train/tokens_saved"} <= outcome.metrics.keys()
    assert ("train/kl" in outcome.metrics) == (objective not in ("simpo", "orpo"))
    assert outcome.metrics["train/grad_norm"] > 0
    weights = load_file(outcome.path / "adapter" / "adapter_model.safetensors")
    assert any(name.endswith("lora_B.weight") and tensor.any() for name, tensor in weights.items())


@pytest.mark.parametrize("objective", ["listwise", "grpo"])
def test_siblings_without_values_are_told(command, objective):
    message = complaint(command("stage=cso", f"objective={objective}", TWO_STEPS))
    assert f"objective={objective}: none of " in message
    assert "different search values" in message
    assert "RUN/esc_pro/train.jsonl" in message


def test_training_widens_the_margin(tuned, trained):
    check_run_directory(tuned)
    assert tuned.metrics["train/loss"] < math.log(2) - 0.05
    assert tuned.metrics["train/margin"] > 0
    assert tuned.read("reference.json")["init_from"] == str(trained.path)


def held_out_pairs():
    """The pairs of the test split as the command line sees them: the limits keep two dialogues of it."""
    from esc_lab.config import DataConfig
    from esc_lab.data.corpora import ReadReport

    data = DataConfig(name="sample", path=None, proportions={"train": 0.7, "val": 0.1, "test": 0.2}, limit={"test": 2})
    for dialogue in read_splits(data, "esconv", ReadReport())["test"]:
        for number in dialogue.decisions():
            for rejected in dialogue.turns[number].rejected:
                yield dialogue, number, dialogue.turns[number].reply, rejected


def brute_force(checkpoint):
    """Log-probability of (chosen, rejected) of each held-out pair, one chat at a time, by the model's own forward."""
    from esc_lab.models.load import load_model

    loaded = load_model(model_config("tiny_llama"), CACHE, checkpoint=checkpoint)
    template, settings = load_layout("cso"), TemplateConfig()
    found = []
    for dialogue, number, *replies in held_out_pairs():
        prompt = loaded.encoder.adapt(
            build_prompt(template, ESCONV, dialogue, number, history_labels=settings.history_labels)
        )
        values = []
        for reply in replies:
            content = reply_content(template, reply.text, reply.strategies)
            chat = loaded.encoder.encode([*prompt.messages, Message("assistant", content)])
            start, end = chat.replies[len(prompt.messages)]
            ids = torch.from_numpy(chat.input_ids[:end])
            with torch.no_grad():
                logits = loaded.model(input_ids=ids[None], logits_to_keep=end - start + 1).logits[0]
                steps = torch.log_softmax(logits[:-1].double(), dim=-1)
            values.append(float(steps.gather(1, ids[start:end, None]).sum()))
        found.append(values)
    return torch.tensor(found)


def test_evaluation_on_held_out_pairs(command, tuned, trained):
    outcome = command("stage=evaluate", f"checkpoint={tuned.path}", NO_TEXT)
    check_run_directory(outcome)
    policy, reference = brute_force(tuned.path), brute_force(trained.path)
    assert outcome.metrics["preference/pairs"] == len(policy) > 5
    assert outcome.metrics["preference/accuracy"] == pytest.approx((policy[:, 0] > policy[:, 1]).double().mean())
    margins = 0.1 * (policy - reference) @ torch.tensor([1.0, -1.0])
    assert outcome.metrics["preference/margin"] == pytest.approx(float(margins.mean()), abs=1e-4)
    assert outcome.metrics["preference/reward_accuracy"] == pytest.approx(float((margins > 0).double().mean()))
    pairs = outcome.lines("pairs.jsonl")
    keys = [(dialogue.id, number) for dialogue, number, *_ in held_out_pairs()]
    assert [(pair["dialogue"], pair["turn"]) for pair in pairs] == keys
    np.testing.assert_allclose([pair["log_probs"] for pair in pairs], policy, atol=1e-3)
    rewards = torch.tensor([pair["rewards"] for pair in pairs])
    np.testing.assert_allclose(rewards[:, 0] - rewards[:, 1], margins, atol=1e-4)
    tokens, ratios = (torch.tensor([pair[name] for pair in pairs]) for name in ("tokens", "log_ratios"))
    np.testing.assert_allclose(ratios, policy - reference, atol=1e-3)
    for name, values in (("accuracy_per_token", policy / tokens), ("reward_accuracy_per_token", ratios / tokens)):
        expected = float((values[:, 0] > values[:, 1]).double().mean())
        assert outcome.metrics[f"preference/{name}"] == pytest.approx(expected)
    shorter = (tokens[:, 0] < tokens[:, 1]) + 0.5 * (tokens[:, 0] == tokens[:, 1])
    assert outcome.metrics["preference/shorter"] == pytest.approx(float(shorter.double().mean()))
    names = [f"preference/{name}" for name in PAIR_MEASURES]
    compared_pairs = compute_comparison([outcome.path], metrics=names)
    for metric in names:
        assert compared_pairs.estimates["tiny-llama CSO (cso)", metric].over == ("dialogues",)
    # The starting point has no rewards of its own, and prompts that name the strategy leave nothing to prefer.
    start = command("stage=evaluate", f"checkpoint={trained.path}", NO_TEXT)
    assert "preference/accuracy" in start.metrics
    assert "preference/margin" not in start.metrics
    named = command("stage=evaluate", f"checkpoint={tuned.path}", "prompt=standard", NO_TEXT)
    assert not [name for name in named.metrics if name.startswith("preference/")]


def test_a_reference_that_has_changed_is_not_used(command, tmp_path):
    """Neither new weights in the same place nor a missing run may pass for what the training started from."""
    first = command("stage=sft", TWO_STEPS, "optimizer.lr=0.02")
    words = (f"init_from={first.path}", TWO_STEPS, f"cache_dir={tmp_path}/cache")
    tuned = command("stage=cso", *words)
    evaluation = ("stage=evaluate", f"checkpoint={tuned.path}", NO_TEXT, f"cache_dir={tmp_path}/cache")
    weights = first.path / "adapter" / "adapter_model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(command("stage=sft", "trainer.max_steps=1").path.joinpath("adapter", weights.name).read_bytes())
    changed = command(*evaluation)
    assert "preference/accuracy" in changed.metrics
    assert "preference/margin" not in changed.metrics
    assert "has changed since the training that started from it" in changed.errors
    weights.write_bytes(kept)
    assert "preference/margin" in command(*evaluation).metrics
    weights.unlink()  # what is stored needs the model no more
    assert "preference/margin" in command(*evaluation).metrics


def test_full_fine_tuning(command):
    first = command("stage=sft", "adapter=full", TWO_STEPS)
    line = complaint(command("stage=cso", f"init_from={first.path}", TWO_STEPS))
    assert "an adapter on it would lose it. Fix: train with adapter=full, or take its model/" in line
    tuned = command("stage=cso", "adapter=full", f"init_from={first.path}", TWO_STEPS, "objective.reference=live")
    check_run_directory(tuned)
    scored = command("stage=evaluate", f"checkpoint={tuned.path}", NO_TEXT)
    check_run_directory(scored)
    assert math.isfinite(scored.metrics["preference/margin"])


def renamed(dialogue):
    """The dialogue with strategies of ESC-Pro's inventory."""
    names = dict(zip(ESCONV.names, load_inventory("cso").names, strict=True))

    def reply(old):
        return replace(old, strategies=tuple(names[name] for name in old.strategies))

    turns = [replace(t, reply=reply(t.reply), rejected=tuple(map(reply, t.rejected))) for t in dialogue.turns]
    return replace(dialogue, turns=tuple(turns), inventory="cso")


@pytest.mark.parametrize("form", ["esc_pro_dialogues", "esc_pro_pairs", "esc_pro_kto"])
def test_esc_pro_in_all_its_forms(command, tmp_path, sample_dialogues, form):
    """The same dialogues in each form give the same pairs; KTO records bring replies of their own."""
    path = tmp_path / "pro.json"
    write_dialogues([renamed(dialogue) for dialogue in sample_dialogues[:6]], path, form)
    words = ("data=esc_pro", f"data.path={path}", "data.limit={}", "data.proportions={train: 1, val: 0, test: 0}",
             "inventory=cso")  # fmt: skip
    objective = "objective=kto" if form == "esc_pro_kto" else "objective=cso"
    outcome = command("stage=cso", objective, TWO_STEPS, *words)
    check_run_directory(outcome)
    pairs = sum(len(turn.rejected) for dialogue in sample_dialogues[:6] for turn in dialogue.turns)
    if form == "esc_pro_kto":
        assert outcome.metrics["data/train_pairs"] > 0
    else:
        assert outcome.metrics["data/train_pairs"] == pairs


def test_a_fraction_of_the_seeds(command, sample_dialogues):
    words = ("stage=cso", "trainer.max_steps=1", "data.limit={val: 0}")
    whole = command(*words).metrics["data/train_pairs"]
    half = command(*words, "data.seed_fraction=0.5").metrics["data/train_pairs"]
    assert 0.35 * whole < half < 0.65 * whole


def test_written_negatives(command, tmp_path):
    words = ("data.negatives_tokens=6", "data.limit={train: 2, val: 0}", f"cache_dir={tmp_path}/cache")
    outcome = command("stage=cso", "data.negatives=gold_contrast", TWO_STEPS, *words)
    check_run_directory(outcome)
    assert outcome.metrics["data/train_negatives_replies"] > 0
    assert outcome.metrics["data/train_pairs"] == outcome.metrics["data/train_negatives_replies"]


def test_pipeline_searches_trains_and_compares_three_models(command):
    outcome = command("stage=pipeline", TWO_STEPS, NO_TEXT, *SEARCH)
    check_run_directory(outcome)
    assert outcome.metrics["search/pairs"] > 0
    for name in ("sft", "cso", "evaluate_cso"):
        config = OmegaConf.load(outcome.path / name / "config.yaml")
        assert config.data.path == (None if "evaluate" in name else str(outcome.path / "search" / "esc_pro"))
    assert outcome.metrics["cso/data/train_pairs"] == outcome.metrics["search/pairs"]
    rows = (outcome.path / "compare" / "comparison.md").read_text().split("\n\n")[0].splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [
        f"tiny-llama {name}" for name in ("base (cso)", "SFT (cso)‡", "CSO (cso)‡")
    ]
    noted = json.loads((outcome.path / "cso" / "reference.json").read_text())
    assert noted["init_from"] == str(outcome.path / "sft")
    assert "cso/preference/margin" in outcome.metrics


def test_what_a_pipeline_trains_before_its_search_plays_in_it(command):
    outcome = command(
        "stage=pipeline", "experiment=demo", "pairs=trained", TWO_STEPS, NO_TEXT, *SEARCH, "search.seeker_check=4",
        "reward.layers=null", "reward.check=4", "search.seeds=2", "data.balance_pairs=false",
        "mcts.preferences.rejected_max=1.0", "mcts.preferences.preferred_min=0.8",
    )  # fmt: skip
    check_run_directory(outcome)
    roles = OmegaConf.load(outcome.path / "search" / "config.yaml").llm
    sft, seeker, reward = (str(outcome.path / step) for step in ("sft", "seeker", "reward"))
    roles_played = [roles[role].checkpoint for role in ("strategist", "supporter", "seeker", "judge")]
    assert roles_played == [sft, sft, seeker, reward]
    assert OmegaConf.load(outcome.path / "seeker" / "config.yaml").data.side == "seeker"
    assert OmegaConf.load(outcome.path / "sft" / "config.yaml").data.path is None
    assert OmegaConf.load(outcome.path / "cso" / "config.yaml").data.path == str(outcome.path / "search" / "esc_pro")
    assert json.loads((outcome.path / "cso" / "reference.json").read_text())["init_from"] == sft
    assert "step 5 of 9: seeker" in outcome.errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prompt=standard"], "prompt.train.template=standard: it names the strategy, so there is none to prefer"),
        (["objective=ipo", "objective.value_margin=0.5"], "objective.value_margin=0.5: ipo has no margin. Fix: "),
        (["checkpoint=."], "stage=cso trains. Fix: start from it with init_from="),
        (["objective=csoo"], "objective=csoo: no such option; did you mean 'cso'"),
        (["objective.value_margin=1"], "none of [0-9]+ pairs has a value gap .* Fix: set objective.value_margin=0"),
        (["data.limit={train: 0}"], "no rejected reply, so there is nothing to prefer.* Fix: "),
    ],
)
def test_wrong_settings(command, words, message):
    assert re.search(message, complaint(command("stage=cso", *words)))


def test_starting_point_of_another_model(command, trained):
    line = complaint(command("stage=cso", f"init_from={trained.path}", "model=tiny_qwen2"))
    assert re.search(r"trained from tiny-llama .* not from tiny-qwen2 .* Fix: ", line)


def test_records_that_are_no_pairs(command, tmp_path):
    path = tmp_path / "pairs.json"
    good = {
        "messages": [{"role": "user", "content": "I lost my job."}],
        "chosen": {"role": "assistant", "content": "(Question) Since when?"},
        "reject": {"role": "assistant", "content": "(Information) Jobs are few."},
    }
    words = ("stage=cso", "data=esc_pro", f"data.path={path}", "inventory=cso", "data.limit={}",
             "data.proportions={train: 1, val: 0, test: 0}", "trainer.max_steps=1")  # fmt: skip
    for record, message in (
        ({key: value for key, value in good.items() if key != "chosen"}, "no 'chosen' among"),
        (good | {"chosen": {"role": "assistant", "content": "(Affirmation) "}}, "'chosen': the message is empty"),
        (good, "'Question'"),  # not a strategy of ESC-Pro
    ):
        path.write_text(json.dumps([record]))
        line = complaint(command(*words))
        assert "pairs.json" in line
        assert message in line


def test_equal_pairs_are_dropped_and_counted(command, tmp_path, sample_dialogues):
    path = tmp_path / "own.jsonl"
    write_dialogues(sample_dialogues[:2], path)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    turn = next(turn for turn in records[0]["turns"] if turn.get("rejected"))
    turn["rejected"].append({"text": turn["text"], "strategies": turn["strategies"]})
    path.write_text("\n".join(map(json.dumps, records)))
    assert len(read_dialogues(path)) == 2
    words = ("data=jsonl", f"data.path={path}", "data.limit={}", "data.proportions={train: 1, val: 0, test: 0}")
    outcome = command("stage=cso", *words, "trainer.max_steps=1")
    check_run_directory(outcome)
    dropped = [value for name, value in outcome.metrics.items() if "equal" in name]
    assert sum(dropped) == 1, outcome.metrics
