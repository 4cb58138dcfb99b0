"""Objectives of siblings and of tokens in training: what is compared, in which steps, beside which old policy."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from statistics import fmean, stdev

import numpy as np
import pytest
import torch

from esc_lab.config.training import ObjectiveConfig, OptimizerConfig, SchedulerConfig
from esc_lab.data.dialogue import Reply
from esc_lab.errors import UserError
from esc_lab.training.cso import CSOModule, gather_rows
from tests.training.modules import one_step_trainer
from tests.training.test_cso import ATOL, RATE, Frozen, perturbed, preference_data


def with_values(dialogue, *values):
    """The first turn with a rejected reply has siblings of these values (None: not judged); all others have none."""
    number = next(n for n, turn in enumerate(dialogue.turns) if turn.rejected)
    siblings = [
        Reply(f"Reply {n}." + " I see." * n, (name,), value)
        for n, (value, name) in enumerate(zip(values[1:], ("Others", "Question", "Self-disclosure"), strict=False))
    ]
    turns = [replace(turn, rejected=()) for turn in dialogue.turns]
    turn = turns[number]
    turns[number] = replace(turn, reply=replace(turn.reply, value=values[0]), rejected=tuple(siblings))
    return replace(dialogue, turns=tuple(turns[: number + 1]))


def token_log_probs(model, sequence):
    """Log-probabilities of a reply's tokens by the model's own forward pass."""
    ids, start = torch.from_numpy(sequence.input_ids), sequence.replies[0].start
    steps = torch.log_softmax(model(input_ids=ids[None]).logits[0].double(), dim=-1)
    return steps[start - 1 : -1].gather(1, ids[start:, None])[:, 0]


def train(policy, reference, data, tmp_path, objective, *, steps=1, rate=RATE):
    for split in data.steps.preferences.values():
        split.reference = None
    losses = []

    class Watched(CSOModule):
        def on_train_batch_end(self, *_):
            losses.append(float(self.trainer.callback_metrics["train/loss"]))

    optimizer, schedule = OptimizerConfig(name="sgd", lr=rate), SchedulerConfig("constant", warmup=0)
    module = Watched(policy, objective, optimizer, schedule, 0.0, 1, Frozen(reference))
    one_step_trainer(tmp_path, max_steps=steps, max_epochs=-1).fit(module, datamodule=data)
    return losses


VALUES = ((0.5, -1.0, 0.9, None), (0.25, 0.25, -0.5))


@pytest.fixture
def valued(tiny_models, sample_dialogues):
    """Model and dialogues of two groups of siblings, of three and three; one reply has no value."""
    pairs = zip(sample_dialogues[:2], VALUES, strict=True)
    return tiny_models("llama"), [with_values(dialogue, *values) for dialogue, values in pairs]


@pytest.mark.parametrize("row_tokens", [1100, 4096])
def test_listwise_step_is_the_mean_over_groups(valued, tmp_path, row_tokens):
    loaded, dialogues = valued
    initial = copy.deepcopy(loaded.model).double()
    policy = perturbed(initial)
    data = preference_data(loaded.encoder, dialogues, objective={"name": "listwise"}, row_tokens=row_tokens)
    brute, losses = copy.deepcopy(policy), []
    for turn in data.steps.preferences["train"].turns:
        rewards = []
        for sequence, value in zip(turn.replies, turn.values, strict=True):
            with torch.no_grad():
                expected = token_log_probs(initial, sequence).sum()
            if not math.isnan(value):
                rewards.append((0.1 * (token_log_probs(brute, sequence).sum() - expected), value))
        terms = [
            torch.stack([own, *(other for other, low in rewards if low < value)]).logsumexp(0) - own
            for own, value in rewards
        ]
        losses.append(torch.stack(terms).sum())
    assert len(losses) == 2
    torch.stack(losses).mean().backward()
    (found,) = train(policy, initial, data, tmp_path, ObjectiveConfig(name="listwise", beta=0.1))
    assert found == pytest.approx(float(torch.stack(losses).mean().detach()), abs=ATOL)
    after = dict(policy.named_parameters())
    for name, parameter in brute.named_parameters():
        got = (parameter - after[name]).detach() / RATE
        np.testing.assert_allclose(got, parameter.grad, atol=ATOL, err_msg=name)


def plain_grpo(split, policy, old, reference, clip_range, kl_weight):
    """The mean loss of a step's groups; the log-probabilities are of the replies in the order of their numbers."""
    losses = []
    for number, turn in enumerate(split.turns):
        valued = [reply for reply, value in enumerate(turn.values) if not math.isnan(value)]
        values = [turn.values[reply] for reply in valued]
        terms = []
        for reply, value in zip(valued, values, strict=True):
            gain = (value - fmean(values)) / (stdev(values) + 1e-4)
            own, before, frozen = (model[split.number(number, reply)] for model in (policy, old, reference))
            ratio, distance = (own - before).exp(), frozen - own
            kept = torch.minimum(ratio * gain, ratio.clamp(1 - clip_range, 1 + clip_range) * gain)
            terms.append((kl_weight * (distance.exp() - distance - 1) - kept).mean())
        losses.append(torch.stack(terms).mean())
    return torch.stack(losses).mean()


