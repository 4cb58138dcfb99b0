"""Made-up strategy choices as sums over dialogues, and macro-F1 written down once more."""

from __future__ import annotations

import numpy as np

from esc_lab.metrics.records import METRICS

macro_f1, bias = (METRICS[name].definition.value for name in ("strategy/Q", "strategy/B"))


def choices(clusters, runs, classes=3, each=5, seed=0):
    """Predicted and gold classes [runs, clusters, each] of made-up models."""
    drawn = np.random.default_rng(seed)
    gold = drawn.integers(classes, size=(clusters, each))
    wrong = drawn.integers(classes, size=(runs, clusters, each))
    return np.where(drawn.random(wrong.shape) < 0.4, gold, wrong), np.broadcast_to(gold, wrong.shape)


def f1_sums(predicted, gold, classes=3):
    """[runs, 3 * classes, clusters] float32."""
    marks = [predicted[..., None] == np.arange(classes), gold[..., None] == np.arange(classes)]
    parts = [marks[0] & marks[1], *marks]
    return np.concatenate([part.sum(axis=2).transpose(0, 2, 1) for part in parts], axis=1).astype(np.float32)


def error_sums(predicted, gold, classes=3):
    """[runs, classes ** 2, clusters] float32."""
    cell = predicted * classes + gold
    return (cell[..., None] == np.arange(classes**2)).sum(axis=2).transpose(0, 2, 1).astype(np.float32)


def plain_macro_f1(predicted, gold):
    """Macro-F1 of lists of classes, written down once more."""
    scores = []
    for one in {*predicted, *gold}:
        hits = sum(p == g == one for p, g in zip(predicted, gold, strict=True))
        scores.append(2 * hits / (list(predicted).count(one) + list(gold).count(one)))
    return sum(scores) / len(scores)
