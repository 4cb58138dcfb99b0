"""The strategy classifier: padding, batches, files, and classifiers made elsewhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, modeling_utils

from esc_lab.config.training import AdapterConfig, OptimizerConfig, SchedulerConfig
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.models.load import load_model
from esc_lab.models.sources import locate_model
from esc_lab.scorers.classifier import batches_by_length, choose_strategies
from esc_lab.scorers.classifier_files import NOTE, load_classifier, new_classifier, save_classifier
from esc_lab.scorers.classifier_training import ClassifierModule, ReplySteps
from tests.conftest import CACHE, model_config

ESCONV = load_inventory("esconv")
TEXTS = (
    "What happened?",
    "I am so sorry to hear that. It must have been a hard week for you, and it is no wonder that you are tired.",
    "You could",
    "It is all right to be angry.",
    ("word " * 60).strip(),
)


def build_classifier(family: str = "llama", *overrides: str, kind: str = "lora", reply_tokens: int = 64):
    """A classifier whose adapter and head are no longer those of the beginning."""
    config = model_config(f"tiny_{family}", *overrides)
    adapter = AdapterConfig(kind=kind)
    classifier = new_classifier(config, adapter, ESCONV, CACHE, reply_tokens=reply_tokens, seed=1)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return classifier, config


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved classifier: its directory and what it predicts."""
    classifier, config = build_classifier()
    path = tmp_path_factory.mktemp("classifier")
    save_classifier(classifier, config, path, 0.625)
    return path, classifier.predict(TEXTS)