def test_grpo_keeps_the_old_policy_over_the_iterations_of_a_step(valued, tmp_path):
    loaded, dialogues = valued
    initial = copy.deepcopy(loaded.model).double()
    policy = perturbed(initial)
    options = {"clip_range": 0.001, "kl_weight": 0.1}
    objective = ObjectiveConfig(name="grpo", iterations=3, **options)
    data = preference_data(loaded.encoder, dialogues, objective=vars(objective), row_tokens=1100)
    split = data.steps.preferences["train"]
    plan = data.steps.plan_epoch(0)
    assert len(plan) == 3
    assert plan[0] == plan[1] == plan[2]

    def score(model):
        return [token_log_probs(model, sequence) for sequence in split.sequences]

    with torch.no_grad():
        reference = score(initial)
    brute, old, expected = copy.deepcopy(policy), None, []
    for step in range(5):
        log_probs = score(brute)
        if step % 3 == 0:
            old = [values.detach() for values in log_probs]
        loss = plain_grpo(split, log_probs, old, reference, **options)
        expected.append(float(loss.detach()))
        brute.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in brute.parameters():
                parameter -= 0.002 * parameter.grad
    found = train(policy, initial, data, tmp_path, objective, steps=5, rate=0.002)
    assert found == pytest.approx(expected, abs=ATOL)
    for (name, parameter), other in zip(policy.named_parameters(), brute.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, atol=ATOL, rtol=0, msg=name)


