"""Preference objectives against plain float64 arithmetic, their limits, finite differences and TRL."""

from __future__ import annotations

import math
from collections import defaultdict
from decimal import Decimal, getcontext
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_lab.config.training import ObjectiveConfig
from esc_lab.errors import UserError
from esc_lab.training.objectives import (
    OBJECTIVES,
    apply_settings,
    balance_weights,
    dpo,
    dpop,
    hinge,
    implicit_rewards,
    ipo,
    kto,
    objective_of,
    orpo,
    simpo,
)
from esc_lab.training.reply_log_probs import (
    PairLogProbs,
    ReplyLogProbs,
    TokenLogProbs,
    split_replies,
    value_gap_margin,
    weigh_tokens,
)
from tests.conftest import ROOT

# One set of options for each objective and variant.
CASES = {
    "dpo": (dpo, {"beta": 0.3}),
    "dpo smoothed": (dpo, {"beta": 0.3, "label_smoothing": 0.2}),
    "dpop": (dpop, {"beta": 0.3, "lambda_": 5.0}),
    "ipo sum": (ipo, {"beta": 0.4, "normalisation": "sum"}),
    "ipo mean": (ipo, {"beta": 0.4, "normalisation": "mean"}),
    "hinge": (hinge, {"beta": 0.3}),
    "simpo": (simpo, {"beta": 2.0, "gamma": 0.7}),
    "orpo": (orpo, {"lambda_": 0.5}),
}
WITH_REFERENCE = [name for name in CASES if OBJECTIVES[name.split()[0]].needs_reference]
CASE = pytest.mark.parametrize("case", CASES)
# chosen, rejected, their tokens, reference of chosen and rejected.
ROWS = [
    (-9.0, -14.0, 6, 8, -10.0, -12.0),
    (-31.5, -7.25, 20, 3, -28.0, -9.5),
    (-2.0, -2.0, 4, 4, -2.0, -2.0),
    (-60.0, -95.0, 40, 33, -75.0, -90.0),
]
# What TRL 1.16 gives for ROWS; `trl_losses` says how. Of orpo it is the odds term, without SFT.
TRL = {
    "dpo": [0.34115387473208786, 1.8889649774732216, 0.6931471805599453, 0.0024756851377304495],
    "dpo smoothed": [0.5211538747320879, 1.5439649774732218, 0.6931471805599453, 1.2024756851377305],
    "ipo mean": [0.6944444444444445, 4.730624999999999, 1.5625, 0.5234303259871442],
    "hinge": [0.1, 2.725, 1.0, 0.0],
    "simpo": [0.7981388693815918, 0.3177714217453956, 1.103186048885458, 0.12023631194638952],
    "orpo": [0.2747185528278351, 0.1593186855316162, 0.3465735912322998, 0.09420711547136307],
    "kto": [0.7078569383874194, 0.11243572334132174, 0.22663092400769308, 0.019834232628457737],
}
KTO_LABELS, KTO_KL = [True, False, False, True], 0.625
KTO_OPTIONS = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}


def float64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def make_pairs(rows=ROWS, **extra) -> PairLogProbs:
    return PairLogProbs(*float64(rows).reshape(-1, 6).unbind(1), **extra)


def log_sigmoid(z: float) -> float:
    return -math.log1p(math.exp(-z)) if z > 0 else z - math.log1p(math.exp(z))


def log_odds(log_p: float) -> float:
    getcontext().prec = 400
    p = Decimal(log_p).exp()
    return float((p / (1 - p)).ln())


def plain(name, row, options, margin=0.0) -> float:
    """The loss of one pair from the papers' formulas, on Python floats."""
    chosen, rejected, chosen_tokens, rejected_tokens, ref_chosen, ref_rejected = row
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    beta, smoothing = options.get("beta"), options.get("label_smoothing", 0.0)
    match name:
        case "dpo" | "dpo smoothed":
            z = beta * h - margin
            return -(1 - smoothing) * log_sigmoid(z) - smoothing * log_sigmoid(-z)
        case "dpop":
            return -log_sigmoid(beta * (h - options["lambda_"] * max(0.0, ref_chosen - chosen)))
        case "ipo sum":
            return (h - 1 / (2 * beta)) ** 2
        case "ipo mean":
            per_token = (chosen - ref_chosen) / chosen_tokens - (rejected - ref_rejected) / rejected_tokens
            return (per_token - 1 / (2 * beta)) ** 2
        case "hinge":
            return max(0.0, 1 - beta * h)
        case "simpo":
            return -log_sigmoid(beta * chosen / chosen_tokens - beta * rejected / rejected_tokens - options["gamma"])
        case "orpo":
            odds_ratio = log_odds(chosen / chosen_tokens) - log_odds(rejected / rejected_tokens)
            return -chosen / chosen_tokens - options["lambda_"] * log_sigmoid(odds_ratio)
    raise AssertionError(name)


