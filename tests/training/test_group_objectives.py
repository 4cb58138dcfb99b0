"""Objectives of tokens and of siblings (LD-DPO, listwise, tree-GRPO) against plain Python floats, and their limits."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import permutations
from statistics import fmean, stdev
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_lab.config.training import ObjectiveConfig
from esc_lab.errors import UserError
from esc_lab.training.cso import pair_log_probs
from esc_lab.training.group_objectives import group_advantages, grpo, listwise
from esc_lab.training.objectives import OBJECTIVES, apply_settings, count_iterations, dpo
from esc_lab.training.reply_log_probs import GroupLogProbs, PairLogProbs, TokenLogProbs, compare_pairs

GRPO = {"clip_range": 0.2, "kl_weight": 0.3, "advantage": "mean_std", "normalisation": "mean"}
# What TRL 1.16 gives for `trl_examples`; `trl_losses` says how.
TRL = {"ld_dpo": 0.6279235777077612, "grpo": 0.004900889344036866, "grpo mean": 0.024469265867965485}
NAN = math.nan
many = settings(max_examples=40)
log_prob = st.floats(-8, -0.01)
token = st.tuples(log_prob, log_prob, log_prob, st.sampled_from([1.0, 1.0, 2.5]))  # policy, reference, old, weight
reply = st.lists(token, min_size=1, max_size=5)
sibling = st.tuples(reply, st.sampled_from([-0.5, 0.0, 0.25, 1.0]))
groups = st.lists(st.lists(sibling, min_size=1, max_size=4), min_size=1, max_size=3)


def float64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pad(members, size, filler):
    return [*members, *[filler] * (size - len(members))]


def make_groups(groups, **absent) -> GroupLogProbs:
    """Groups of (tokens, value) as tensors; a sibling that is missing has the tokens of another."""
    siblings = max(map(len, groups))
    length = max(len(tokens) for group in groups for tokens, _ in group)
    rows = [pad(group, siblings, (group[0][0], NAN)) for group in groups]
    tokens = float64([[pad(tokens, length, (0.0, 0.0, 0.0, 0.0)) for tokens, _ in row] for row in rows])
    policy, reference, old_policy, weights = tokens.unbind(-1)
    fields = {"policy": policy, "weights": weights, "reference": reference, "old_policy": old_policy}
    return GroupLogProbs(TokenLogProbs(**fields | absent), float64([[value for _, value in row] for row in rows]))


def plain_reward(tokens, beta) -> float:
    return beta * sum(weight * (policy - reference) for policy, reference, _, weight in tokens)


def plain_listwise(group, beta) -> float:
    """Every sibling against those of lower value."""
    total = 0.0
    for tokens, value in group:
        rest = [plain_reward(other, beta) for other, lower in group if lower < value]
        own = plain_reward(tokens, beta)
        total += math.log(1 + math.fsum(math.exp(score - own) for score in rest))
    return total


def plain_grpo(group, clip_range, kl_weight, advantage, normalisation) -> float:
    """DeepSeekMath, eq. 3 and 4, with signs turned."""
    values = [value for _, value in group]
    losses = []
    for tokens, value in group:
        gain = value - fmean(values)
        if advantage == "mean_std":
            gain = gain / (stdev(values) + 1e-4) if len(group) > 1 else 0.0
        total = 0.0
        for policy, reference, old, weight in tokens:
            ratio = math.exp(policy) / math.exp(old)
            kept = min(max(ratio, 1 - clip_range), 1 + clip_range)
            kl = math.exp(reference) / math.exp(policy) - math.log(math.exp(reference) / math.exp(policy)) - 1
            total -= weight * (min(ratio * gain, kept * gain) - kl_weight * kl)
        losses.append(total / sum(token[3] for token in tokens) if normalisation == "mean" else total)
    return fmean(losses)


@many
@given(groups=groups)
def test_listwise_equals_the_formula(groups):
    expected = [plain_listwise(group, 0.3) for group in groups]
    assert listwise(make_groups(groups), beta=0.3).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("advantage", ["mean_std", "mean"])
@pytest.mark.parametrize("normalisation", ["mean", "sum"])
@many
@given(groups=groups)
def test_grpo_equals_the_formula(advantage, normalisation, groups):
    options = GRPO | {"advantage": advantage, "normalisation": normalisation}
    expected = [plain_grpo(group, **options) for group in groups]
    assert grpo(make_groups(groups), **options).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def scored(*scores_and_values):
    """Siblings of one token each, with a log-ratio to the reference and a value."""
    return [([(score - 9.0, -9.0, -9.0, 1.0)], value) for score, value in scores_and_values]


def test_listwise_is_a_distribution_over_rankings():
    """Plackett-Luce: the probabilities of all orders add up to one, and the worst sibling has no choice left."""
    scores = (0.3, -1.2, 2.0, 0.7)
    orders = [scored(*zip(scores, order, strict=True)) for order in permutations((0.0, 1.0, 2.0, 3.0))]
    assert (-listwise(make_groups(orders), beta=1.0)).exp().sum().item() == pytest.approx(1)


def test_listwise_of_two_is_dpo_and_its_order_is_that_of_the_values():
    pair = PairLogProbs(*float64([[-9.0], [-14.0], [6], [8], [-10.0], [-12.0]]))
    group = scored((1.0, 0.5), (-2.0, -0.5))
    for siblings in (group, group[::-1]):
        loss = listwise(make_groups([siblings]), beta=0.3)
        assert loss.item() == pytest.approx(dpo(pair, beta=0.3).item())


def test_equal_values_alone_and_missing_siblings_say_nothing():
    for group in (scored((1.0, 0.5)), scored((1.0, 0.5), (-3.0, 0.5), (0.0, 0.5))):
        made = make_groups([group, scored((1.0, 0.5), (0.0, 0.0), (2.0, 0.0), (3.0, 0.0))])
        policy = made.tokens.policy.requires_grad_()
        losses = listwise(made, beta=0.3)
        assert losses[0].item() == pytest.approx(0, abs=1e-12)
        assert group_advantages(made.values, advantage="mean_std")[0].tolist() == [0] * 4
        unpunished = grpo(made, **GRPO | {"kl_weight": 0.0})
        assert unpunished[0].item() == pytest.approx(0, abs=1e-9)
        (losses[0] + unpunished[0]).backward()
        torch.testing.assert_close(policy.grad, torch.zeros_like(policy), atol=1e-12, rtol=0)


def test_siblings_of_equal_value_are_compared_with_the_lower_ones_only():
    tied = scored((1.0, 1.0), (0.5, 1.0), (-1.0, 0.0))
    expected = [dpo_of(1.0 - -1.0), dpo_of(0.5 - -1.0)]
    assert listwise(make_groups([tied]), beta=1.0).item() == pytest.approx(sum(expected))


def dpo_of(margin):
    return math.log1p(math.exp(-margin))


def test_grpo_at_the_old_policy_has_the_gradient_of_the_advantages():
    """With a ratio of 1 it is the policy gradient: -A / (K |y|) for each token; nothing is clipped."""
    group = [([(-1.0, -1.0, -1.0, 1.0)] * 2, 1.0), ([(-2.0, -2.0, -2.0, 1.0)], 0.0)]
    made = make_groups([group])
    policy = made.tokens.policy.requires_grad_()
    grpo(made, **GRPO | {"advantage": "mean"}).sum().backward()
    np_grad = policy.grad[0].tolist()
    assert np_grad[0] == pytest.approx([-0.5 / 4] * 2)
    assert np_grad[1] == pytest.approx([0.5 / 2, 0.0])


@pytest.mark.parametrize(("shift", "value", "moves"), [(0.5, 1.0, False), (-0.5, 1.0, True), (0.5, 0.0, True)])
def test_clipping_stops_a_token_that_has_gone_far_enough(shift, value, moves):
    made = make_groups([[([(-1.0 + shift, -1.0, -1.0, 1.0)], value), ([(-1.0, -1.0, -1.0, 1.0)], 0.5)]])
    policy = made.tokens.policy.requires_grad_()
    grpo(made, **GRPO | {"kl_weight": 0.0}).sum().backward()
    assert bool(policy.grad[0, 0, 0]) == moves


@pytest.mark.parametrize("advantage", ["mean_std", "mean"])
def test_gradients_equal_finite_differences(advantage):
    made = make_groups([
        [([(-1.0, -1.2, -0.9, 1.0), (-3.0, -2.0, -2.95, 2.0)], 1.0), ([(-2.0, -1.0, -1.5, 1.0)], 0.0)],
        [*scored((0.1, 0.0), (-0.3, 0.5), (0.15, 0.5))],
    ])  # fmt: skip

    def losses(policy):
        own = GroupLogProbs(TokenLogProbs(policy, *list(vars(made.tokens).values())[1:]), made.values)
        return grpo(own, **GRPO | {"advantage": advantage}), listwise(own, beta=0.3)

    assert torch.autograd.gradcheck(losses, (made.tokens.policy.clone().requires_grad_(),))


@many
@given(replies=st.lists(reply, min_size=2, max_size=4), excess_weight=st.floats(0, 1))
def test_ld_dpo_equals_the_formula(replies, excess_weight):
    tokens = make_groups([[(tokens, 0.0) for tokens in replies]]).tokens.select(torch.tensor(0))
    lengths = torch.tensor([len(tokens) for tokens in replies])
    pairs = [(a, b) for a in range(len(replies)) for b in range(len(replies)) if a != b]
    sides = torch.tensor(pairs).unbind(1)
    expected = []
    for pair in pairs:
        shared = min(len(replies[side]) for side in pair)
        chosen, rejected = (
            sum(
                (1 if place < shared else excess_weight) * weight * (policy - reference)
                for place, (policy, reference, _, weight) in enumerate(replies[side])
            )
            for side in pair
        )
        expected.append(dpo_of(0.3 * (chosen - rejected)))
    config = ObjectiveConfig(name="ld_dpo", beta=0.3, excess_weight=excess_weight)
    found = pair_log_probs(config, tokens, lengths, *sides)
    losses = apply_settings(OBJECTIVES["ld_dpo"].loss, config, found)
    assert losses.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    counts = [sum(token[3] for token in replies[a]) for a, _ in pairs]
    assert found.chosen_tokens.tolist() == pytest.approx(counts)
    plain = pair_log_probs(ObjectiveConfig(name="dpo", excess_weight=excess_weight), tokens, lengths, *sides)
    torch.testing.assert_close(plain.chosen, tokens.sums()[0][sides[0]])


def test_presets_read_their_settings():
    made = make_groups([scored((0.1, 0.0), (-0.3, 0.5))])
    config = ObjectiveConfig(name="grpo", clip_range=0.05, kl_weight=0.7, advantage="mean", normalisation="sum", beta=2)
    options = {"clip_range": 0.05, "kl_weight": 0.7, "advantage": "mean", "normalisation": "sum"}
    assert apply_settings(OBJECTIVES["grpo"].loss, config, made).tolist() == grpo(made, **options).tolist()
    assert apply_settings(OBJECTIVES["listwise"].loss, config, made).tolist() == listwise(made, beta=2).tolist()
    several = {name: count_iterations(ObjectiveConfig(name=name, iterations=3)) for name in OBJECTIVES}
    assert [name for name, count in several.items() if count > 1] == ["grpo"]


def test_errors():
    made = make_groups([scored((0.1, 0.0), (-0.3, 0.5))])
    bare = make_groups([scored((0.1, 0.0), (-0.3, 0.5))], reference=None)
    for call in (lambda: listwise(bare, beta=0.1), lambda: grpo(bare, **GRPO)):
        with pytest.raises(UserError, match=r"reference model.*Fix: "):
            call()
    with pytest.raises(ValueError, match="old policy"):
        grpo(make_groups([scored((0.1, 0.0))], old_policy=None), **GRPO)
    wrong = [
        *({"clip_range": value} for value in (0.0, 1.0, NAN)), {"kl_weight": -1.0}, {"advantage": "median"},
        {"normalisation": "tokens"},
    ]  # fmt: skip
    for options in wrong:
        with pytest.raises(ValueError, match=next(iter(options))):
            grpo(made, **GRPO | options)
    for beta in (0.0, NAN):
        with pytest.raises(ValueError, match="beta"):
            listwise(made, beta=beta)
    tokens, one = made.tokens.select(torch.tensor(0)), torch.tensor([0])
    for weight in (-0.1, 1.1, NAN):
        with pytest.raises(ValueError, match="excess_weight"):
            compare_pairs(tokens, torch.tensor([1, 1]), one, one + 1, weight)


def trl_examples():
    """Siblings of 3, 1 and 2 tokens, all of weight 1."""
    first = [(-1.0, -1.5, -1.3, 1.0), (-0.5, -0.25, -0.4, 1.0), (-2.0, -2.5, -2.0, 1.0)]
    second = [(-0.75, -1.0, -1.0, 1.0), (-1.25, -1.0, -1.0, 1.0)]
    return make_groups([[(first, 1.0), ([(-3.0, -2.0, -2.5, 1.0)], -0.5), (second, 0.25)]])


def our_losses_of_trl() -> dict[str, float]:
    made, lengths = trl_examples(), torch.tensor([3, 1, 2])
    config = ObjectiveConfig(name="ld_dpo", beta=0.3, excess_weight=0.4)
    pairs = pair_log_probs(config, made.tokens.select(torch.tensor(0)), lengths, *torch.tensor([[0], [2]]))
    found = {"ld_dpo": dpo(pairs, beta=0.3).item(), "grpo": grpo(made, **GRPO).item()}
    return found | {"grpo mean": grpo(made, **GRPO | {"advantage": "mean"}).item()}


def trl_losses() -> dict[str, float]:
    """The same from TRL's loss code, on bare attributes in place of a trainer."""
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.grpo_trainer import GRPOTrainer

    made = trl_examples()
    policy, weights, reference, old_policy = (tensor[0] for tensor in vars(made.tokens).values())
    device = torch.device("cpu")
    accelerator = SimpleNamespace(
        device=device, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, **_: x
    )
    metrics = defaultdict(lambda: defaultdict(list))
    common = {"accelerator": accelerator, "aux_loss_enabled": False, "_metrics": metrics, "_total_train_tokens": 0}

    rows = torch.tensor([0, 2])
    mask = torch.nn.functional.pad(weights[rows].long(), (1, 0))
    output = SimpleNamespace(log_probs=policy[rows], entropy=policy[rows], mean_logits=policy[rows], is_top1=policy > 0)
    output.is_top1 = output.is_top1[rows]
    model = torch.nn.Module()
    model.forward = lambda **_: output
    stand_in = SimpleNamespace(
        **common, model=torch.nn.Module(), precompute_ref_logps=True, label_smoothing=0.0, _tp_size=1, ld_alpha=0.4,
        loss_types=["sigmoid"], loss_weights=[1.0], beta=0.3, f_divergence_type="reverse_kl", use_weighting=False,
    )  # fmt: skip
    cut = reference[rows] * float64([1.0, 1.0, 0.4])
    inputs = {"input_ids": mask, "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    inputs |= {"ref_chosen_logps": cut[:1].sum(-1), "ref_rejected_logps": cut[1:].sum(-1)}
    found = {"ld_dpo": DPOTrainer._compute_loss(stand_in, model, inputs, return_outputs=False).item()}

    for name, scale in (("grpo", "mean_std"), ("grpo mean", "mean")):
        stand_in = SimpleNamespace(
            **common, model=model, top_entropy_quantile=1.0, off_policy_mask_threshold=None, beta=GRPO["kl_weight"],
            importance_sampling_level="token", loss_type="grpo", epsilon_low=0.2, epsilon_high=0.2, use_vllm=False,
            vllm_importance_sampling_correction=False, current_gradient_accumulation_steps=1,
            _entropy_bonus_enabled=False, args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
            _get_per_token_logps_and_entropies=lambda *_, **__: (policy, torch.zeros_like(policy), None),
        )  # fmt: skip
        ids = weights.long()
        inputs = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": ids}
        inputs |= {"old_per_token_logps": old_policy, "ref_per_token_logps": reference}
        inputs["advantages"] = group_advantages(made.values, advantage=scale)[0]
        found[name] = GRPOTrainer._compute_loss(stand_in, model, inputs).item()
    return found


def test_equals_recorded_losses_of_trl():
    assert our_losses_of_trl() == pytest.approx(TRL, rel=1e-9)


def test_equals_the_loss_code_of_an_installed_trl():
    pytest.importorskip("trl")
    assert our_losses_of_trl() == pytest.approx(trl_losses(), rel=1e-9)