def test_validation_of_grpo_takes_the_reference_for_the_old_policy(valued, tmp_path):
    loaded, dialogues = valued
    policy = perturbed(loaded.model)
    objective = ObjectiveConfig(name="grpo")
    data = preference_data(loaded.encoder, dialogues, objective=vars(objective), validation=dialogues)
    split = data.steps.preferences["val"]
    with torch.no_grad():
        own, reference = ([token_log_probs(model, s) for s in split.sequences] for model in (policy, loaded.model))
    module = CSOModule(policy, objective, OptimizerConfig(), SchedulerConfig(), 0.0, 1, Frozen(loaded.model))
    (found,) = one_step_trainer(tmp_path, limit_val_batches=1.0).validate(module, datamodule=data, verbose=False)
    expected = plain_grpo(split, own, reference, reference, objective.clip_range, objective.kl_weight)
    assert found["val/loss"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("name", ["dpop", "ld_dpo"])
def test_pair_objectives_get_the_right_log_probs(tiny_models, sample_dialogues, tmp_path, name):
    loaded = tiny_models("llama")
    policy = perturbed(loaded.model)
    objective = ObjectiveConfig(name=name, beta=0.2, lambda_=5.0, excess_weight=0.3)
    data = preference_data(loaded.encoder, sample_dialogues[:1], objective=vars(objective))
    split, expected = data.steps.preferences["train"], []
    with torch.no_grad():
        for turn, *sides in split.comparisons.tolist():
            replies = [split.turns[turn].replies[side] for side in sides]
            ratios = [token_log_probs(policy, s) - token_log_probs(loaded.model, s) for s in replies]
            if name == "ld_dpo":
                shared = min(map(len, ratios))
                chosen, rejected = (ratio[:shared].sum() + 0.3 * ratio[shared:].sum() for ratio in ratios)
            else:
                chosen, rejected = ratios[0].sum(), ratios[1].sum()
                rejected = rejected + 5.0 * max(0.0, float(-chosen))
            expected.append(math.log1p(math.exp(-0.2 * float(chosen - rejected))))
    (found,) = train(policy, loaded.model, data, tmp_path, objective)
    assert found == pytest.approx(fmean(expected), rel=1e-4)


def test_siblings_are_those_of_all_dialogues_of_a_tree(tiny_models, sample_dialogues):
    """Two preferred replies to one history stand in two dialogues; a turn without a rejected one has siblings then."""
    loaded, dialogue = tiny_models("llama"), with_values(sample_dialogues[0], 0.5, 0.0)
    last = dialogue.turns[-1]
    other = replace(dialogue, turns=(*dialogue.turns[:-1], replace(last, reply=Reply("Go on.", ("Others",), 0.75))))
    bare = [replace(one, turns=(*one.turns[:-1], replace(one.turns[-1], rejected=()))) for one in (dialogue, other)]
    for dialogues, size in (([dialogue, other], 3), (bare, 2)):
        data = preference_data(loaded.encoder, dialogues, objective={"name": "listwise"}).steps
        (turn,) = data.preferences["train"].turns
        assert sorted((turn.values[n] for n in turn.siblings), reverse=True) == [turn.values[n] for n in turn.siblings]
        assert len(turn.siblings) == size
        (row,) = data.step_batch([0]).rows
        assert row.values[0].tolist()[:2] == [0.75, 0.0 if size == 3 else 0.5]
        assert data.counts["train"].groups == 1


def test_turns_without_different_values_are_left_out_and_told(tiny_models, sample_dialogues, caplog):
    loaded = tiny_models("llama")
    good, flat, unjudged, lone = (
        with_values(dialogue, *values)
        for dialogue, values in zip(
            sample_dialogues[:4], ((0.5, 0.0), (0.5, 0.5), (None, None), (None, 0.5)), strict=True
        )
    )
    with caplog.at_level("WARNING"):
        data = preference_data(loaded.encoder, [good, flat, unjudged, lone], objective={"name": "grpo"}).steps
    assert (data.counts["train"].groups, data.counts["train"].flat_turns) == (1, 3)
    assert "3 turns without replies of different search values" in caplog.text
    assert len(data.preferences["train"].turns) == len(data.preferences["train"].comparisons) == 1
    for name in ("listwise", "grpo"):
        message = rf"objective={name}: none of 3 turns .*different search values. Fix: .*esc_pro/train.jsonl"
        with pytest.raises(UserError, match=message):
            preference_data(loaded.encoder, [flat, unjudged, lone], objective={"name": name})


def test_steps_of_groups_hold_as_many_replies_as_steps_of_pairs(tiny_models, sample_dialogues):
    """Each group here has its best and two others, so that half as many groups make a step."""
    loaded = tiny_models("llama")
    dialogues = [with_values(dialogue, 0.5, 0.0, -0.5) for dialogue in sample_dialogues[:8]]
    pairs = preference_data(loaded.encoder, dialogues, step_pairs=4).steps.plan_epoch(0)
    objective = {"name": "grpo", "iterations": 2}
    groups = preference_data(loaded.encoder, dialogues, step_pairs=4, objective=objective).steps
    plan = groups.plan_epoch(0)
    assert len(pairs) == 4
    assert [len(step) for step in plan] == [2] * 8
    assert plan[::2] == plan[1::2]
    assert sorted(number for step in plan[::2] for number in step) == list(range(8))
    assert plan == groups.plan_epoch(0) != groups.plan_epoch(1)
    batch = groups.step_batch(plan[0])
    assert (batch.comparisons, batch.chosen, batch.rejected) == (2, 2, 2)
    assert sum(len(keys) for row in batch.rows for keys in row.row.keys) == 6


def test_rows_of_one_process_are_its_own():
    rows = {0: torch.zeros(2), 3: torch.ones(1)}
    assert gather_rows(rows) == rows