many = settings(max_examples=40)
log_probs = st.floats(-300, -0.01)
row = st.tuples(log_probs, log_probs, st.integers(1, 60), st.integers(1, 60), log_probs, log_probs)


@CASE
@many
@given(rows=st.lists(row, max_size=4))
def test_equals_the_formula_on_python_floats(case, rows):
    function, options = CASES[case]
    losses = function(make_pairs(rows), **options)
    assert losses.shape == (len(rows),)
    assert losses.tolist() == pytest.approx([plain(case, row, options) for row in rows], rel=1e-9, abs=1e-12)


@many
@given(row=row, margin=st.floats(0, 20), smoothing=st.floats(0, 0.499))
def test_offset_dpo_equals_the_formula(row, margin, smoothing):
    options = {"beta": 0.1, "label_smoothing": smoothing}
    (loss,) = dpo(make_pairs([row], margin=float64([margin])), **options).tolist()
    assert loss == pytest.approx(plain("dpo", row, options, margin), rel=1e-9, abs=1e-12)


@many
@given(replies=st.lists(st.tuples(log_probs, log_probs, st.booleans()), min_size=1, max_size=5), kl=st.floats(0, 50))
def test_kto_equals_the_formula_on_python_floats(replies, kl):
    policy, reference, desirable = (list(column) for column in zip(*replies, strict=True))
    tensors = ReplyLogProbs(
        *(torch.tensor(x, dtype=torch.float64) for x in (policy, reference)), torch.tensor(desirable)
    )
    kl_tensor = torch.tensor(kl, dtype=torch.float64)
    losses = kto(tensors, kl_tensor, beta=0.2, desirable_weight=1.3, undesirable_weight=0.4)
    expected = []
    for p, r, good in replies:
        value = math.exp(log_sigmoid(0.2 * (p - r - kl) if good else 0.2 * (kl - (p - r))))
        expected.append((1.3 if good else 0.4) * (1 - value))
    assert losses.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_every_objective_has_a_preset_and_reads_its_settings():
    assert {file.stem for file in (ROOT / "conf" / "objective").glob("*.yaml")} == OBJECTIVES.keys()
    assert OBJECTIVES["cso"] == OBJECTIVES["dpo"]
    pairs, settings = make_pairs(), ObjectiveConfig(beta=0.4, label_smoothing=0.2, gamma=0.7, lambda_=0.5)
    expected = {
        "cso": dpo(pairs, beta=0.4, label_smoothing=0.2),
        "ld_dpo": dpo(pairs, beta=0.4, label_smoothing=0.2),
        "dpop": dpop(pairs, beta=0.4, lambda_=0.5),
        "ipo": ipo(pairs, beta=0.4, normalisation="mean"),
        "hinge": hinge(pairs, beta=0.4),
        "simpo": simpo(pairs, beta=0.4, gamma=0.7),
        "orpo": orpo(pairs, lambda_=0.5),
    }
    for name, losses in expected.items():
        assert apply_settings(OBJECTIVES[name].loss, settings, pairs).tolist() == losses.tolist()


def test_an_unknown_objective_is_refused():
    """It must not fall through to another loss."""
    with pytest.raises(
        UserError, match=r"objective\.name=simp0: .*did you mean 'simpo'.* Fix: use one of cso, dpo, dpop, ld_dpo, ipo"
    ):
        objective_of(ObjectiveConfig(name="simp0"))
    with pytest.raises(UserError, match=r"value_margin=0\.5: hinge has no margin. Fix: objective=cso, objective=dpo"):
        objective_of(ObjectiveConfig(name="hinge", value_margin=0.5))
    assert objective_of(ObjectiveConfig(name="dpo", value_margin=0.5)).takes_margin


