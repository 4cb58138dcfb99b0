"""Training of a reward model: the loss of pairs with ties, and steps whose gradient does not depend on the packing."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch

from esc_lab.config.reward import RewardConfig
from esc_lab.config.training import OptimizerConfig, SchedulerConfig
from esc_lab.data.dialogue import Reply, merge_turns
from esc_lab.scorers.comparisons import ComparisonPool
from esc_lab.scorers.reward_training import RewardModule, RewardSteps, pair_loss
from tests.scorers.test_comparisons import talk
from tests.scorers.test_reward_model import build_reward

KINDS = {"same_dialogue": 1.0, "other_dialogue": 1.0, "rejected": 1.0}


@pytest.mark.parametrize("ties", [None, 0.2, 1.7])
def test_pair_loss_is_davidsons_likelihood(ties):
    """Against the probabilities with strengths exp(score), in float64."""
    chance = np.random.default_rng(0)
    scores = chance.normal(0, 3, (2, 50))
    tie = (chance.random(50) < 0.3) & (ties is not None)
    first, second = np.exp(scores)
    between = (ties or 0) * np.sqrt(first * second)
    probability = np.where(tie, between, first) / (first + second + between)
    log_ties = None if ties is None else torch.tensor(np.log(ties))
    found = pair_loss(torch.from_numpy(scores[0] - scores[1]), torch.from_numpy(tie), log_ties)
    np.testing.assert_allclose(found.numpy(), -np.log(probability), rtol=1e-9)


def test_pair_loss_of_far_scores_is_finite():
    difference = torch.tensor([200.0, -200.0], requires_grad=True)
    for log_ties in (None, torch.tensor(0.0)):
        losses = pair_loss(difference, torch.tensor([False, False]), log_ties)
        assert losses.tolist() == pytest.approx([0, 200], abs=1e-4)
        losses.sum().backward()
    assert difference.grad is not None
    assert difference.grad.isfinite().all()


def build_steps(dialogues, row_tokens: int = 2048, **settings) -> tuple[RewardSteps, RewardModule]:
    chosen = RewardConfig(**{"kinds": KINDS, "reply_tokens": 64, "foils": 2, **settings})
    reward = build_reward(row_tokens=row_tokens, foils=2, likelihood=chosen.likelihood)
    steps = RewardSteps({"train": ComparisonPool(dialogues, chosen)}, reward, chosen, 1)
    return steps, RewardModule(reward, chosen, OptimizerConfig(), SchedulerConfig(), 1.0, 1)


@pytest.mark.parametrize("likelihood", [False, True])
def test_the_loss_is_the_mean_over_comparisons_whatever_the_packing(sample_dialogues, likelihood):
    """And the gradient; each comparison is in one row, with equal weights over turns and dialogues."""
    dialogues = [merge_turns(dialogue, "set") for dialogue in sample_dialogues[:3]]
    found = []
    for row_tokens in (4096, 1100):
        # Histories are the same in both: none is as long as either budget.
        steps, module = build_steps(dialogues, row_tokens, likelihood=likelihood)
        (numbers,) = steps.plan_epoch(0)
        batch = steps.step_batch(numbers)
        pairs = sum(len(row.better) for row in batch.rows)
        alone = steps.reward.score_alone(batch.alone)
        loss = sum(module._loss(row, alone, defaultdict(list)) for row in batch.rows) / batch.weight
        loss.backward()
        gradient = torch.cat([weight.grad.flatten() for weight in module._trained() if weight.grad is not None])
        found.append((len(batch.rows), pairs, batch.weight, loss.detach(), gradient))
    assert found[0][0] < found[1][0]
    assert found[0][1:3] == found[1][1:3]
    torch.testing.assert_close(found[0][3], found[1][3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0][4], found[1][4], atol=1e-4, rtol=1e-3)


def test_the_loss_is_the_one_of_single_scores(sample_dialogues):
    steps, module = build_steps([merge_turns(dialogue, "set") for dialogue in sample_dialogues[:2]], anchor=0.25)
    (numbers,) = steps.plan_epoch(0)
    batch, losses = steps.step_batch(numbers), []
    alone = steps.reward.score_alone(batch.alone)
    for row in batch.rows:
        scores = steps.reward.raw_scores(row.row, alone).detach().double().numpy()
        better, worse = scores[row.better], scores[row.worse]
        sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
        losses += [*(-np.log(sigmoid(better - worse)) - 0.125 * np.log(sigmoid(better) * sigmoid(-worse)))]
    right = defaultdict(list)
    found = sum(float(module._loss(row, alone, right).detach()) for row in batch.rows) / batch.weight
    assert found == pytest.approx(np.mean(losses), rel=1e-4)
    assert sum(map(len, right.values())) == len(losses) == batch.weight
    assert set(right) <= set(KINDS)


def test_every_epoch_has_every_dialogue_once_with_foils_of_its_own(sample_dialogues):
    steps, _ = build_steps([merge_turns(dialogue, "set") for dialogue in sample_dialogues[:5]], step_dialogues=2)
    plans = [steps.plan_epoch(epoch) for epoch in (0, 1, 0)]
    assert plans[0] == plans[2] != plans[1]
    assert [sorted(number for part in plan for number in part) for plan in plans[:2]] == [[*range(5)], [*range(5, 10)]]
    first, again, later = (steps.step_batch([number]) for number in (0, 0, 5))
    assert first.dialogues == later.dialogues
    assert [row.row.keys for row in first.rows] == [row.row.keys for row in again.rows]
    assert [len(row.row) for row in first.rows] != [len(row.row) for row in later.rows]


def test_a_step_without_a_comparison_has_no_row():
    """Of a dialogue of one turn, where others have foils."""
    steps, _ = build_steps([talk("a", 1), talk("b")], kinds={"same_dialogue": 1.0}, step_dialogues=1)
    batch = steps.step_batch([0])
    assert (batch.rows, batch.weight) == ((), 0)


def test_ties_are_learned_only_where_there_are_ratings():
    for kinds, ties in (({"rated": 1.0, "same_dialogue": 1.0}, True), ({"same_dialogue": 1.0}, False)):
        _, module = build_steps([talk("a")], kinds=kinds)
        assert module.ties is ties
        head = module.parameter_groups()[1]
        assert head["lr"] == module.settings.head_lr
        assert any(weight is module.head.tie for weight in head["params"])


def test_only_ratings_can_be_ties(sample_dialogues):
    """A given reply and a foil are compared as without ties; the parameter of ties learns from ratings alone."""
    rate = lambda reply, value: replace(reply, value=value)  # noqa: E731
    plain = [merge_turns(dialogue, "set") for dialogue in sample_dialogues[:2]]
    rated = []
    for dialogue in plain:
        turns = [
            replace(turn, reply=rate(turn.reply, 0.5), rejected=(Reply("I see.", value=0.5), Reply("No.", value=0.1)))
            if turn.speaker == "supporter" else turn for turn in dialogue.turns
        ]  # fmt: skip
        rated.append(replace(dialogue, turns=tuple(turns)))
    for dialogues, learns in ((rated, True), (plain, False)):
        steps, module = build_steps(dialogues, kinds={"rated": 1.0, "same_dialogue": 1.0}, anchor=0.0)
        module.head.tie.data.fill_(0.7)
        (numbers,) = steps.plan_epoch(0)
        batch = steps.step_batch(numbers)
        losses, total = [], torch.zeros(())
        for row in batch.rows:
            total = total + module._loss(row, {}, defaultdict(list))
            scores = steps.reward.raw_scores(row.row, {}).detach().double().numpy()
            gaps = np.exp(scores[row.better] - scores[row.worse])
            for gap, kind, tie in zip(gaps, row.kinds, row.tie, strict=True):
                ties = np.exp(0.7) * np.sqrt(gap) if kind == "rated" else 0.0
                losses.append(-np.log((ties if tie else gap) / (gap + 1 + ties)))
        assert any(row.tie.any() for row in batch.rows) is learns
        assert float(total.detach()) == pytest.approx(np.sum(losses), rel=1e-4)
        total.backward()
        assert (float(module.head.tie.grad) != 0) is learns
        assert all(torch.isfinite(weight.grad).all() for weight in module._trained() if weight.grad is not None)
