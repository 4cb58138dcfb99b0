"""Preference bias against a plain-Python version of the published formula, its variant, and its guard's promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_lab.metrics import PreferenceBias
from esc_lab.metrics.strategy_choice import strategy_preference

# Few distinct small counts make sparse tables, where the formula often divides by zero; large ones strain its range.
counts = st.one_of(st.integers(0, 2), st.integers(0, 60), st.integers(0, 10**6))
tables = st.integers(2, 8).flatmap(lambda n: st.lists(st.lists(counts, min_size=n, max_size=n), min_size=n, max_size=n))
# All classes are confused with each other: the iteration converges well within its 20 rounds.
dense_tables = st.integers(2, 8).flatmap(
    lambda n: st.lists(st.lists(st.integers(5, 50), min_size=n, max_size=n), min_size=n, max_size=n)
)
relaxed = settings(max_examples=60)


def published(w):
    """p of the published formula for lists w[pred][gold], or None where it divides by zero."""
    n = len(w)
    p = [1.0] * n
    try:
        for _ in range(20):
            for i in range(n):
                others = [j for j in range(n) if j != i]
                wins = sum(w[i][j] * (p[j] / (p[i] + p[j])) for j in others)
                losses = sum(w[j][i] / (p[i] + p[j]) for j in others)
                p[i] = wins / losses
            positive = [value for value in p if value > 0]
            scale = math.exp(math.fsum(map(math.log, positive)) / len(positive))
            p = [value / scale for value in p]
    except ZeroDivisionError:
        return None
    return [value * n / math.fsum(p) for value in p]


def bias_of(p):
    return math.sqrt(math.fsum((value - 1) ** 2 for value in p) / len(p))


def preference_bias(w):
    """The metric, fed decision by decision with the counts w[pred][gold]."""
    metric = PreferenceBias([str(i) for i in range(len(w))])
    cells = [(pred, gold) for pred, row in enumerate(w) for gold, count in enumerate(row) for _ in range(count)]
    preds, target = torch.tensor(cells).T
    metric.update(preds, target)
    return metric


def preference_of(w):
    """p and whether the guard acted, of one table of counts."""
    return strategy_preference(np.asarray(w, dtype=float))


def bias(w):
    return preference_of(w)[0].std(0)


@relaxed
@given(tables)
def test_equals_the_published_formula_wherever_that_is_finite(w):
    expected = published(w)
    p, guarded = preference_of(w)
    assert guarded == (expected is None)
    if expected is not None:
        assert p.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert bias(w) == pytest.approx(bias_of(expected), abs=1e-9)


@relaxed
@given(tables)
def test_always_finite_and_within_bounds(w):
    n = len(w)
    p, guarded = preference_of(w)
    assert np.isfinite(p).all()
    assert (p >= 0).all()
    assert p.sum() == pytest.approx(n)
    assert 0 <= bias(w) <= math.sqrt(n - 1) + 1e-9
    if guarded:
        assert (p > 0).all()


@relaxed
@given(tables)
def test_guarded_tables_are_the_formula_with_half_an_error_more(w):
    n = len(w)
    p, guarded = preference_of(w)
    if guarded:
        padded = [[count + 0.5 / (n - 1) for count in row] for row in w]
        assert p.tolist() == pytest.approx(published(padded), rel=1e-9, abs=1e-9)


@relaxed
@given(tables, st.integers(2, 1000))
def test_scale_does_not_matter_unless_guarded(w, k):
    p, guarded = preference_of(w)
    scaled, scaled_guarded = preference_of(k * np.array(w))
    assert guarded == scaled_guarded
    if not guarded:
        np.testing.assert_allclose(scaled, p, rtol=0, atol=1e-9)


@relaxed
@given(tables)
def test_correct_decisions_do_not_matter(w):
    table = np.array(w)
    assert bias(table) == bias(table - np.diag(table.diagonal()))


@relaxed
@given(dense_tables, st.randoms(use_true_random=False))
def test_relabelling_does_not_matter_after_convergence(w, random):
    order = random.sample(range(len(w)), len(w))
    table = np.array(w)
    assert bias(table[order][:, order]) == pytest.approx(bias(table), abs=1e-9)


def test_relabelling_matters_between_groups_that_are_never_confused():
    # Nothing in the data compares classes 0 and 1 with 2 and 3, so where the iteration ends depends on its path.
    w = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 2, 0]])
    reverse = [3, 2, 1, 0]
    assert not preference_of(w)[1]
    assert abs(bias(w) - bias(w[reverse][:, reverse])) > 0.05


@relaxed
@given(dense_tables, st.integers(1, 3))
def test_emodynamix_variant_has_the_same_fixed_point(w, diagonal):
    # The variant keeps the diagonal, adds 1e-6 to the denominators and rescales to mean 1; the diagonal slows it down.
    n = len(w)
    w = [[count * diagonal if i == j else count for j, count in enumerate(row)] for i, row in enumerate(w)]
    p = [1.0] * n
    for _ in range(100):
        for i in range(n):
            wins = sum(w[i][j] * p[j] / (p[i] + p[j] + 1e-6) for j in range(n))
            p[i] = wins / sum(w[j][i] / (p[i] + p[j] + 1e-6) for j in range(n))
        p = [value * n / sum(p) for value in p]
    assert bias(w) == pytest.approx(bias_of(p), abs=1e-5)


def test_converged_preference_balances_wins_and_losses():
    # Maximum likelihood: class i wins as often as the strengths predict.
    w = np.array([[0, 9, 4], [2, 0, 5], [3, 1, 0]], dtype=float)
    p, _ = preference_of(w)
    chance = p[:, None] / (p[:, None] + p[None, :])
    np.testing.assert_allclose(((w + w.T) * chance).sum(1), w.sum(1), rtol=1e-9)


def test_two_classes_by_hand():
    # With two classes p[0] : p[1] = w01 : w10, so p = (1.5, 0.5).
    found = preference_bias([[5, 3], [1, 7]]).compute()
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {"bias": 0.5, "n": 16, "classes_predicted": 2, "unparsable": 0, "guard": 0}
    )


def test_one_class_never_predicted_wrongly_is_published_behaviour():
    p, guarded = preference_of([[0, 2, 1], [1, 0, 1], [0, 0, 4]])
    assert not guarded
    assert p.tolist() == pytest.approx([2.0, 1.0, 0.0])


ALWAYS_RIGHT = [[5, 0, 0], [0, 3, 2], [0, 1, 4]]
ABSENT_FROM_GOLD = [[0, 4, 2], [0, 3, 1], [0, 2, 5]]
TWO_NEVER_PREDICTED = [[5, 4, 3, 1], [6, 2, 2, 2], [0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("w", [ALWAYS_RIGHT, ABSENT_FROM_GOLD, TWO_NEVER_PREDICTED])
def test_guard_acts_and_reports_it(w):
    assert published(w) is None
    found = preference_bias(w).compute()
    assert found["guard"] == 1
    assert found["bias"].isfinite()


@relaxed
@given(tables, st.randoms(use_true_random=False))
def test_every_guarded_class_keeps_its_rank_by_evidence(w, random):
    """A class that is never missed, yet predicted wrongly, comes out above one that is missed and never predicted."""
    n = len(w)
    never_missed, never_predicted = random.sample(range(n), 2)
    table = np.array(w)
    table[:, never_missed] = 0
    table[never_predicted, :] = 0
    table[never_missed, never_predicted] = 3
    p, guarded = preference_of(table)
    assert guarded
    assert p[never_missed] > p[never_predicted]


def test_no_errors_no_bias():
    found = preference_bias([[3, 0, 0], [0, 2, 0], [0, 0, 1]]).compute()
    assert found["bias"].item() == pytest.approx(0, abs=1e-12)
    assert found["guard"] == 1


def test_a_constant_prediction_nears_the_largest_bias():
    biases = [bias([[k, k, k, k], [0] * 4, [0] * 4, [0] * 4]) for k in (1, 10, 100, 1000)]
    assert biases == sorted(biases)
    assert biases[-1] == pytest.approx(math.sqrt(3), abs=1e-2)


def test_half_an_error_is_close_to_the_truth():
    # A model that never predicts two of eight classes: B of many samples of 200 decisions, all of them guarded,
    # against B of the distribution they are drawn from.
    gold = np.array([0.20, 0.06, 0.08, 0.09, 0.16, 0.16, 0.07, 0.18])
    predicted = np.exp([1, -2, 0, -2, 2, 0, -math.inf, -math.inf]) * gold
    joint = 0.25 * np.diag(gold) + 0.75 * np.outer(predicted / predicted.sum(), gold)
    joint[6:] = 0
    drawn = np.random.default_rng(0).multinomial(200, joint.ravel() / joint.sum(), size=500)
    samples = drawn.T.reshape(8, 8, -1).astype(float)
    p, guarded = strategy_preference(samples)
    assert guarded.all()
    assert p.std(0).mean() == pytest.approx(bias(joint * 1e9), abs=0.05)


def test_other_dimensions_are_independent_tables_in_both_precisions():
    drawn = np.random.default_rng(0).poisson(np.random.default_rng(1).gamma(0.3, 20, size=(64, 300)))
    counts = drawn.reshape(8, 8, -1).astype(float)
    p, guarded = strategy_preference(counts)
    assert 0 < guarded.sum() < 300
    for number in range(300):
        alone, acted = strategy_preference(counts[..., number])
        np.testing.assert_allclose(alone, p[:, number], rtol=1e-12)
        assert acted == guarded[number]
    np.testing.assert_allclose(strategy_preference(counts.astype(np.float32))[0], p, atol=1e-5)


def test_unparsable_predictions_are_left_out_and_counted():
    with_gaps, without = PreferenceBias(["a", "b", "c"]), PreferenceBias(["a", "b", "c"])
    preds, target = torch.tensor([0, 0, 1, 2, 1, -1, -1, -1]), torch.tensor([1, 2, 0, 0, 2, 0, 1, 1])
    with_gaps.update(preds, target)
    without.update(preds[:5], target[:5])
    assert torch.equal(with_gaps.preference, without.preference)
    found = with_gaps.compute()
    assert found["n"] == 5
    assert found["unparsable"] == 3 / 8


def test_nothing_parses():
    metric = PreferenceBias(["a", "b"])
    metric.update(torch.tensor([-1, -1]), torch.tensor([0, 1]))
    found = {name: value.item() for name, value in metric.compute().items()}
    missing = {"bias": math.nan, "guard": math.nan}  # not 0, the best there is
    assert found == pytest.approx({"n": 0, "classes_predicted": 0, "unparsable": 1, **missing}, nan_ok=True)
    assert metric.preference.isnan().all()