@CASE
def test_gradients_equal_finite_differences(case):
    function, options = CASES[case]
    # The penalty of dpop has a corner where policy and reference agree.
    pairs = make_pairs([row for row in ROWS if case != "dpop" or row[0] != row[4]])

    def losses(chosen, rejected):
        rest = (pairs.chosen_tokens, pairs.rejected_tokens, pairs.reference_chosen, pairs.reference_rejected)
        return function(PairLogProbs(chosen, rejected, *rest), **options)

    inputs = tuple(x.clone().requires_grad_() for x in (pairs.chosen, pairs.rejected))
    assert torch.autograd.gradcheck(losses, inputs)


@pytest.mark.parametrize("counts", [(10, 26), (30, 4), (7, 7), (1, 8157)])
@pytest.mark.parametrize("fixed", [{}, {"desirable_weight": 0.5}, {"undesirable_weight": 2.0}])
def test_kto_weights_that_are_null_balance_the_groups(counts, fixed):
    """The KTO paper: desirable_weight n / (undesirable_weight m) is to lie in [1, 4/3]."""
    balanced = balance_weights(ObjectiveConfig(name="kto", **fixed), *counts)
    ratio = Fraction(balanced.desirable_weight) * counts[0] / (Fraction(balanced.undesirable_weight) * counts[1])
    assert 1 - 1e-12 <= ratio <= Fraction(4, 3)
    for name, value in fixed.items():
        assert getattr(balanced, name) == value
    if not fixed:
        larger = "desirable_weight" if counts[0] > counts[1] else "undesirable_weight"
        assert getattr(balanced, larger) == 1


def test_kto_weights_that_are_given_stay_and_empty_groups_balance_nothing():
    both = {"desirable_weight": 0.0, "undesirable_weight": 3.0}
    assert balance_weights(ObjectiveConfig(**both), 5, 50) == ObjectiveConfig(**both)
    ones = ObjectiveConfig(desirable_weight=1.0, undesirable_weight=1.0)
    assert balance_weights(ObjectiveConfig(), 0, 5) == balance_weights(ObjectiveConfig(), 5, 0) == ones


def test_gradients_of_kto_and_weighted_sums_equal_finite_differences():
    reference, desirable, kl = float64([-9, -8, -30]), torch.tensor([True, False, False]), float64(0.5)

    def losses(policy):
        replies = ReplyLogProbs(policy, reference, desirable)
        return kto(replies, kl, beta=0.3, desirable_weight=1.0, undesirable_weight=2.0)

    policy = float64([-8, -9, -25]).requires_grad_()
    assert torch.autograd.gradcheck(losses, (policy,))
    lengths = torch.tensor([2, 1])
    weights = weigh_tokens(lengths, torch.tensor([1, 1]), 2.5, torch.float64)
    assert torch.autograd.gradcheck(lambda x: TokenLogProbs(split_replies(x, lengths), weights).sums()[0], (policy,))


