"""SRA of the evaluation module against brute force from eager attention, prompted strategies, and what is left out."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from esc_lab.config import TemplateConfig
from esc_lab.config.evaluate import EvaluateConfig, GenerationConfig
from esc_lab.config.prompt import PromptConfig
from esc_lab.data.dialogue import Reply
from esc_lab.data.strategies import load_inventory
from esc_lab.evaluation.module import EvaluationModule
from esc_lab.evaluation.prompted_replies import PromptedReplies, PromptedReply
from esc_lab.evaluation.reply_attention import UnmeasurableError, reply_sra, span_columns
from esc_lab.metrics import StrategyRelevantAttention
from esc_lab.metrics.attention import DEFINITIONS, KINDS
from esc_lab.metrics.predictions import Prediction
from esc_lab.models.attention_probe import AttentionProbe
from esc_lab.models.load import load_model
from esc_lab.models.tree_attention import IMPLEMENTATION
from esc_lab.prompts import Message, build_prompt, load_layout
from esc_lab.tokens import encode_labels
from tests.comparison.synthetic import summary
from tests.conftest import CACHE, LAYOUTS, model_config
from tests.training.modules import data_module

INVENTORY = load_inventory("esconv")
PROMPTED = [name for name, layout in LAYOUTS.items() if not layout.chooses_strategy]


def decisions_of(loaded, dialogues, template):
    """Decision groups of dialogues, the prompt settings, and what writes and measures replies."""
    shown = TemplateConfig(template=template, history_labels=template == "cso")
    prompt = PromptConfig(train=shown, eval=shown)
    data = data_module({"test": dialogues}, loaded.encoder, prompt=prompt)
    data.setup("test")
    settings = EvaluateConfig(generation=GenerationConfig(max_new_tokens=6))
    return data.decisions, prompt, PromptedReplies(loaded, INVENTORY, prompt, settings, seed=1)


def shortened(dialogue, decisions):
    """The dialogue up to its decision number `decisions`."""
    last = [*dialogue.decisions()][decisions - 1]
    return dataclasses.replace(dialogue, turns=dialogue.turns[: last + 1])


def evaluated(loaded, dialogues, template, *, classifier=None, temperature=0.0, batch=16, **settings):
    generation = GenerationConfig(max_new_tokens=6, temperature=temperature, batch=batch)
    evaluate = EvaluateConfig(generation=generation, **settings)
    groups, prompt, _ = decisions_of(loaded, dialogues, template)
    module = EvaluationModule(loaded, INVENTORY, prompt, evaluate, seed=1, row_tokens=2048, classifier=classifier)
    with torch.no_grad():
        for group in groups:
            module.test_step(group, 0)
    module.on_test_epoch_end()
    return module


def prediction_of(decision, template, strategy):
    return Prediction(
        dialogue=decision.dialogue.id, tree="", turn=decision.turn, problem="", emotion="", gold=[], gold_reply="",
        prompted=strategy, template=template,
    )  # fmt: skip


def eager_attention(model, ids):
    """[layers, heads, T, T] of the model's own eager attention."""
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            found = model(input_ids=torch.tensor([ids]), use_cache=False, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(IMPLEMENTATION)
    return torch.stack([layer[0] for layer in found]).double()


def tokens_of(encoder, prompt, text, where):
    """Tokens of the rendered prompt that overlap `text` where it stands in the system message, found by offsets."""
    chat = [{"role": message.role, "content": message.content} for message in prompt.messages]
    rendered = encoder.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    start = rendered.index(where) + where.index(text)
    offsets = encoder.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [n for n, (first, last) in enumerate(offsets) if last > start and first < start + len(text)]


def brute_force(attention, rows, span, definition):
    """SRA of a reply step by step from full attention, as the paper, its published code and its table define it."""
    values = []
    for row in rows[:1] if definition == "first_token" else rows:
        layers = []
        for layer in attention:
            mean = layer[:, row].mean(dim=0).clone()
            if definition != "paper":
                mean[0] = 0
                mean = mean / mean.sum()
            layers.append(mean)
        values.append(torch.stack(layers).mean(dim=0)[span].mean())
    return float(torch.stack(values).mean())


def check_generated_reply(loaded, dialogue, template):
    """A reply of the last decision, with all definitions and spans, against brute force."""
    groups, _, replies = decisions_of(loaded, [dialogue], template)
    decision = groups[0][-1]
    strategy = dialogue.turns[decision.turn].reply.strategies[0]
    reply = PromptedReply(decision, prediction_of(decision, template, strategy))
    replies.write([reply])
    prompt = build_prompt(load_layout(template), INVENTORY, dialogue, decision.turn, strategy, history_labels=False)
    prompt = loaded.encoder.adapt(prompt)
    sentence = f'"{strategy}" strategy: {INVENTORY.definition(strategy)}'
    texts = {
        "name": strategy,
        "quoted": f'"{strategy}"',
        "quoted_strategy": f'"{strategy}" strategy',
        "instruction": sentence,
    }
    neutral = reply.prediction.neutral["phrase"]
    ids = [*reply.prompt_ids.tolist(), *reply.reply_ids]
    attention = eager_attention(loaded.model, ids)
    rows = range(len(reply.prompt_ids) - 1, len(ids) - 1)
    assert reply.sra.keys() == {f"{definition}/{kind}" for definition in DEFINITIONS for kind in KINDS}
    for definition in DEFINITIONS:
        for kind in KINDS:
            span = tokens_of(loaded.encoder, prompt, texts[kind], sentence)
            found = reply.sra[f"{definition}/{kind}"]
            assert found.sra == pytest.approx(brute_force(attention, rows, span, definition), rel=1e-4, abs=1e-7)
            assert found.heads.mean() == pytest.approx(found.sra, rel=1e-5)
            phrase = neutral if kind == "name" else f'"{neutral}"'
            start = tokens_of(loaded.encoder, prompt, phrase, f'in the "{neutral}" style')[0]
            sham = list(range(start, start + len(span)))
            if kind != "instruction":  # the neutral text may be shorter than a strategy's definition
                expected = brute_force(attention, rows, sham, definition)
                assert found.control == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("template", PROMPTED)
def test_generated_replies_equal_brute_force(tiny_models, family, sample_dialogues, template):
    check_generated_reply(tiny_models(family), shortened(sample_dialogues[3], 4), template)


def test_smollm2_equals_brute_force(sample_dialogues):
    loaded = load_model(dataclasses.replace(model_config("smollm2_135m"), dtype="float32"), CACHE)
    for template in ("standard", "c5_hf"):  # the strategy before the history, and after it
        check_generated_reply(loaded, shortened(sample_dialogues[3], 4), template)


def test_gold_replies_equal_brute_force(tiny_models, sample_dialogues):
    """Several strategies under one history and several turns, in one packed tree."""
    loaded, dialogue = tiny_models("gemma2"), shortened(sample_dialogues[4], 3)
    module = evaluated(loaded, [dialogue], "c1_hf", replies="gold", prompted="all")
    assert len(module.measured) == len(INVENTORY) * len([*dialogue.decisions()])
    for reply in module.measured[::7]:
        prediction = reply.prediction
        gold = dialogue.turns[prediction.turn].reply.text
        assert loaded.encoder.decode(reply.reply_ids) == gold
        ids = [*reply.prompt_ids.tolist(), *reply.reply_ids]
        attention = eager_attention(loaded.model, ids)
        rows = range(len(reply.prompt_ids) - 1, len(ids) - 1)
        prompt = build_prompt(
            load_layout("c1_hf"), INVENTORY, dialogue, prediction.turn, prediction.prompted, history_labels=False
        )
        sentence = f'"{prediction.prompted}" strategy: '
        span = tokens_of(loaded.encoder, loaded.encoder.adapt(prompt), prediction.prompted, sentence)
        for definition in DEFINITIONS:
            expected = brute_force(attention, rows, span, definition)
            assert reply.sra[f"{definition}/name"].sra == pytest.approx(expected, rel=1e-4)


def test_listed_strategies_compare_the_named_one_with_the_others(tiny_models, sample_dialogues):
    loaded, dialogue = tiny_models("llama"), sample_dialogues[5]
    module = evaluated(loaded, [dialogue], "cso", replies="gold")
    reply = module.measured[2]
    turn = reply.prediction.turn
    prompt = build_prompt(load_layout("cso"), INVENTORY, dialogue, turn, history_labels=True)
    named = dialogue.turns[turn].reply.strategies[0]
    label = encode_labels(loaded.encoder, INVENTORY, prompt)[INVENTORY.index(named)]
    assert [*reply.reply_ids[: len(label)]] == label.tolist()  # attention is measured on the text, not on the label
    ids = [*reply.prompt_ids.tolist(), *reply.reply_ids]
    attention = eager_attention(loaded.model, ids)
    rows = range(len(reply.prompt_ids) - 1 + len(label), len(ids) - 1)
    by_name = {
        name: brute_force(attention, rows, tokens_of(loaded.encoder, prompt, name, f"- {name}:"), "paper")
        for name in INVENTORY.names
    }
    found = reply.sra["paper/name"]
    others = [math.log(value) for name, value in by_name.items() if name != named]
    assert found.sra == pytest.approx(by_name[named], rel=1e-4)
    assert math.log(found.sra / found.control) == pytest.approx(math.log(by_name[named]) - np.mean(others), abs=1e-4)
    assert reply.sra.keys() == {f"{d}/{k}" for d in DEFINITIONS for k in ("name", "instruction")}


def test_uniform_attention_in_closed_form(tiny_models, sample_dialogues):
    loaded = tiny_models("llama")
    model = copy.deepcopy(loaded.model)
    for name, parameter in model.named_parameters():
        if "q_proj" in name:
            parameter.data.zero_()
    module = evaluated(
        dataclasses.replace(loaded, model=model), [shortened(sample_dialogues[0], 3)], "c3_hl", replies="gold"
    )
    for reply in module.measured:
        visible = len(reply.prompt_ids) + np.arange(len(reply.reply_ids))
        for kind in KINDS:
            paper, reference, first = (reply.sra[f"{definition}/{kind}"] for definition in DEFINITIONS)
            assert paper.sra == pytest.approx((1 / visible).mean(), rel=1e-5)
            assert reference.sra == pytest.approx((1 / (visible - 1)).mean(), rel=1e-5)
            assert first.sra == pytest.approx(1 / (visible[0] - 1), rel=1e-5)
            for one in (paper, reference, first):
                assert one.control == pytest.approx(one.sra, rel=1e-5)
                assert one.relative == pytest.approx(1, rel=1e-5)


def test_prompted_strategies(tiny_models, sample_dialogues):
    dialogue = shortened(sample_dialogues[6], 4)
    loaded, turns = tiny_models("qwen2"), [*dialogue.decisions()]

    def prompted(**settings):
        module = evaluated(loaded, [dialogue], "c1_hf", replies="gold", **settings)
        by_turn = {turn: [p.prompted for p in module.predictions if p.turn == turn] for turn in turns}
        for turn, names in by_turn.items():
            gold = dialogue.turns[turn].reply.strategies[0]
            assert len(set(names)) == len(names)
            scored = [p.tokens > 0 for p in module.predictions if p.turn == turn]
            assert scored == [name == gold for name in names]  # likelihood of the gold reply under its own prompt only
        return by_turn

    assert all(names == [dialogue.turns[turn].reply.strategies[0]] for turn, names in prompted().items())
    assert all(set(names) == set(INVENTORY.names) for names in prompted(prompted="all").values())
    few = prompted(prompted="random", prompted_share=0.3)
    assert few == prompted(prompted="random", prompted_share=0.3)
    assert 1 < sum(map(len, few.values())) / len(turns) < 5
    assert all(len(names) == 1 for names in prompted(prompted="random", prompted_share=0.0).values())


def test_replies_do_not_depend_on_the_strategies_beside_them(tiny_models, sample_dialogues):
    dialogue, loaded = shortened(sample_dialogues[7], 3), tiny_models("gemma3")
    settings = {"temperature": 1.0, "batch": 8}
    alone = evaluated(loaded, [dialogue], "c1_hf", **settings)
    together = evaluated(loaded, [dialogue], "c1_hf", prompted="all", **settings)
    every = {(p.turn, p.prompted): p for p in together.predictions}
    for one in alone.predictions:
        other = every[one.turn, one.prompted]
        assert other.raw == one.raw
        assert other.sra["paper/name"] == pytest.approx(one.sra["paper/name"], rel=1e-4)


def test_what_cannot_be_measured_is_counted(tiny_models, sample_dialogues, tmp_path):
    loaded, dialogue = tiny_models("llama"), shortened(sample_dialogues[0], 4)
    # A model of random weights names no strategy.
    module = evaluated(loaded, [dialogue], "cso")
    metrics, _ = summary(module.predictions, tmp_path)
    attention = {name: value for name, value in metrics.items() if name.startswith("sra/")}
    assert attention == {"sra/skipped_no_strategy_named": len(module.predictions)}
    cut = [len(reply.reply_ids) == 6 for reply in module.replied]
    assert [reply.prediction.cut_off for reply in module.replied] == cut
    assert metrics["generation/cut_off"] == sum(cut) / len(cut) > 0
    lengths = sorted(decision.start for decision in decisions_of(loaded, [dialogue], "standard")[0][0])
    short = dataclasses.replace(loaded, context_tokens=lengths[1] + 6)  # a prompt and 6 new tokens
    module = evaluated(short, [dialogue], "standard")
    long = [p for p in module.predictions if p.unmeasured]
    assert {p.unmeasured for p in long} == {"prompt too long"}
    assert len(long) == 2
    assert all(p.reply is None and p.sra is None and p.cut_off is None for p in long)
    assert len(long) + len(module.measured) == len(module.predictions)
    assert summary(module.predictions, tmp_path)[0]["sra/skipped_prompt_too_long"] == len(long)
    stop = dataclasses.replace(loaded, model=copy.deepcopy(loaded.model))
    stop.model.get_output_embeddings().weight.data.zero_()  # every token is as likely: greedy takes the first
    stop.encoder.end_of_turn, usual = 0, stop.encoder.end_of_turn
    try:
        module = evaluated(stop, [dialogue], "standard")
    finally:
        stop.encoder.end_of_turn = usual
    assert {p.unmeasured for p in module.predictions} == {"empty reply"}
    assert {p.cut_off for p in module.predictions} == {False}


def test_spans_without_tokens_are_refused(tiny_models, sample_dialogues):
    loaded = tiny_models("llama")
    prompt = build_prompt(load_layout("c1_hf"), INVENTORY, sample_dialogues[0], 3, "Question", history_labels=False)
    chat = loaded.encoder.encode_prompt(prompt)
    columns = span_columns(chat.spans)
    assert list(columns) == [(kind, name) for name in ("Question", None) for kind in KINDS]
    columns["name", "Question"] = columns["name", "Question"][:0]
    probe = AttentionProbe([[*columns.values()]])
    ids = torch.from_numpy(chat.input_ids)[None]
    probe.watch(torch.ones(1, ids.shape[1], dtype=torch.bool), [0], [ids.shape[1] - 1])
    with torch.no_grad():
        loaded.model(input_ids=ids, use_cache=False, probe=probe)
    with pytest.raises(UnmeasurableError, match="span without tokens"):
        reply_sra(probe.result(), list(columns), "Question")


def test_adherence_is_judged_by_the_classifier_alone(tiny_models, sample_dialogues, tmp_path):
    """The judge sees each reply's text and nothing else; predictions say what it found."""

    class FirstLetter:
        """Finds the strategy whose number is that of the text's first letter, and none in a text of one word."""

        def predict(self, texts, *, row_tokens):
            found = torch.zeros(len(texts), len(INVENTORY))
            for row, text in enumerate(texts):
                if " " in text:
                    found[row, ord(text[0]) % len(INVENTORY)] = 1
            return found

    dialogue = shortened(sample_dialogues[2], 3)
    module = evaluated(
        tiny_models("llama"), [dialogue], "standard", replies="gold", prompted="all", classifier=FirstLetter()
    )
    for prediction in module.predictions:
        judged = INVENTORY.names[ord(prediction.gold_reply[0]) % len(INVENTORY)]
        assert prediction.judged == judged
        assert prediction.adheres == (judged == prediction.prompted)
    metrics, _ = summary(module.predictions, tmp_path)
    assert metrics["adherence/accuracy"] == pytest.approx(1 / len(INVENTORY))
    assert not any("classifier" in name for name, _ in module.named_parameters())


def test_metric_groups(tiny_models, sample_dialogues):
    module = evaluated(tiny_models("llama"), [shortened(d, 3) for d in sample_dialogues[:2]], "c5_hl", replies="gold")
    shape = module.measured[0].sra["reference/quoted"].heads.shape
    metric = StrategyRelevantAttention(INVENTORY.names, definition="reference", span="quoted", heads=shape)
    predictions = [reply.prediction for reply in module.measured]
    metric.update(
        [reply.sra for reply in module.measured], [p.followed for p in predictions], [p.turn for p in predictions]
    )
    values = np.array([[r.sra["reference/quoted"].sra, r.sra["reference/quoted"].control] for r in module.measured])
    found = metric.compute()
    assert float(found["log_sra"]) == pytest.approx(np.log(values[:, 0]).mean())
    assert float(found["sham_net"]) == pytest.approx(np.log(values[:, 0] / values[:, 1]).mean())
    assert float(metric.heads.mean()) == pytest.approx(values[:, 0].mean())
    for group, key in (("strategy", "prompted"), ("depth", "turn")):
        labels = [getattr(reply.prediction, key) for reply in module.measured]
        by = metric.by(group)
        assert by.keys() == set(labels)
        for label, means in by.items():
            own = values[[one == label for one in labels], 0]
            assert float(means["sra"]) == pytest.approx(own.mean())
            assert float(means["n"]) == len(own)


def test_a_dialogue_that_names_its_strategy_twice(tiny_models, sample_dialogues):
    """The span is the one in the instruction, wherever else the words stand."""
    loaded, dialogue = tiny_models("qwen2"), sample_dialogues[8]
    turn = [*dialogue.decisions()][1]
    strategy = dialogue.turns[turn].reply.strategies[0]
    turns = list(dialogue.turns)
    seeker = turns[turn - 1]
    turns[turn - 1] = dataclasses.replace(seeker, reply=Reply(f'{seeker.reply.text} "{strategy}"?'))
    other = dataclasses.replace(dialogue, turns=tuple(turns))
    for template in ("standard", "c1_hl"):
        prompt = build_prompt(load_layout(template), INVENTORY, other, turn, strategy, history_labels=False)
        chat = loaded.encoder.encode((*prompt.messages, Message("assistant", "x")), prompt.spans)
        span = span_columns(chat.spans)["name", strategy]
        assert loaded.encoder.tokenizer.decode(chat.input_ids[span]).strip(' "') == strategy
        assert span[-1] < chat.turn_starts[1]
