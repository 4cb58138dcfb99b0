"""One optimizer step of SFT: the gradient is the mean over all reply tokens of the step, however it is computed."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch

from esc_lab.config import PromptConfig, TemplateConfig
from esc_lab.config.prompt import collect_seeker_words
from esc_lab.config.training import OptimizerConfig, SchedulerConfig
from esc_lab.errors import UserError
from esc_lab.prompts import load_layout
from esc_lab.tokens.examples import build_examples
from esc_lab.training.sft import SFTModule, draw_balanced
from tests.training.modules import data_module, one_step_trainer

RATE = 0.5


def trained_step(loaded, dialogues, tmp_path, **options):
    """Parameters after one plain SGD step on all dialogues at once, and the data module."""
    model = copy.deepcopy(loaded.model).double().requires_grad_(True)
    splits = {"train": dialogues, "val": dialogues[:1]}
    data = data_module(splits, loaded.encoder, step_dialogues=len(dialogues), **options)
    module = SFTModule(model, OptimizerConfig(name="sgd", lr=RATE), SchedulerConfig("constant", warmup=0), 0.0, seed=1)
    one_step_trainer(tmp_path).fit(module, datamodule=data)
    return dict(model.named_parameters()), data


def brute_force_gradients(loaded, dialogues, data, weights=None, template="cso", turns=None, label_weight=1.0):
    """Gradient of the weighted mean token loss, by the model's own forward on one example at a time."""
    settings = TemplateConfig(template, history_labels=template == "cso")
    model = copy.deepcopy(loaded.model).double().requires_grad_(True)
    loss, total = torch.zeros(()), 0.0
    for dialogue in dialogues:
        for example in build_examples(dialogue, data.inventory, settings, load_layout(template)):
            if turns and example.key.turn not in turns:
                continue
            prompt = loaded.encoder.adapt(example.prompt)
            chat = loaded.encoder.encode([*prompt.messages, example.messages[-1]])
            start, end = chat.replies[len(prompt.messages)]
            strategy = dialogue.turns[example.key.turn].reply.strategies[0]
            weight = torch.full((end - start,), (weights or {}).get(strategy, 1.0))
            if label_weight != 1:
                heads = [loaded.encoder.decode(chat.input_ids[start:place]).strip() for place in range(start, end)]
                weight[: heads.index(f"({strategy})")] *= label_weight
            ids = torch.from_numpy(chat.input_ids[:end])
            logits = model(input_ids=ids[None], logits_to_keep=end - start + 1).logits[0]
            steps = torch.log_softmax(logits[:-1], dim=-1)
            loss = loss - (weight * steps.gather(1, ids[start:end, None])[:, 0]).sum()
            total += float(weight.sum())
    (loss / total).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_step_is_the_mean_over_all_reply_tokens(tiny_models, family, sample_dialogues, tmp_path):
    loaded = tiny_models(family)
    dialogues = [dataclasses.replace(dialogue, turns=dialogue.turns[:6]) for dialogue in sample_dialogues[:2]]
    expected = None
    for row_tokens, rows in ((900, 2), (4096, 1)):
        after, data = trained_step(loaded, dialogues, tmp_path, row_tokens=row_tokens)
        assert len(data.steps.step_batch([0, 1]).rows) == rows
        expected = expected or brute_force_gradients(loaded, dialogues, data)
        for name, before in loaded.model.named_parameters():
            step = (before - after[name]) / RATE
            np.testing.assert_allclose(step.detach(), expected[name], atol=1e-5, err_msg=name)


def test_strategy_weights_enter_the_mean(tiny_models, sample_dialogues, tmp_path):
    loaded, dialogues = tiny_models("llama"), sample_dialogues[:2]
    weights = {"Question": 3.0, "Information": 0.0}
    after, data = trained_step(loaded, dialogues, tmp_path, strategy_weights=weights)
    expected = brute_force_gradients(loaded, dialogues, data, weights)
    for name, before in loaded.model.named_parameters():
        np.testing.assert_allclose(((before - after[name]) / RATE).detach(), expected[name], atol=1e-5, err_msg=name)


def test_tokens_of_labels_weigh_more(tiny_models, family, sample_dialogues, tmp_path):
    loaded, dialogues = tiny_models(family), sample_dialogues[:2]
    options = {"label_weight": 4.0, "strategy_weights": {"Question": 0.5}}
    after, data = trained_step(loaded, dialogues, tmp_path, **options)
    expected = brute_force_gradients(loaded, dialogues, data, options["strategy_weights"], label_weight=4.0)
    for name, before in loaded.model.named_parameters():
        np.testing.assert_allclose(((before - after[name]) / RATE).detach(), expected[name], atol=1e-5, err_msg=name)


def test_no_label_to_weigh_where_the_prompt_names_the_strategy(tiny_models, sample_dialogues):
    prompt = PromptConfig(train=TemplateConfig("standard", history_labels=False))
    data = data_module({"train": sample_dialogues[:1]}, tiny_models("llama").encoder, label_weight=2.0, prompt=prompt)
    with pytest.raises(UserError, match=r"data\.label_weight=2\.0: prompts name the strategy"):
        data.setup("fit")