@CASE
@pytest.mark.parametrize("chosen", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("rejected", [-1e4, 0.0, 1e4])
def test_extremes_keep_losses_and_gradients_finite(case, chosen, rejected):
    # With a reference of 0 these are log-ratios too, which may be positive.
    function, options = CASES[case]
    inputs = [torch.tensor([value], requires_grad=True) for value in (chosen, rejected)]
    one, zero = torch.ones(1), torch.zeros(1)
    loss = function(PairLogProbs(*inputs, one, one, zero, zero), **options)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(x.grad.isfinite().all() for x in inputs)


def test_extreme_log_ratios_saturate_kto():
    policy = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    replies = ReplyLogProbs(policy, torch.zeros(4), torch.tensor([True, True, False, False]))
    losses = kto(replies, torch.tensor(0.0), beta=1.0, desirable_weight=2.0, undesirable_weight=3.0)
    losses.sum().backward()
    assert losses.tolist() == [0, 2, 3, 0]
    assert policy.grad.tolist() == [0] * 4


def test_equal_policy_and_reference_give_the_loss_of_a_coin_toss():
    pairs = make_pairs([(-9.0, -14.0, 6, 8, -9.0, -14.0)])
    assert dpo(pairs, beta=0.1).item() == pytest.approx(math.log(2))
    assert dpo(pairs, beta=7.0, label_smoothing=0.3).item() == pytest.approx(math.log(2))
    assert hinge(pairs, beta=0.1).item() == 1
    assert ipo(pairs, beta=0.1, normalisation="mean").item() == pytest.approx(25)
    assert [x.item() for x in implicit_rewards(pairs, beta=0.1)] == [0, 0]


@many
@given(row=row, smoothing=st.floats(0, 0.499))
def test_swapping_chosen_and_rejected(row, smoothing):
    swapped = [row[i] for i in (1, 0, 3, 2, 5, 4)]
    both = make_pairs([row, swapped])
    plain_losses, smoothed = dpo(both, beta=0.2), dpo(both, beta=0.2, label_smoothing=smoothing)
    chosen, rejected = implicit_rewards(both, beta=0.2)
    assert (plain_losses[1] - plain_losses[0]).item() == pytest.approx((chosen - rejected)[0].item(), abs=1e-9)
    expected = (1 - smoothing) * plain_losses[0] + smoothing * plain_losses[1]
    assert smoothed[0].item() == pytest.approx(expected.item(), rel=1e-9)
    good, bad = (
        kto(
            ReplyLogProbs(both.chosen, both.rejected, torch.full((2,), label)), torch.tensor(0.0),
            beta=0.2, desirable_weight=1.0, undesirable_weight=1.0,
        )
        for label in (True, False)
    )  # fmt: skip
    torch.testing.assert_close(good + bad, torch.ones_like(good))


def test_smoothed_loss_is_lowest_at_the_log_odds_of_a_right_label():
    smoothing, beta = 0.2, 0.5
    best = math.log((1 - smoothing) / smoothing) / beta
    rows = [(best + shift, 0.0, 1, 1, 0.0, 0.0) for shift in (-0.01, 0.0, 0.01)]
    losses = dpo(make_pairs(rows), beta=beta, label_smoothing=smoothing)
    assert losses[1] < losses[0]
    assert losses[1] < losses[2]


@pytest.mark.parametrize("case", WITH_REFERENCE)
@many
@given(row=row, shift=st.floats(-50, 50))
def test_only_log_ratios_count_where_there_is_a_reference(case, row, shift):
    function, options = CASES[case]
    moved = (row[0] + shift, row[1] - shift, *row[2:4], row[4] + shift, row[5] - shift)
    losses = function(make_pairs([row, moved]), **options)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("case", ["dpo", "dpop", "hinge", "simpo", "orpo"])
@many
@given(row=row, gain=st.floats(0.01, 5))
def test_loss_falls_with_the_chosen_and_rises_with_the_rejected(case, row, gain):
    function, options = CASES[case]
    lower = (row[0] - gain, *row[1:])
    worse = (row[0], row[1] - gain, *row[2:])
    base, chosen_fell, rejected_fell = function(make_pairs([row, lower, worse]), **options).tolist()
    assert base >= 0
    assert chosen_fell >= base - 1e-12
    assert rejected_fell <= base + 1e-12


@pytest.mark.parametrize("log_p", [-1e-12, -1e-5, -0.1, -0.7, -5.0, -40.0, -700.0])
def test_odds_keep_their_digits(log_p):
    rows = [(log_p, -1.0, 1, 1, 0.0, 0.0), (-1.0, log_p, 1, 1, 0.0, 0.0)]
    losses = orpo(make_pairs(rows), lambda_=1.0).tolist()
    assert losses == pytest.approx([plain("orpo", row, {"lambda_": 1.0}) for row in rows], rel=1e-9)


def test_value_gap_margin():
    chosen, rejected = torch.tensor([0.75, 0.5]), torch.tensor([-1.0, 0.5])
    assert value_gap_margin(chosen, rejected, scale=2.0).tolist() == [3.5, 0]
    assert value_gap_margin(chosen, rejected, scale=0.0).tolist() == [0, 0]


replies = st.lists(st.tuples(st.lists(st.floats(-20, 0), max_size=6), st.integers(0, 6)), max_size=4)


@many
@given(replies=replies, weight=st.floats(0, 10))
def test_weighted_sums_equal_a_loop(replies, weight):
    sums, counts = [], []
    for log_probs, label in replies:
        weights = [weight if place < label else 1 for place in range(len(log_probs))]
        sums.append(sum(w * x for w, x in zip(weights, log_probs, strict=True)))
        counts.append(sum(weights))
    lengths, labels = (
        torch.tensor([len(log_probs) for log_probs, _ in replies], dtype=torch.int64),
        torch.tensor([label for _, label in replies], dtype=torch.int64),
    )
    policy = split_replies(float64([x for log_probs, _ in replies for x in log_probs]), lengths)
    tokens = TokenLogProbs(policy, weigh_tokens(lengths, labels, weight, torch.float64), policy / 2)
    for found, expected in zip(tokens.sums(), (sums, counts, [x / 2 for x in sums]), strict=True):
        assert found.tolist() == pytest.approx(expected)


def test_errors_say_what_to_do():
    pairs = make_pairs()
    bare = PairLogProbs(pairs.chosen, pairs.rejected, pairs.chosen_tokens, pairs.rejected_tokens)
    for case, (function, options) in CASES.items():
        name = case.split()[0]
        if OBJECTIVES[name].needs_reference:
            with pytest.raises(UserError, match=r"reference model.*Fix: .*simpo, orpo"):
                function(bare, **options)
        else:
            torch.testing.assert_close(function(bare, **options), function(pairs, **options))
        if name != "dpo":
            with pytest.raises(UserError, match=r"margins.*Fix: .*cso, dpo"):
                function(make_pairs(margin=torch.zeros(4)), **options)
        with pytest.raises(TypeError):
            function(pairs, **options, temperature=1.0)
    with pytest.raises(UserError, match="reference"):
        implicit_rewards(bare, beta=0.1)


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        *((case, {"beta": beta}) for case in CASES if case != "orpo" for beta in (0.0, -1.0, math.nan, math.inf)),
        *(("dpo", {"label_smoothing": value}) for value in (-0.1, 0.5, math.nan)),
        ("ipo sum", {"normalisation": "tokens"}),
        ("simpo", {"gamma": -0.1}),
        ("orpo", {"lambda_": -0.1}),
        ("dpop", {"lambda_": -0.1}),
    ],
)
def test_bad_options_are_value_errors(case, wrong):
    function, options = CASES[case]
    with pytest.raises(ValueError, match=next(iter(wrong))):
        function(make_pairs(), **{**options, **wrong})


