"""Strategy proficiency against brute force over the decisions, hand-computed cases and torchmetrics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_f1_score

from esc_lab.metrics import StrategyProficiency

NAMES = ["Question", "Information", "Self-disclosure", "Others"]
decisions = st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 3)), min_size=1, max_size=40)
relaxed = settings(max_examples=60)


def proficiency(pairs):
    metric = StrategyProficiency(NAMES)
    metric.update(torch.tensor([pred for pred, _ in pairs]), torch.tensor([gold for _, gold in pairs]))
    return metric


def scores_of(pairs, label):
    """Precision, recall, F1 and support of one class, by counting decisions."""
    hits = sum(pred == gold == label for pred, gold in pairs)
    predicted = sum(pred == label for pred, _ in pairs)
    support = sum(gold == label for _, gold in pairs)
    precision = hits / predicted if predicted else 0.0
    recall = hits / support if support else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return precision, recall, f1, support


@relaxed
@given(decisions)
def test_equals_brute_force(pairs):
    metric = proficiency(pairs)
    found = {name: value.item() for name, value in metric.compute().items()}
    scores = [scores_of(pairs, label) for label in range(4)]
    occurring = {label for pair in pairs for label in pair} - {-1}
    n = len(pairs)
    expected = {
        "macro_f1": sum(scores[label][2] for label in occurring) / len(occurring),
        "macro_f1_inventory": sum(f1 for _, _, f1, _ in scores) / 4,
        "weighted_f1": sum(f1 * support for _, _, f1, support in scores) / n,
        "accuracy": sum(pred == gold for pred, gold in pairs) / n,
        "n": n,
        "classes_predicted": len({pred for pred, _ in pairs} - {-1}),
        "classes_gold": len({gold for _, gold in pairs}),
        "unparsable": sum(pred == -1 for pred, _ in pairs) / n,
    }
    if all(pred == -1 for pred, _ in pairs):
        expected |= dict.fromkeys(["macro_f1", "macro_f1_inventory", "weighted_f1", "accuracy"], math.nan)
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)
    per_class = torch.stack([metric.per_class()[name] for name in ("precision", "recall", "f1", "support")], dim=1)
    torch.testing.assert_close(per_class, torch.tensor(scores, dtype=torch.float64), rtol=0, atol=1e-12)


@relaxed
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_equals_torchmetrics_where_all_predictions_parse(pairs):
    preds, target = torch.tensor(pairs).T
    found = proficiency(pairs).compute()
    for ours, theirs in (("macro_f1", "macro"), ("weighted_f1", "weighted")):
        expected = multiclass_f1_score(preds, target, num_classes=4, average=theirs).item()
        assert found[ours].item() == pytest.approx(expected, abs=1e-6)


def test_published_example():
    # The example of scikit-learn's f1_score documentation: macro 0.26..., weighted 0.26..., per class 0.8, 0, 0.
    metric = StrategyProficiency(NAMES[:3])
    metric.update(torch.tensor([0, 2, 1, 0, 0, 1]), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert metric.per_class()["f1"].tolist() == pytest.approx([0.8, 0.0, 0.0])
    assert metric.compute()["macro_f1"].item() == pytest.approx(0.8 / 3)
    assert metric.compute()["weighted_f1"].item() == pytest.approx(0.8 / 3)


def test_a_class_that_is_only_predicted_counts_in_macro_f1():
    found = proficiency([(0, 0), (2, 0)]).compute()
    assert found["macro_f1"].item() == pytest.approx((2 / 3 + 0) / 2)
    assert found["macro_f1_inventory"].item() == pytest.approx(2 / 3 / 4)


def test_unparsable_is_a_miss_but_nobodys_false_prediction():
    metric = proficiency([(0, 0), (-1, 0), (-1, 1), (1, 1)])
    assert metric.per_class()["precision"].tolist() == [1, 1, 0, 0]
    assert metric.per_class()["recall"].tolist() == [0.5, 0.5, 0, 0]
    assert metric.confusion.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]


def test_nothing_parses():
    found = {name: value.item() for name, value in proficiency([(-1, 0), (-1, 3)]).compute().items()}
    scores = dict.fromkeys(["macro_f1", "macro_f1_inventory", "weighted_f1", "accuracy"], math.nan)
    counts = {"classes_predicted": 0, "n": 2, "classes_gold": 2, "unparsable": 1}
    assert found == pytest.approx({**scores, **counts}, nan_ok=True)


@pytest.mark.parametrize(
    ("preds", "target", "message"),
    [
        ([0, 4], [0, 0], r"preds must lie in \[-1, 3\].*\[0, 4\]"),
        ([0, -2], [0, 0], r"preds must lie in \[-1, 3\]"),
        ([0, 0], [0, -1], r"target in \[0, 3\]"),
        ([0, 0], [0], r"must both be \[N\]"),
        ([[0]], [[0]], r"must both be \[N\]"),
        ([0.0, 1.0], [0, 0], "class indices"),
    ],
)
def test_bad_input_is_refused(preds, target, message):
    metric = StrategyProficiency(NAMES)
    with pytest.raises(ValueError, match=message):
        metric.update(torch.tensor(preds), torch.tensor(target))
    assert metric.confusion.sum() == 0


@pytest.mark.parametrize("classes", [[], ["Question"], ["Question", "Question"]])
def test_classes_must_be_two_or_more_and_differ(classes):
    with pytest.raises(ValueError, match="two or more different classes"):
        StrategyProficiency(classes)


def test_small_integer_types_do_not_overflow():
    metric = StrategyProficiency([str(i) for i in range(16)])
    metric.update(torch.tensor([15, -1], dtype=torch.int8), torch.tensor([15, 15], dtype=torch.int8))
    assert metric.confusion[15:, 15].tolist() == [1, 1]
