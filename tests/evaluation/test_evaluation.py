"""The exact strategy distribution, gold log-probabilities and the summary against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from esc_lab.config import TemplateConfig
from esc_lab.config.evaluate import EvaluateConfig, GenerationConfig
from esc_lab.config.prompt import PromptConfig
from esc_lab.data.dialogue import merge_turns
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.evaluation import prompted_replies
from esc_lab.evaluation.module import EvaluationModule
from esc_lab.evaluation.summary import print_strategies
from esc_lab.metrics.predictions import Prediction, measure_texts
from esc_lab.models import log_probs
from esc_lab.prompts import Message
from tests.comparison import synthetic
from tests.training.modules import data_module

INVENTORY = load_inventory("esconv")


def evaluated(loaded, dialogues, *, template="cso", inference="direct", generation=None, chosen=None, **more):
    """The module after an evaluation, and the data; no reply is written without settings of the generation."""
    shown = TemplateConfig(template=template, history_labels=template == "cso")
    prompt = PromptConfig(train=shown, eval=shown, inference=inference)
    settings = EvaluateConfig(generation=generation or GenerationConfig(enabled=False), **more)
    data = data_module({"test": dialogues}, loaded.encoder, prompt=prompt, evaluate=settings)
    data.setup("test")
    module = EvaluationModule(loaded, INVENTORY, prompt, settings, seed=1, reply_for=chosen)
    with torch.no_grad():
        for group in data.decisions:
            module.test_step(group, 0)
    module.on_test_epoch_end()
    return module, data


def summary(predictions, directory):
    """Metrics and tables of predictions, by way of their file."""
    measure_texts(predictions)
    return synthetic.summary(predictions, directory)


def sequence_log_prob(loaded, messages, reply):
    """Log-probabilities of the tokens of a reply, by the model's own forward over the rendered chat."""
    chat = loaded.encoder.encode([*messages, Message("assistant", reply)])
    start, end = chat.replies[len(messages)]
    ids = torch.from_numpy(chat.input_ids[:end])
    with torch.no_grad():
        logits = loaded.model(input_ids=ids[None], logits_to_keep=end - start + 1).logits[0]
        steps = torch.log_softmax(logits[:-1].double(), dim=-1)
    return steps.gather(1, ids[start:end, None])[:, 0].numpy()


def test_distribution_and_gold_log_probs_equal_brute_force(tiny_models, family, sample_dialogues):
    loaded, dialogue = tiny_models(family), sample_dialogues[0]
    evaluation, data = evaluated(loaded, [dialogue])
    predictions = evaluation.predictions
    examples = data.evaluated_turns.examples(dialogue)
    assert [prediction.turn for prediction in predictions] == [example.key.turn for example in examples]
    for prediction, example in list(zip(predictions, examples, strict=True))[::3]:
        messages = loaded.encoder.adapt(example.prompt).messages
        labels = np.array([sequence_log_prob(loaded, messages, f"({name})")[:-1].sum() for name in INVENTORY.names])
        total = np.log(np.exp(labels).sum())
        np.testing.assert_allclose(list(prediction.distribution.values()), np.exp(labels - total), rtol=1e-3)
        assert prediction.chosen == INVENTORY.names[labels.argmax()]
        assert math.log(prediction.label_mass) == pytest.approx(total, abs=1e-3)
        tokens = sequence_log_prob(loaded, messages, example.reply)
        label = sequence_log_prob(loaded, messages, f"({prediction.gold[0]})")[:-1]
        assert prediction.tokens == len(tokens) - len(label)
        assert prediction.log_prob == pytest.approx(tokens[len(label) :].sum(), rel=1e-4)


def test_prompted_templates_measure_no_choice(tiny_models, sample_dialogues, tmp_path):
    evaluation, _ = evaluated(
        tiny_models("llama"), sample_dialogues[:1], template="c1_hf", generation=GenerationConfig(max_new_tokens=5)
    )
    predictions = evaluation.predictions
    metrics, tables = summary(predictions, tmp_path)
    assert all(prediction.prompted == prediction.gold[0] and not prediction.distribution for prediction in predictions)
    assert tables == {}
    assert {"text/rouge_l", "text/perplexity"} <= metrics.keys()
    assert not any(name.startswith(("strategy/", "generated/")) for name in metrics)


def test_generation_for_chosen_decisions_only(tiny_models, sample_dialogues):
    dialogue = sample_dialogues[1]
    turns = list(dialogue.decisions())
    chosen = frozenset({(dialogue.id, turns[1])})
    evaluation, _ = evaluated(
        tiny_models("llama"), [dialogue], generation=GenerationConfig(max_new_tokens=6), chosen=chosen
    )
    predictions = evaluation.predictions
    assert [p.turn for p in predictions if p.reply is not None] == [turns[1]]