def test_bad_tensors_and_weights_are_value_errors():
    one, two = torch.zeros(1), torch.zeros(2)
    replies = ReplyLogProbs(two, two, torch.tensor([True, False]))
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    bad = [
        (lambda: PairLogProbs(two, one, two, two), "one length"),
        (lambda: PairLogProbs(*[torch.zeros(2, 2)] * 4), "one-dimensional"),
        (lambda: PairLogProbs(two, two, two, two, reference_chosen=two), "together"),
        (lambda: PairLogProbs(two, two, two, two, margin=one), "one length"),
        (lambda: ReplyLogProbs(two, two, two), "bool"),
        (lambda: ReplyLogProbs(two, one, two), "one length"),
        (lambda: kto(replies, two, beta=0.1, **weights), "scalar"),
        (lambda: kto(replies, one.sum(), beta=0.1, **weights | {"undesirable_weight": -1.0}), "undesirable_weight"),
        (lambda: value_gap_margin(two, two + math.nan, 1.0), "no value gap"),
        (lambda: value_gap_margin(two - 1, two, 1.0), "no value gap"),
        (lambda: value_gap_margin(two, two, -1.0), "scale"),
        (lambda: value_gap_margin(two, one, 1.0), "one length"),
        (lambda: weigh_tokens(two.long(), two.long(), -1.0), "strategy_weight"),
    ]
    for call, message in bad:
        with pytest.raises(ValueError, match=message):
            call()


def our_losses() -> dict[str, torch.Tensor]:
    """The losses of ROWS that TRL has too; kto takes the chosen replies, with labels of their own."""
    pairs = make_pairs()
    losses = {case: function(pairs, **options) for case, (function, options) in CASES.items() if case in TRL}
    losses["orpo"] = losses["orpo"] + pairs.chosen / pairs.chosen_tokens
    replies = ReplyLogProbs(pairs.chosen, pairs.reference_chosen, torch.tensor(KTO_LABELS))
    return losses | {"kto": kto(replies, float64(KTO_KL), **KTO_OPTIONS)}


