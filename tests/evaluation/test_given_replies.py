"""Given replies that have no strategy of the inventory, scored after a prompt that is drawn."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from esc_lab.config import TemplateConfig
from esc_lab.config.evaluate import BoostConfig, EvaluateConfig, GenerationConfig
from esc_lab.config.prompt import PromptConfig
from esc_lab.data.dialogue import Reply
from esc_lab.data.strategies import load_inventory
from esc_lab.evaluation.module import EvaluationModule
from esc_lab.prompts import Message, build_prompt, load_layout
from tests.evaluation.test_module import shortened
from tests.training.modules import data_module

SRA = load_inventory("extes_sra")


def unlabelled(dialogue):
    turns = [dataclasses.replace(turn, reply=Reply(turn.reply.text)) for turn in dialogue.turns]
    return dataclasses.replace(dialogue, turns=tuple(turns), inventory="extes_sra")


def evaluated(loaded, dialogue, *, prompted="all", reply_for=None, temperature=0.0, samples=1, **settings):
    generation = GenerationConfig(max_new_tokens=3, temperature=temperature, samples=samples)
    evaluate = EvaluateConfig(generation=generation, prompted=prompted, **settings)
    prompt = PromptConfig(train=TemplateConfig("c1_hf"), eval=TemplateConfig("c1_hf"))
    data = data_module({"test": [dialogue]}, loaded.encoder, inventory=SRA, prompt=prompt, evaluate=evaluate)
    data.setup("test")
    module = EvaluationModule(loaded, SRA, prompt, evaluate, seed=1, row_tokens=2048, reply_for=reply_for)
    with torch.no_grad():
        for group in data.decisions:
            module.test_step(group, 0)
    module.on_test_epoch_end()
    return module.predictions


def scored(predictions):
    return {(p.turn, p.prompted): (p.log_prob, p.tokens) for p in predictions if p.tokens}


@pytest.fixture(scope="module")
def dialogue(sample_dialogues):
    return unlabelled(shortened(sample_dialogues[3], 4))


def test_each_is_scored_once_under_a_strategy_that_all_runs_draw(tiny_models, dialogue):
    loaded, turns = tiny_models("llama"), [*dialogue.decisions()]
    predictions = evaluated(loaded, dialogue)
    assert len(predictions) == len(SRA) * len(turns)
    assert all(not prediction.gold for prediction in predictions)
    found = scored(predictions)
    assert [turn for turn, _ in found] == turns
    assert len({name for _, name in found}) > 1  # not always the first
    assert scored(evaluated(tiny_models("qwen2"), dialogue)).keys() == found.keys()
    for (turn, name), (log_prob, tokens) in found.items():
        layout = load_layout("c1_hf")
        prompt = loaded.encoder.adapt(build_prompt(layout, SRA, dialogue, turn, name, history_labels=False))
        messages = (*prompt.messages, Message("assistant", dialogue.turns[turn].reply.text))
        chat = loaded.encoder.encode(messages)
        start, end = chat.replies[len(prompt.messages)]
        ids = torch.from_numpy(chat.input_ids)
        with torch.no_grad():
            logits = loaded.model(input_ids=ids[None], use_cache=False).logits[0, start - 1 : end - 1]
        expected = logits.double().log_softmax(-1).gather(1, ids[start:end, None]).sum()
        assert tokens == end - start
        assert log_prob == pytest.approx(float(expected), abs=1e-3)


def test_where_replies_are_written_and_for_the_first_sample_alone(tiny_models, dialogue):
    first = next(dialogue.decisions())
    chosen = frozenset({(dialogue.id, first)})
    settings = {"reply_for": chosen, "temperature": 1.0, "samples": 2, "prompted": "random"}
    predictions = evaluated(tiny_models("llama"), dialogue, **settings)
    assert {turn for turn, _ in scored(predictions)} == {first}
    assert [p.sample for p in predictions if p.tokens] == [0]


def test_a_boost_reaches_them(tiny_models, dialogue):
    loaded = tiny_models("llama")
    plain, *boosted = (
        scored(evaluated(loaded, dialogue, boost=BoostConfig(amount=amount, span=span)))
        for amount, span in ((0.0, "name"), (3.0, "name"), (3.0, "neutral"))
    )
    for other in boosted:
        assert other.keys() == plain.keys()
        values = np.array([[found[key][0] for key in plain] for found in (plain, other)])
        assert (np.abs(values[0] - values[1]) > 1e-4).all()
        assert np.isfinite(values).all()
    assert not any(math.isclose(boosted[0][key][0], boosted[1][key][0]) for key in plain)