@pytest.mark.parametrize("inference", ["cot", "direct_refine", "self_refine"])
def test_baselines_are_parsed_not_scored(tiny_models, sample_dialogues, tmp_path, inference):
    evaluation, _ = evaluated(
        tiny_models("gemma3"),
        sample_dialogues[:1],
        inference=inference,
        generation=GenerationConfig(max_new_tokens=5),
    )
    predictions = evaluation.predictions
    assert all(p.raw is not None and not p.distribution for p in predictions)
    metrics, _ = summary(predictions, tmp_path)
    assert metrics["generated/unparsable"] == np.mean([p.strategy is None for p in predictions])


def test_openings_are_context_unless_scored(sample_dialogues):
    opened = next(dialogue for dialogue in sample_dialogues if dialogue.turns[0].speaker == "supporter")
    assert 0 not in list(opened.decisions())
    assert 0 in list(opened.decisions(score_opening=True))
    assert merge_turns(opened, "set") is opened  # the sample corpus alternates


GREEDY = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 5}


def prediction(turn, gold, probabilities, strategy=None, reply=None, gold_reply="I see you."):
    shares = dict.fromkeys(INVENTORY.names, 0.0) | dict(zip(["Question", "Information"], probabilities, strict=True))
    return Prediction(
        dialogue="d", tree="t", turn=turn, problem="", emotion="", gold=gold, gold_reply=gold_reply, prompted=None,
        template="cso", log_prob=-4.0, tokens=2, distribution=shares, label_mass=0.5,
        reply=reply, strategy=strategy, sampling=GREEDY if reply else {},
    )  # fmt: skip


def test_summary_by_hand(tmp_path, capsys):
    predictions = [
        prediction(0, ["Question"], [0.9, 0.1], "Question", "I see you."),
        prediction(1, ["Information"], [0.8, 0.2], None, "no label"),
        prediction(2, ["Information", "Question"], [0.6, 0.4]),  # either is right
        prediction(3, ["Information"], [0.1, 0.9], "Question", "x"),
    ]
    metrics, tables = summary(predictions, tmp_path)
    # Chosen: Q, Q, Q, I; gold: Q, I, Q (resolved), I -> F1 of Question 4/5, of Information 2/3.
    assert metrics["strategy/accuracy"] == 0.75
    assert metrics["strategy/Q"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert metrics["strategy/Q_inventory"] == pytest.approx((4 / 5 + 2 / 3) / 8)
    assert metrics["strategy/n"] == 4
    assert metrics["strategy/classes_predicted"] == 2
    assert metrics["generated/n"] == 3
    assert metrics["generated/unparsable"] == pytest.approx(1 / 3)
    assert metrics["generated/accuracy"] == pytest.approx(1 / 3)
    assert metrics["text/perplexity"] == pytest.approx(math.exp(2.0))
    assert metrics["strategy/label_mass"] == 0.5
    matrix = np.array(tables["strategy"]["confusion"]["predicted_by_gold"])
    question, information = INVENTORY.index("Question"), INVENTORY.index("Information")
    assert matrix[question, question] == 2
    assert matrix[question, information] == 1
    assert matrix[information, information] == 1
    assert matrix.sum() == 4
    print_strategies("tiny [4bit]: generated", tables["generated"], metrics, "generated")
    output = " ".join(capsys.readouterr().out.split())
    assert "tiny [4bit]: generated" in output
    assert "Question │ 0.500 │ 1.000 │ 0.667 │ 1 │ 2 │" in output
    assert "A guard of B acted: a strategy was never missed" in output
    assert "temperature 0 top_p 1 max_new_tokens 5 samples 1" in output


def test_a_strategy_named_after_a_thought(tiny_models, sample_dialogues, monkeypatch):
    loaded = tiny_models("llama")
    answer = "Thought: she is tired. Reply: (Question) What keeps you up?"
    ids = loaded.encoder.tokenizer(answer, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(prompted_replies, "generate", lambda model, prompts, *rest, **more: [ids] * len(prompts))
    evaluation, _ = evaluated(
        loaded, sample_dialogues[:1], inference="cot", generation=GenerationConfig(max_new_tokens=40)
    )
    assert {(one.strategy, one.reply) for one in evaluation.predictions} == {("Question", "What keeps you up?")}
    assert all(one.sra is None for one in evaluation.predictions)


@pytest.mark.parametrize("wrong", [math.nan, 3.0])
def test_what_is_no_log_probability_stops_the_evaluation(tiny_models, sample_dialogues, monkeypatch, wrong):
    def scores(model, row, boost):
        return torch.full((int(row.reply.shape[0]),), wrong)

    monkeypatch.setattr(log_probs, "reply_log_probs", scores)
    with pytest.raises(UserError, match=r"dialogue \w+, turn \d+: the gold reply has log-probability .*: no number"):
        evaluated(tiny_models("llama"), sample_dialogues[:1])