def test_padding_and_batches_do_not_change_probabilities(family):
    classifier, _ = build_classifier(family)
    together = classifier.predict(TEXTS)
    assert together.shape == (5, 8)
    assert together.sum(1).tolist() == pytest.approx([1] * 5, abs=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-2
    alone = torch.cat([classifier.predict([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(classifier.predict(TEXTS, row_tokens=1), alone, atol=1e-5, rtol=0)


def test_scores_are_those_of_transformers_on_one_reply():
    classifier, _ = build_classifier()
    ids = classifier.tokenizer("What happened?", return_tensors="pt")
    with torch.no_grad():
        expected = classifier.model.eval()(**ids).logits.softmax(-1)
    torch.testing.assert_close(classifier.predict(["(Question) What happened?"]), expected)


def test_an_adapter_of_the_last_layers_is_in_these_alone(tmp_path):
    config = model_config("tiny_llama")
    last = new_classifier(config, AdapterConfig(layers=1), ESCONV, CACHE, reply_tokens=64, seed=1)
    trained = {name for name, parameter in last.model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".layers.1." in name or "score" in name for name in trained)
    expected = last.predict(TEXTS)
    save_classifier(last, config, tmp_path, None)
    torch.testing.assert_close(load_classifier(tmp_path, ESCONV, CACHE).predict(TEXTS), expected)


def test_a_reply_without_a_word_follows_no_strategy():
    classifier, _ = build_classifier()
    probabilities = classifier.predict(["", "What happened?", "(Question)"])
    assert (probabilities.sum(1) > 0.5).tolist() == [False, True, False]
    assert choose_strategies(probabilities).tolist()[::2] == [-1, -1]
    assert classifier.predict([]).shape == (0, 8)


def test_long_replies_are_cut_and_counted():
    classifier, _ = build_classifier(reply_tokens=8)
    encoded, cut = classifier.encode(TEXTS)
    assert cut == sum(len(classifier.tokenizer(text)["input_ids"]) > 8 for text in TEXTS) == 2
    assert max(map(len, encoded)) == 8
    assert encoded[4] == tuple(classifier.tokenizer(TEXTS[4])["input_ids"][:8])


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200))
def test_batches_hold_every_item_once_within_the_budget(lengths, tokens):
    batches = batches_by_length(lengths, tokens)
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[number] for number in batch) <= tokens
        padded = len(batch) * max(lengths[number] for number in batch)
        assert sum(lengths[number] for number in batch) >= 0.75 * padded
    in_order = [lengths[number] for batch in batches for number in batch]
    assert in_order == sorted(lengths, reverse=True)


def test_the_loss_is_the_mean_over_replies_whatever_the_batches():
    classifier, _ = build_classifier()
    turns = (*(Turn("supporter", Reply(text, (ESCONV.names[n],))) for n, text in enumerate(TEXTS)),)
    splits = {"train": [Dialogue(turns, "esconv")]}
    scores = torch.stack([classifier.logits([classifier.encode([text])[0][0]])[0] for text in TEXTS])
    expected = cross_entropy(scores, torch.arange(5)).detach()
    module = ClassifierModule(classifier, OptimizerConfig(), SchedulerConfig(), 1.0, 1)
    for row_tokens in (1, 40, 10_000):
        data = ReplySteps(splits, classifier, step_replies=5, row_tokens=row_tokens, seed=1)
        (numbers,) = data.plan_epoch(0)
        step = data.step_batch(numbers)
        loss = sum(module._loss(batch) for batch in step.batches).detach() / 5
        torch.testing.assert_close(loss, expected)


def test_every_epoch_sees_every_reply_once_in_an_order_of_its_own(sample_dialogues):
    classifier, _ = build_classifier()
    data = ReplySteps({"train": sample_dialogues}, classifier, step_replies=16, row_tokens=2048, seed=1)
    epochs = [data.plan_epoch(epoch) for epoch in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1]
    for plan in epochs:
        assert len(plan) == len(data.plan_epoch(0))
        assert {len(numbers) for numbers in plan} <= {15, 16}
        assert sorted(number for numbers in plan for number in numbers) == list(range(len(data.examples["train"])))


def test_same_seed_same_head():
    config, adapter = model_config("tiny_llama"), AdapterConfig()
    heads = [
        new_classifier(config, adapter, ESCONV, CACHE, reply_tokens=64, seed=seed).model.state_dict()
        for seed in (1, 1, 2)
    ]
    name = next(name for name in heads[0] if "score" in name and "default" in name)
    assert torch.equal(heads[0][name], heads[1][name])
    assert not torch.equal(heads[0][name], heads[2][name])


def test_saved_and_loaded_again(saved):
    path, expected = saved
    for place in (path, path / "classifier"):
        loaded = load_classifier(place, ESCONV, CACHE)
        torch.testing.assert_close(loaded.predict(TEXTS), expected, atol=1e-6, rtol=0)
    assert (loaded.accuracy, loaded.name, loaded.reply_tokens) == (0.625, "tiny-llama", 64)
    assert not list((path / "classifier").glob("*.bin"))


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", "lora"), ("float32", "full")])
def test_other_kinds_of_weights(tmp_path, dtype, kind):
    classifier, config = build_classifier("llama", f"dtype={dtype}", kind=kind)
    expected = classifier.predict(TEXTS)
    head = next(p for name, p in classifier.model.named_parameters() if "score" in name and p.requires_grad)
    assert head.dtype == expected.dtype == torch.float32
    save_classifier(classifier, config, tmp_path, None)
    loaded = load_classifier(tmp_path, ESCONV, CACHE)
    torch.testing.assert_close(loaded.predict(TEXTS), expected, atol=1e-6, rtol=0)
    assert loaded.accuracy is None


def foreign(path, labels, family="bert"):
    """A sequence classification model that this package did not make."""
    tokenizer = build_classifier()[0].tokenizer
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = AutoConfig.for_model(
        family, **sizes, vocab_size=len(tokenizer), max_position_embeddings=512,
        initializer_range=0.5, id2label=dict(enumerate(labels)), label2id={name: n for n, name in enumerate(labels)},
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(settings).eval()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model


def test_a_classifier_made_elsewhere(tmp_path):
    labels = [name.upper() for name in reversed(ESCONV.names)]
    labels[0], labels[7] = "other", "Questions"
    model = foreign(tmp_path / "theirs", labels)
    loaded = load_classifier(tmp_path / "theirs", ESCONV, CACHE)
    together = loaded.predict(TEXTS)
    alone = []
    for text in TEXTS:
        ids = torch.tensor([loaded.encode([text])[0][0]])
        with torch.no_grad():
            alone.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.softmax(-1)[0].flip(0))
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)
    assert (loaded.name, loaded.accuracy) == ("theirs", None)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([f"LABEL_{number}" for number in range(8)], "unknown strategy 'LABEL_0' in inventory 'esconv'"),
        ([*ESCONV.names[:7], "Questions"], "two classes are 'Question'"),
        (ESCONV.names[:7], "no class for Others"),
    ],
)
def test_classes_that_are_not_the_strategies(tmp_path, labels, message):
    foreign(tmp_path, labels)
    with pytest.raises(UserError, match=message):
        load_classifier(tmp_path, ESCONV, CACHE)


def test_another_inventory_is_refused(saved):
    with pytest.raises(UserError, match=r"Question, .*\(esconv\), not those of cso\. Fix: inventory=esconv"):
        load_classifier(saved[0], load_inventory("cso"), CACHE)


def copied(saved, tmp_path):
    return shutil.copytree(saved[0] / "classifier", tmp_path / "classifier")


def test_directories_that_hold_no_classifier(saved, tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="no classifier in it"):
            load_classifier(path, ESCONV, CACHE)
    adapter = copied(saved, tmp_path)
    (adapter / NOTE).unlink()
    with pytest.raises(UserError, match=r"an adapter without classifier\.json"):
        load_classifier(adapter, ESCONV, CACHE)


@pytest.mark.parametrize("note", ["{", "[]", "{}", '{"model": {"nmae": 1}}'])
def test_broken_notes(saved, tmp_path, note):
    (copied(saved, tmp_path) / NOTE).write_text(note)
    with pytest.raises(UserError, match="broken note"):
        load_classifier(tmp_path, ESCONV, CACHE)


