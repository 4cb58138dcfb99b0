"""The data module: splits from files, the plan of an epoch, steps over several processes, decisions."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from esc_lab.config import PromptConfig, TemplateConfig
from esc_lab.config.evaluate import EvaluateConfig, GenerationConfig
from esc_lab.data.dialogue import Dialogue, Reply, Turn, merge_turns
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.models.load import load_encoder
from esc_lab.prompts import Message, build_prompt, load_layout, reply_content
from esc_lab.tokens.examples import ReplyKey, build_examples
from tests.conftest import CACHE, model_config
from tests.training.modules import data_module

ESCONV = load_inventory("esconv")
CSO = TemplateConfig()


@pytest.fixture(scope="session")
def encoders():
    made = {}

    def get(family):
        if family not in made:
            made[family] = load_encoder(model_config(f"tiny_{family}"), CACHE)
        return made[family]

    return get


@pytest.fixture(scope="session")
def dialogues(sample_dialogues):
    return [merge_turns(dialogue, "set") for dialogue in sample_dialogues]


@pytest.fixture(scope="session")
def module(encoders, dialogues):
    """`module(train dialogues, **settings)` -> a data module that is ready to train."""

    def make(train, family="llama", **settings):
        settings = {"row_tokens": 1500, "step_dialogues": 4, **settings}
        data = data_module({"train": train, "val": dialogues[-2:]}, encoders(family), **settings)
        data.setup("fit")
        return data

    return make


def decisions_of(dialogue):
    """Turns that are trained: the supporter's, labelled, after the seeker has spoken."""
    first = [turn.speaker for turn in dialogue.turns].index("seeker")
    return [n for n, t in enumerate(dialogue.turns) if n > first and t.speaker == "supporter" and t.reply.strategies]


# --- plan of an epoch ---


def test_an_epoch_takes_every_dialogue_once_in_steps_of_equal_size(module, dialogues):
    for count, step, steps in ((11, 4, 3), (12, 4, 3), (3, 8, 1), (5, 1, 5)):
        data = module(dialogues[:count], step_dialogues=step)
        assert len(data.steps.plan_epoch(0)) == steps
        for epoch in range(3):
            plan = data.steps.plan_epoch(epoch)
            assert sorted(number for numbers in plan for number in numbers) == list(range(count))
            sizes = [len(numbers) for numbers in plan]
            assert len(sizes) == steps
            assert max(sizes) <= step
            assert max(sizes) - min(sizes) <= 1


def test_the_plan_depends_on_seed_and_epoch_alone(module, dialogues):
    data = module(dialogues[:11])
    plans = [data.steps.plan_epoch(epoch) for epoch in range(4)]
    other = module(dialogues[:11], row_tokens=3000, strategy_weights={"Question": 2.0})
    np.random.seed(7)
    data.steps.step_batch(plans[0][0])
    assert [other.steps.plan_epoch(epoch) for epoch in (3, 2, 1, 0)] == plans[::-1]
    seeds = [module(dialogues[:11], seed=seed).steps.plan_epoch(0) for seed in (1, 2, 3)]
    distinct = {str(plan) for plan in (*plans, *seeds)}
    assert len(distinct) == 4 + 2  # seed 1, epoch 0 is in both


def test_the_loader_walks_through_the_plan(module, dialogues):
    data = module(dialogues[:9])
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(loader) == len(batches) == 3
    for batch, numbers in zip(batches, data.steps.plan_epoch(0), strict=True):
        assert batch.dialogues == tuple(dialogues[number].id for number in numbers)
        expected = data.steps.step_batch(numbers)
        assert [row.keys for row in batch.rows] == [row.keys for row in expected.rows]


# --- one step ---


