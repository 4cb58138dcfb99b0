"""What is measured while an evaluation is under way: at its end what the summary says, before that of what is done."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from esc_lab.data.strategies import load_inventory
from esc_lab.evaluation import curve
from esc_lab.evaluation.curve import ChoiceSoFar, EvaluationCurve
from esc_lab.evaluation.read_table import read_table
from esc_lab.evaluation.summary import summarize
from esc_lab.metrics.predictions import Prediction, write_predictions

NAMES = load_inventory("esconv").names


def draw(count: int) -> list[Prediction]:
    """Predictions with choices that are right in part; some name no strategy, some have two that are right."""
    random.seed(3)
    found = []
    for number in range(count):
        gold = random.sample(NAMES[:5], 1 + (number % 7 == 0))
        shares = dict.fromkeys(NAMES, 0.5 / (len(NAMES) - 1)) | {random.choice([gold[0], *NAMES[:4]]): 0.5}
        written = random.choice([gold[-1], None, *NAMES[:3]])
        found.append(
            Prediction(
                f"d{number % 9}", f"d{number % 9}", number, "p", "e", gold, "Why?", None, "cso", distribution=shares,
                chosen=max(shares, key=shares.__getitem__), reply="I see.", strategy=written,
            )
        )  # fmt: skip
    return found


def test_the_last_values_are_those_of_the_summary(tmp_path):
    predictions = draw(120)
    write_predictions(tmp_path / "predictions.jsonl", predictions)
    metrics, _ = summarize(read_table(tmp_path / "predictions.jsonl", NAMES, sra="paper/name", texts=False))
    so_far = ChoiceSoFar(NAMES)
    for prediction in predictions:
        so_far.add(prediction)
    measured = so_far.measure()
    assert len(measured) == 6
    assert measured == {name: pytest.approx(metrics[name], rel=1e-5) for name in measured}


def test_nothing_is_measured_of_prompts_that_name_the_strategy():
    so_far = ChoiceSoFar(NAMES)
    so_far.add(Prediction("d", "d", 1, "", "", [], "Why?", NAMES[0], "standard", reply="I see.", strategy=None))
    assert so_far.measure() == {}


class Classifier:
    """Finds the first strategy of the inventory in replies with an `a`, and the second in others."""

    def __init__(self):
        self.asked = []

    def predict(self, texts, *, row_tokens):
        self.asked.append(len(texts))
        return np.array([[0.0 if "a" in text else 1.0, 1.0 if "a" in text else 0.0] for text in texts])


@pytest.fixture
def points(monkeypatch):
    logged: list[dict[str, float]] = []
    monkeypatch.setattr(curve, "log_curve", logged.append)
    monkeypatch.setattr(curve, "current_run", lambda: object())
    monkeypatch.setattr(curve, "choose_strategies", lambda scores: scores.argmax(axis=1))
    monkeypatch.setattr(curve, "CURVE_EVERY_S", 0.0)
    monkeypatch.setattr(curve, "_PATIENCE", 0.0)
    return logged


def evaluate(curve_of: EvaluationCurve, batches: int) -> SimpleNamespace:
    """Batches of 20 replies, prompted with the first strategy; every second follows it."""
    module = SimpleNamespace(predictions=[], replied=[], reads_gold=False, row_tokens=64)
    for number in range(batches):
        batch = [
            Prediction(
                f"d{number}", "d", turn, "", "", [NAMES[0]], "Why?", NAMES[0], "standard", reply="ba"[turn % 2] + "."
            )
            for turn in range(20)
        ]
        module.predictions += batch
        module.replied += [SimpleNamespace(prediction=prediction) for prediction in batch]
        curve_of.on_test_batch_end(None, module, None, batch, number)
    return module


def test_adherence_is_judged_of_a_few_new_replies_as_they_come(points):
    classifier = Classifier()
    of = EvaluationCurve(NAMES, classifier)
    module = evaluate(of, 3)
    assert [point["progress/iteration"] for point in points] == [20, 40, 60]
    assert [point["progress/adherence"] for point in points] == [0.5] * 3
    assert classifier.asked == [16] * 3
    assert all(prediction.judged is None and prediction.adheres is None for prediction in module.predictions)
    for prediction in module.predictions:  # as the evaluation judges all of them at its end
        prediction.adheres = prediction.turn > 4
    of.on_test_end(None, module)
    assert points[-1]["progress/adherence"] == 0.75
    assert points[-1]["progress/replies"] == 60
    assert classifier.asked == [16] * 3


def test_the_last_point_is_of_all_processes(points):
    of = EvaluationCurve(NAMES)
    module = evaluate(of, 2)
    others = [
        replace(each, dialogue=f"other {each.dialogue}", prompted=None, strategy=NAMES[1])
        for each in module.predictions
    ]
    module.predictions = others + module.predictions  # in the order of the data
    of.on_test_end(None, module)
    assert [point["progress/decisions"] for point in points] == [20, 40, 80]
    assert ["progress/generated/accuracy" in point for point in points] == [False, False, True]


def test_points_are_rare_where_they_take_long(points, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(curve.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(curve, "CURVE_EVERY_S", 30.0)
    evaluate(EvaluationCurve(NAMES), 100)
    assert 2 <= len(points) <= 4


def test_nothing_is_logged_or_judged_without_a_run(points, monkeypatch):
    monkeypatch.setattr(curve, "current_run", lambda: None)
    classifier = Classifier()
    of = EvaluationCurve(NAMES, classifier)
    of.on_test_end(None, evaluate(of, 2))
    assert (points, classifier.asked) == ([], [])