def test_a_note_cannot_ask_for_foreign_code(saved, tmp_path):
    file = copied(saved, tmp_path) / NOTE
    note = json.loads(file.read_text())
    note["model"]["trust_remote_code"] = True
    base = shutil.copytree(locate_model(model_config("tiny_llama"), CACHE), tmp_path / "base")
    settings = json.loads((base / "config.json").read_text())
    settings |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}}
    (base / "config.json").write_text(json.dumps(settings))
    (base / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Config: pass\n")
    note["model"] |= {"source": "directory", "path": str(base)}
    file.write_text(json.dumps(note))
    with pytest.raises(UserError):
        load_classifier(tmp_path, ESCONV, CACHE)
    assert not (tmp_path / "ran").exists()


def test_a_note_cannot_name_a_package_to_import(saved, tmp_path, monkeypatch):
    file = copied(saved, tmp_path) / NOTE
    package = tmp_path / "path" / "theirs"
    (package / "inner").mkdir(parents=True)
    for folder in (package, package / "inner"):
        (folder / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(package.parent)
    note = json.loads(file.read_text())
    for name in ("theirs", "theirs.inner"):
        note["model"] |= {"source": "gguf_wheel", "path": name}
        file.write_text(json.dumps(note))
        with pytest.raises(UserError, match=rf"in an unknown package, '{name}'\. Fix: use a base model in one of llm_"):
            load_classifier(tmp_path, ESCONV, CACHE)
    assert not (tmp_path / "ran").exists()


def test_a_configuration_cannot_ask_for_a_kernel(tmp_path, monkeypatch):
    """Names of kernels on the hub in config.json: transformers would download and run them."""
    wanted = []
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", lambda name, **_: wanted.append(name))
    foreign(tmp_path / "classifier", ESCONV.names)
    base = shutil.copytree(locate_model(model_config("tiny_llama"), CACHE), tmp_path / "base")
    for directory in (tmp_path / "classifier", base):
        settings = json.loads((directory / "config.json").read_text())
        for key in ("_attn_implementation", "attn_implementation"):
            settings[key] = "kernels-community/theirs"
        (directory / "config.json").write_text(json.dumps(settings))
    load_classifier(tmp_path / "classifier", ESCONV, CACHE)
    load_model(model_config("tiny_llama", "source=directory", f"path={base}"), CACHE)
    shape = {"attn_implementation": "kernels-community/theirs", "num_hidden_layers": 1}
    random = model_config("tiny_llama")
    load_model(replace(random, shape={**random.shape, **shape}), tmp_path)
    assert wanted == []
    AutoModelForCausalLM.from_pretrained(base)
    assert set(wanted) == {"kernels-community/theirs"}


def test_weights_that_are_not_safetensors(saved, tmp_path):
    adapter = copied(saved, tmp_path)
    torch.save({}, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors in it"):
        load_classifier(adapter, ESCONV, CACHE)
    model = foreign(tmp_path / "pickle", ESCONV.names)
    torch.save(model.state_dict(), tmp_path / "pickle" / "pytorch_model.bin")
    (tmp_path / "pickle" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\*\.safetensors in it"):
        load_classifier(tmp_path / "pickle", ESCONV, CACHE)


def test_damaged_or_incomplete_weights(saved, tmp_path):
    adapter = copied(saved, tmp_path)
    (adapter / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_classifier(adapter, ESCONV, CACHE)
    names = dict(enumerate(ESCONV.names))
    config = model_config("tiny_llama")
    base = AutoModelForCausalLM.from_pretrained(locate_model(config, CACHE))
    base.config.id2label, base.config.label2id = names, {name: number for number, name in names.items()}
    base.save_pretrained(tmp_path / "lm")
    build_classifier()[0].tokenizer.save_pretrained(tmp_path / "lm")
    with pytest.raises(UserError, match=r"weights are missing: score\.weight"):
        load_classifier(tmp_path / "lm", ESCONV, CACHE)


def test_a_base_model_in_a_directory_is_found_from_anywhere(tmp_path, monkeypatch):
    shutil.copytree(locate_model(model_config("tiny_llama"), CACHE), tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    classifier, config = build_classifier("llama", "source=directory", "path=base")
    save_classifier(classifier, config, tmp_path / "run", None)
    monkeypatch.chdir("/")
    found = load_classifier(tmp_path / "run", ESCONV, CACHE)
    torch.testing.assert_close(found.predict(TEXTS), classifier.predict(TEXTS), atol=1e-6, rtol=0)


def test_base_models_and_targets_that_do_not_do(tmp_path):
    config = model_config("tiny_llama")
    with pytest.raises(UserError, match=r"adapter\.target_modules=nothing"):
        new_classifier(config, AdapterConfig(target_modules="nothing"), ESCONV, CACHE, reply_tokens=8, seed=1)
    (tmp_path / "config.json").write_text("{}")
    config = replace(config, source="directory", path=str(tmp_path))
    with pytest.raises(UserError, match=r"model\.path=.*cannot be loaded"):
        new_classifier(config, AdapterConfig(), ESCONV, CACHE, reply_tokens=8, seed=1)