def reply_tokens(encoder, dialogue, turn):
    """Tokens that the reply adds to its prompt, by encoding both."""
    reply = dialogue.turns[turn].reply
    prompt = build_prompt(load_layout("cso"), ESCONV, dialogue, turn, history_labels=True)
    prompt = encoder.adapt(prompt)
    text = reply_content(load_layout("cso"), reply.text, reply.strategies)
    whole = encoder.encode((*prompt.messages, Message("assistant", text)))
    return whole.replies[len(prompt.messages)][1] - len(encoder.encode_prompt(prompt).input_ids)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_step_holds_every_reply_of_its_dialogues_once(module, encoders, dialogues, family):
    weights = {"Question": 3.0, "Others": 0.0}
    data = module(dialogues[:4], family, strategy_weights=weights)
    batch = data.steps.step_batch([2, 0, 3])
    chosen = [dialogues[2], dialogues[0], dialogues[3]]
    assert batch.dialogues == tuple(dialogue.id for dialogue in chosen)
    expected = {ReplyKey(dialogue.id, turn) for dialogue in chosen for turn in decisions_of(dialogue)}
    keys = [key for row in batch.rows for names in row.keys for key in names]
    assert sorted(keys, key=str) == sorted(expected, key=str)
    assert all(len(row) <= 1500 for row in batch.rows)
    assert len(batch.rows) > 1
    by_id = {dialogue.id: dialogue for dialogue in chosen}
    total = 0.0
    for row, found in zip(batch.rows, batch.weights, strict=True):
        assert found.dtype == np.float32
        for number, (key,) in enumerate(row.keys):
            weight = weights.get(by_id[key.dialogue].turns[key.turn].reply.strategies[0], 1.0)
            own = found[row.reply == number]
            assert own.tolist() == [weight] * reply_tokens(encoders(family), by_id[key.dialogue], key.turn)
            total += weight * len(own)
    assert batch.total_weight == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_processes_share_the_rows(module, dialogues, world):
    data = module(dialogues[:3], strategy_weights={"Question": 0.5})
    whole = data.steps.step_batch([0, 1, 2])
    assert 2 <= len(whole.rows) < 7
    parts = [data.steps.step_batch([0, 1, 2], rank, world) for rank in range(world)]
    assert {part.total_weight for part in parts} == {whole.total_weight}
    assert {len(part.rows) for part in parts} == {-(-len(whole.rows) // world)}  # nobody waits for another's pass
    seen = Counter()
    summed = 0.0
    for part in parts:
        assert len(part.rows) == len(part.weights)
        for row, weights in zip(part.rows, part.weights, strict=True):
            assert len(weights) == len(row.reply)
            seen[row.keys] += bool(weights.any())
            summed += float(weights.sum())
    assert seen == {row.keys: 1 for row in whole.rows}
    assert summed == pytest.approx(whole.total_weight, abs=1e-9)
    assert sum(not any(weights.any() for weights in part.weights) for part in parts) == max(world - len(whole.rows), 0)


def test_total_weight_does_not_depend_on_the_row_budget(module, dialogues):
    """Two branches of one search tree share replies; these count once, however the rows are cut."""
    trunk = dialogues[0]
    branch = replace(trunk, turns=(*trunk.turns[:-1], Turn("supporter", Reply("Take care.", ("Others",)))))
    assert trunk.turns[-1].speaker == "supporter"
    batches = [module([trunk, branch], row_tokens=budget).steps.step_batch([0, 1]) for budget in (1200, 1500, 6000)]
    assert len({len(batch.rows) for batch in batches}) > 1
    assert len({batch.total_weight for batch in batches}) == 1
    for batch in batches:
        shared = [names for row in batch.rows for names in row.keys if len(names) == 2]
        assert len(shared) == len(decisions_of(trunk)) - 1


def test_a_step_without_weight_divides_by_one(module, dialogues):
    data = module(dialogues[:1], strategy_weights=dict.fromkeys(ESCONV.names, 0.0))
    assert data.steps.step_batch([0]).total_weight == 1.0


def test_the_dialogues_of_a_step_share_their_system_message(module, dialogues):
    data = module(dialogues[:2], row_tokens=6000)
    (row,) = data.steps.step_batch([0, 1]).rows
    (one,), (other,) = data.steps.step_batch([0]).rows, data.steps.step_batch([1]).rows
    prompt = build_prompt(load_layout("cso"), ESCONV, dialogues[0], 1, history_labels=True)
    system = data.encoder.encode(prompt.messages[:1]).input_ids
    assert len(row) <= len(one) + len(other) - len(system)


# --- what is set up ---


def test_validation_rows_hold_every_reply_once(module, dialogues):
    data = module(dialogues[:1])
    rows = list(data.val_dataloader())
    keys = [key for row in rows for names in row.keys for key in names]
    expected = [ReplyKey(dialogue.id, turn) for dialogue in dialogues[-2:] for turn in decisions_of(dialogue)]
    assert sorted(keys, key=str) == sorted(expected, key=str)
    assert all(len(row) <= 1500 for row in rows)


def test_setting_up_again_encodes_nothing(module, dialogues):
    data = module(dialogues[:2])
    before = replace(data.reports["train"])
    data.setup("fit")
    assert data.reports["train"] == before
    assert before.examples == sum(len(decisions_of(dialogue)) for dialogue in dialogues[:2])
    assert before.truncated_examples == before.dropped_turns == 0


def test_dialogues_without_a_labelled_turn(encoders, module, dialogues):
    bare = Dialogue((Turn("seeker", Reply("Hi.")), Turn("supporter", Reply("Hello."))), "esconv")
    opening = Dialogue((Turn("supporter", Reply("Hello.", ("Others",))), Turn("seeker", Reply("Hi."))), "esconv")
    assert module([bare, dialogues[0], opening]).steps.plan_epoch(0) == [[0]]
    with pytest.raises(UserError, match="the train split has no supporter turn with a strategy"):
        module([bare, opening])
    with pytest.raises(UserError, match="the train split has no supporter turn"):
        module([])
    for split in ([], [bare, opening]):
        data = data_module({"test": split}, encoders("llama"))
        with pytest.raises(UserError, match="the test split has no decision"):
            data.setup("test")
    alone = data_module({"train": dialogues[:1]}, encoders("llama"))
    alone.setup("fit")
    assert list(alone.val_dataloader()) == []


def test_unmerged_replies_are_trained_each(encoders):
    turns = (
        Turn("seeker", Reply("a")),
        Turn("supporter", Reply("b", ("Question",))),
        Turn("supporter", Reply("c")),
        Turn("supporter", Reply("d", ("Others",))),
    )
    dialogue = Dialogue(turns, "esconv")
    data = data_module({"train": [dialogue]}, encoders("gemma2"))
    data.setup("fit")
    (row,) = data.steps.step_batch([0]).rows
    assert sorted(key.turn for (key,) in row.keys) == [1, 3]


def test_an_example_above_the_budget_is_named(module, dialogues):
    with pytest.raises(UserError, match=r"sample\.jsonl:1, turn 2: .*above the budget of 100.*data.row_tokens"):
        module(dialogues[:1], row_tokens=100)


def test_examples_follow_the_prompt_settings(module, dialogues):
    data = module(dialogues[:1])
    dialogue = dialogues[0]
    settings = TemplateConfig(template="c3_hl", history_labels=False, situation=True)
    for example in build_examples(dialogue, data.inventory, settings, load_layout("c3_hl"), inference="cot"):
        turn = example.key.turn
        reply = dialogue.turns[turn].reply
        options = {"history_labels": False, "situation": True, "inference": "cot"}
        arguments = (load_layout("c3_hl"), ESCONV, dialogue, turn, reply.strategies[0])
        assert example.prompt == build_prompt(*arguments, **options)
        assert example.reply == reply.text
        assert example.key.dialogue == dialogue.id
        for start in example.starts:
            assert dialogue.turns[start].speaker == "seeker"
            assert dialogue.turns[start - 1].speaker == "supporter"
            assert example.shortened(start=start) == build_prompt(*arguments, **options, start=start)
    cso = [example.reply for example in build_examples(dialogue, data.inventory, CSO, load_layout("cso"))]
    replies = [dialogue.turns[turn].reply for turn in decisions_of(dialogue)]
    assert cso == [f"({reply.strategies[0]}) {reply.text}" for reply in replies]


# --- decisions ---


@pytest.mark.parametrize("template", ["cso", "standard", "c1_hf"])
@pytest.mark.parametrize(("family", "budget"), [("llama", 4000), ("llama", 900), ("gemma2", 900)])
def test_decisions_carry_their_prompts(encoders, dialogues, template, family, budget):
    """The prompt of a decision is what its sequence holds, also where the history was cut."""
    encoder = encoders(family)
    prompt = PromptConfig(eval=TemplateConfig(template=template))
    evaluate = EvaluateConfig(split="val", generation=GenerationConfig(batch=8))
    data = data_module({"val": dialogues[3:7]}, encoder, prompt=prompt, evaluate=evaluate, row_tokens=budget)
    data.setup("test")
    groups = list(data.test_dataloader())
    found = [decision for group in groups for decision in group]
    expected = [(dialogue.id, turn) for dialogue in dialogues[3:7] for turn in decisions_of(dialogue)]
    assert [(decision.dialogue.id, decision.turn) for decision in found] == expected
    assert all(len(group) >= 8 for group in groups[:-1])
    assert len(groups) > 1
    for decision in found:
        ids = decision.sequence.input_ids
        prompt = encoder.encode_prompt(encoder.adapt(decision.example.prompt)).input_ids
        np.testing.assert_array_equal(ids[: decision.start], prompt)
        reply = decision.dialogue.turns[decision.turn].reply
        assert encoder.decode(ids[decision.start : decision.end]) == decision.example.reply
        assert decision.example.reply == reply_content(load_layout(template), reply.text, reply.strategies)
        assert ids[decision.end - 1] == encoder.end_of_turn
    cut = {reply.key for d in found for reply in d.sequence.replies if reply.first_turn}
    assert data.reports["val"].truncated_examples == len(cut)
    assert bool(cut) == (budget == 900)


def test_openings_are_decisions_on_demand(encoders, dialogues):
    dialogue = next(dialogue for dialogue in dialogues if dialogue.turns[0].speaker == "supporter")
    for score_opening in (False, True):
        data = data_module(
            {"test": [dialogue]}, encoders("llama"), evaluate=EvaluateConfig(score_opening=score_opening)
        )
        data.setup("test")
        turns = [decision.turn for group in data.decisions for decision in group]
        assert turns == [0] * score_opening + decisions_of(dialogue)