def test_a_seeker_has_no_labels_to_weigh(tiny_models, sample_dialogues):
    """A pipeline trains it with the settings of the supporter."""
    prompt = PromptConfig(seeker=collect_seeker_words(PromptConfig(), {}))
    data = data_module(
        {"train": sample_dialogues[:1]}, tiny_models("llama").encoder, side="seeker", label_weight=3.0, prompt=prompt
    )
    data.setup("fit")
    assert all((weights == 1).all() for weights in data.steps.step_batch([0]).weights)


def test_the_loss_on_last_replies_alone(tiny_models, sample_dialogues, tmp_path):
    loaded = tiny_models("llama")
    dialogues = [dataclasses.replace(dialogue, turns=dialogue.turns[:6]) for dialogue in sample_dialogues[:2]]
    standard = TemplateConfig("standard", history_labels=False)
    options = {"loss": "last_reply", "prompt": PromptConfig(train=standard)}
    after, data = trained_step(loaded, dialogues, tmp_path, **options)
    expected = brute_force_gradients(loaded, dialogues, data, template="standard", turns=(5,))
    for name, before in loaded.model.named_parameters():
        np.testing.assert_allclose(((before - after[name]) / RATE).detach(), expected[name], atol=1e-5, err_msg=name)


def test_balanced_strategies_are_drawn_alike_as_far_as_there_are_replies():
    classes = ["common"] * 60 + ["rare"] * 20 + [None] * 18 + ["lone"] * 2
    drawn = draw_balanced(classes, 4, np.random.default_rng(1))
    counts = Counter(classes[number] for number in drawn)
    # 8 of the lone two, four times each; the other 92 are shared by three.
    assert counts == {"lone": 8, None: 31, "rare": 31, "common": 30}
    times = Counter(drawn.tolist())
    assert {times[number] for number in range(60)} == {0, 1}
    assert {times[number] for number in (98, 99)} == {4}
    assert {times[number] for number in range(60, 98)} == {1, 2}
    assert draw_balanced(["a"] * 3, 1, np.random.default_rng(1)).tolist() == [0, 1, 2]


def test_an_epoch_of_balanced_strategies(tiny_models, sample_dialogues):
    """Of three talks that end in a question and one that ends in information, two of each kind are drawn."""
    talks = [dataclasses.replace(dialogue, turns=dialogue.turns[: number + 1]) for dialogue in sample_dialogues
             for number, turn in enumerate(dialogue.turns) if turn.reply.strategies]  # fmt: skip
    by_name = {name: [talk for talk in talks if talk.turns[-1].reply.strategies == (name,)]
               for name in ("Question", "Information")}  # fmt: skip
    dialogues = by_name["Question"][:3] + by_name["Information"][:1]
    encoder = tiny_models("llama").encoder
    steps = data_module({"train": dialogues}, encoder, loss="last_reply", balance_strategies=2, step_dialogues=1).steps
    steps.setup()
    plans = [[*chain(*steps.plan_epoch(epoch))] for epoch in (0, 0, 1, 2, 3)]
    assert plans[0] == plans[1]
    assert len({frozenset(plan) for plan in plans}) > 1
    assert all(Counter(plan)[3] == 2 and len(plan) == 4 for plan in plans)


def test_replies_that_dialogues_share_count_for_each_whatever_the_packing(tiny_models, sample_dialogues, tmp_path):
    """Two dialogues of a tree that part late, and one of them again: in one row, and in two."""
    loaded, whole = tiny_models("llama"), dataclasses.replace(sample_dialogues[0], turns=sample_dialogues[0].turns[:8])
    last = dataclasses.replace(whole.turns[3], reply=dataclasses.replace(whole.turns[3].reply, text="That is a lot."))
    other = dataclasses.replace(whole, turns=(*whole.turns[:3], last))
    dialogues = [whole, other, dataclasses.replace(whole, meta={"copy": 1})]
    weights = {whole.turns[1].reply.strategies[0]: 2.0}
    row_tokens = 4096
    for rows in (1, 2):
        after, data = trained_step(loaded, dialogues, tmp_path, row_tokens=row_tokens, strategy_weights=weights)
        batch = data.steps.step_batch([0, 1, 2])
        assert len(batch.rows) == rows
        row_tokens = len(batch.rows[0]) - 1
        expected = brute_force_gradients(loaded, dialogues, data, weights)
        for name, before in loaded.model.named_parameters():
            step = (before - after[name]) / RATE
            np.testing.assert_allclose(step.detach(), expected[name], atol=1e-5, err_msg=name)


def test_validation_counts_shared_replies_for_each_dialogue(tiny_models, sample_dialogues):
    loaded, whole = tiny_models("llama"), sample_dialogues[0]
    cut = dataclasses.replace(whole, turns=whole.turns[:4], meta={"copy": 1})
    sums = []  # negative log-likelihood and tokens: of each dialogue alone, and of both together
    for dialogues in ([whole], [cut], [whole, cut]):
        data = data_module({"train": [whole], "val": dialogues}, loaded.encoder)
        data.setup("fit")
        module = SFTModule(loaded.model, OptimizerConfig(), SchedulerConfig(), 0.0, seed=1)
        module.on_validation_epoch_start()
        with torch.no_grad():
            for number, row in enumerate(data.steps.validation()):
                module.validation_step(row, number)
        sums.append((float(module._loss_sum), module._tokens))
    assert sums[2][1] == sums[0][1] + sums[1][1]
    assert sums[2][0] == pytest.approx(sums[0][0] + sums[1][0], rel=1e-5)