def trl_losses() -> dict[str, list[float]]:
    """The same from the loss code of TRL's trainers, one pair at a time since it takes means.

    It runs on bare attributes in place of a trainer, and on a model that only returns given log-probabilities, those of
    a reply spread evenly over its tokens.
    """
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.kto_trainer import KTOTrainer

    def same(x):
        return x

    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same)
    common = {
        "accelerator": accelerator, "aux_loss_enabled": False, "precompute_ref_logps": True,
        "_metrics": defaultdict(lambda: defaultdict(list)), "_total_train_tokens": 0, "_tp_size": 1, "alpha": 0.0,
        "label_smoothing": 0.0, "model": torch.nn.Module(),
    }  # fmt: skip

    def trainer(**attributes):
        return SimpleNamespace(**(common | attributes))

    def forward(log_probs, tokens):
        """A model's output and the inputs that would have led to it: two prompt tokens, then the reply."""
        mask = torch.zeros(len(tokens), 2 + max(tokens), dtype=torch.int64)
        for i, n in enumerate(tokens):
            mask[i, 2 : 2 + n] = 1
        per_token = mask[:, 1:] * (float64(log_probs) / float64(tokens))[:, None]
        unused = torch.zeros_like(per_token)
        output = SimpleNamespace(log_probs=per_token, entropy=unused, mean_logits=unused, is_top1=unused.bool())
        inputs = {"input_ids": mask, "attention_mask": torch.ones_like(mask), "completion_mask": mask}
        model = torch.nn.Module()
        model.forward = lambda **_: output
        return model, inputs

    found = defaultdict(list)
    for row, label in zip(ROWS, KTO_LABELS, strict=True):
        chosen, rejected, *tokens, ref_chosen, ref_rejected = row
        model, inputs = forward([chosen, rejected], tokens)
        inputs |= {"ref_chosen_logps": float64([ref_chosen]), "ref_rejected_logps": float64([ref_rejected])}
        for case, loss_type in {"dpo": "sigmoid", "ipo mean": "ipo", "hinge": "hinge"}.items():
            stand_in = trainer(
                loss_types=[loss_type], loss_weights=[1.0], beta=CASES[case][1]["beta"], ld_alpha=None,
                f_divergence_type="reverse_kl", use_weighting=False,
            )  # fmt: skip
            found[case].append(DPOTrainer._compute_loss(stand_in, model, inputs, return_outputs=False))

        # CPO has no reference: given log-ratios, its sigmoid loss is conservative DPO.
        stand_in = trainer(loss_type="sigmoid", **CASES["dpo smoothed"][1])
        ratios = float64([chosen - ref_chosen]), float64([rejected - ref_rejected])
        found["dpo smoothed"].append(CPOTrainer.cpo_loss(stand_in, *ratios)[0])
        means = float64([chosen / tokens[0]]), float64([rejected / tokens[1]])
        options = CASES["simpo"][1]
        stand_in = trainer(loss_type="simpo", beta=options["beta"], simpo_gamma=options["gamma"])
        found["simpo"].append(CPOTrainer.cpo_loss(stand_in, *means)[0])
        stand_in = trainer(beta=CASES["orpo"][1]["lambda_"])
        found["orpo"].append(-ORPOTrainer.odds_ratio_loss(stand_in, *means)[0])

        model, inputs = forward([chosen], tokens[:1])
        inputs |= {"label": torch.tensor([label]), "ref_logps": float64([ref_chosen]), "ref_KL_logps": float64([0.0])}
        stand_in = trainer(
            calculate_KL=True, loss_type="kto", _compute_kl_logps=lambda *_: float64([KTO_KL]), **KTO_OPTIONS
        )
        found["kto"].append(KTOTrainer._compute_loss(stand_in, model, inputs, return_outputs=False))
    return {name: [loss.item() for loss in losses] for name, losses in found.items()}


def test_equals_recorded_losses_of_trl():
    ours = our_losses()
    assert ours.keys() == TRL.keys()
    for name, expected in TRL.items():
        assert ours[name].tolist() == pytest.approx(expected, rel=2e-6 if name == "orpo" else 1e-9, abs=1e-12), name


def test_equals_the_loss_code_of_an_installed_trl():
    pytest.importorskip("trl")
    theirs = trl_losses()
    for name, losses in our_losses().items():
        assert losses.tolist() == pytest.approx(theirs[name], rel=2e-6 if name == "orpo" else 1e-9, abs=1e-12), name
