"""Metrics of strategy choice, all functions of one table: how often each strategy was predicted where each is gold.

Where no prediction can be parsed at all there is no choice to measure: everything but counts and the share of
unparsable ones is nan there, not 0 (which of B would be the best).

Sources: proficiency Q, Q_W and preference bias B are those of Kang et al. 2024 (arXiv 2402.13211).
`esc_lab.metrics.StrategyProficiency` and `PreferenceBias` give them to torch programs and say what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from esc_lab.metrics.metric import Definition, Metric, Value, mean, mean_of
from esc_lab.metrics.prediction_table import NOT_ASKED, UNPARSABLE, BoolArray, FloatArray, PredictionTable

CHOICES = {"strategy": "chosen", "generated": "written"}  # group of metrics, and column of the table
ITERATIONS = 20


def count_choices(table: PredictionTable, keep: BoolArray, choice: str) -> FloatArray:
    """Counts [classes + 1, classes, clusters] float32: predicted (the last: unparsable), gold, cluster.

    `choice` is `chosen` or `written`. Where several strategies are right, gold is the predicted one if it is among
    them, else the first. So class supports differ between models that are scored on the same decisions, and scores are
    higher than with the first strategy as the only gold.
    """
    test, predicted = table.test, getattr(table, choice)
    keep = keep & (predicted != NOT_ASKED)
    predicted, decision = predicted[keep], table.decision[keep]
    right = test.gold[decision, predicted] & (predicted != UNPARSABLE)
    gold = np.where(right, predicted, test.first[decision])
    classes = len(test.strategies)
    row = np.where(predicted == UNPARSABLE, classes, predicted)
    place = (row * classes + gold) * test.clusters + test.cluster[decision]
    counts = np.bincount(place, minlength=(classes + 1) * classes * test.clusters)
    return counts.reshape(classes + 1, classes, test.clusters).astype(np.float32)


def count_margins(counts: FloatArray) -> FloatArray:
    """Hits, predictions and gold decisions of each class [3, classes, ...], of counts [classes + 1, classes, ...]."""
    return np.stack([np.einsum("ii...->i...", counts[:-1]), counts[:-1].sum(1), counts.sum(0)])


def f1_scores(margins: FloatArray) -> FloatArray:
    """F1 = 2 hits / (predicted + gold) of each class [classes, ...], 0 where that has no denominator."""
    hits, predicted, gold = margins
    return np.asarray(2 * hits / np.maximum(predicted + gold, 1))


def class_scores(counts: FloatArray) -> dict[str, FloatArray]:
    """`precision`, `recall`, `f1`, `support` (gold decisions) and `predicted` of each class [classes, ...].

    Of counts [classes + 1, classes, ...].
    """
    hits, predicted, gold = margins = count_margins(counts)
    # Counts are whole numbers, so the maximum changes only denominators of 0, where the hits are 0 too.
    precision, recall = hits / np.maximum(predicted, 1), hits / np.maximum(gold, 1)
    scores = {"precision": precision, "recall": recall, "f1": f1_scores(margins)}
    return {**scores, "support": gold, "predicted": predicted}


def macro_f1(margins: FloatArray) -> FloatArray:
    """Q: mean F1 of the classes that occur in gold or prediction."""
    _, predicted, gold = margins
    return _if_parsed(margins, mean(np.stack([f1_scores(margins).sum(0), (predicted + gold > 0).sum(0)])))


def macro_f1_inventory(margins: FloatArray) -> FloatArray:
    """Mean F1 of all classes; one that occurs nowhere counts 0."""
    return _if_parsed(margins, f1_scores(margins).mean(0))


def weighted_f1(margins: FloatArray) -> FloatArray:
    """Q_W: mean F1 of the classes, weighted by their gold decisions."""
    return _if_parsed(margins, mean(np.stack([(f1_scores(margins) * margins[2]).sum(0), decisions(margins)])))


def accuracy(margins: FloatArray) -> FloatArray:
    """Hits / n."""
    return _if_parsed(margins, mean(np.stack([margins[0].sum(0), decisions(margins)])))


def _if_parsed(margins: FloatArray, value: FloatArray) -> FloatArray:
    return np.where(margins[1].sum(0) > 0, value, math.nan)


def unparsable(margins: FloatArray) -> FloatArray:
    """Share of the n predictions that name no strategy."""
    n = decisions(margins)
    return mean(np.stack([n - margins[1].sum(0), n]))


def decisions(margins: FloatArray) -> FloatArray:
    """n: decisions, the unparsable ones included."""
    return np.asarray(margins[2].sum(0))


def classes_predicted(margins: FloatArray) -> FloatArray:
    """Number of classes that are predicted at least once."""
    return np.asarray((margins[1] > 0).sum(0))


def classes_gold(margins: FloatArray) -> FloatArray:
    """Number of classes that are gold at least once."""
    return np.asarray((margins[2] > 0).sum(0))


def bias(counts: FloatArray) -> FloatArray:
    """B: standard deviation of the preferences over the classes, of counts [classes, classes, ...]."""
    return np.asarray(preferences(counts).std(0))


def guard(counts: FloatArray) -> FloatArray:
    """1 where the guard of the preferences acted, else 0; of counts [classes, classes, ...]."""
    return np.where(counts.any((0, 1)), strategy_preference(counts)[1], math.nan)


def preferences(counts: FloatArray) -> FloatArray:
    """`strategy_preference` of predictions: nan where there are none, which have no preference to be measured."""
    return np.where(counts.any((0, 1)), strategy_preference(counts)[0], math.nan)


def strategy_preference(counts: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Preference p of a model for each strategy (Kang et al. 2024), guarded: see `PreferenceBias`.

    Args:
        counts: [classes, classes, ...], predicted (outer) and gold; the other dimensions are independent tables, such
            as draws of a bootstrap.

    Returns:
        p [classes, ...] with mean 1 over the classes; and bool [...], true where the guard acted.

    Example:
        >>> p, guarded = strategy_preference(np.array([[9.0, 4, 2], [1, 5, 1], [1, 2, 7]]))
        >>> p.round(4), guarded
        (array([1.7143, 0.4286, 0.8571]), array(False))
    """
    classes = len(counts)
    errors = counts.reshape(classes, classes, -1)
    hits = np.einsum("iin->in", errors)
    # A class that is never missed, or two that are never predicted wrongly, divide by zero for sure.
    never_missed, never_wrong = errors.sum(0) == hits, errors.sum(1) == hits
    plain = ~(never_missed.any(0) | (never_wrong.sum(0) > 1))
    if plain.all():
        p = _iterate(errors)
    else:
        p = np.full((classes, errors.shape[2]), math.nan, dtype=errors.dtype)
        p[:, plain] = _iterate(errors[..., plain])
    guarded = ~np.isfinite(p).all(0)
    if guarded.any():
        p[:, guarded] = _iterate(errors[..., guarded] + errors.dtype.type(0.5 / (classes - 1)))
    return p.reshape(classes, *counts.shape[2:]), np.asarray(guarded.reshape(counts.shape[2:]))


def _iterate(errors: FloatArray) -> FloatArray:
    """The published iteration over tables [classes, classes, n]: p [classes, n], not finite where it divides by zero.

    p may be scaled at will between its rounds; here it keeps a mean of 1. Rounds that would change only the last
    digits are left out.
    """
    classes = len(errors)
    rest = [np.delete(np.arange(classes), i) for i in range(classes)]
    wrong = [errors[i, rivals] for i, rivals in enumerate(rest)]
    missed = [errors[rivals, i] for i, rivals in enumerate(rest)]
    p = np.ones_like(errors[0])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for _ in range(ITERATIONS):
            before = p.copy()
            for i, rivals in enumerate(rest):
                theirs = p[rivals]
                share = np.reciprocal(theirs + p[i])
                lost = np.einsum("jn,jn->n", missed[i], share)
                share *= theirs
                p[i] = np.einsum("jn,jn->n", wrong[i], share) / lost
            p *= classes / p.sum(0)
            if not (np.abs(p - before) > 8 * np.finfo(p.dtype).eps * p).any():
                break
    return np.asarray(p)


def _choice(group: str, value: Value, *, errors: bool = False) -> Definition:
    """The definition of a function of margins, or of the counts of parsable predictions, over the clusters."""

    def sums(table: PredictionTable, keep: BoolArray) -> FloatArray:
        counts = count_choices(table, keep, CHOICES[group])
        counts = counts[:-1] if errors else count_margins(counts)
        return counts.reshape(-1, counts.shape[-1])

    def of_totals(totals: FloatArray) -> FloatArray:
        classes = math.isqrt(len(totals)) if errors else len(totals) // 3
        return value(totals.reshape(-1, classes, *totals.shape[1:]))

    return Definition(sums, of_totals)


def _sum_agreement(table: PredictionTable, keep: BoolArray) -> FloatArray:
    """Pairs of samples of a decision that name the same strategy, and pairs that name one [2, clusters]."""
    test = table.test
    keep = keep & (table.written >= 0)
    classes = len(test.strategies)
    place = table.decision[keep] * classes + table.written[keep]
    counts = np.bincount(place, minlength=classes * len(test.keys)).reshape(-1, classes)
    pairs = [(number * (number - 1) // 2).sum(axis=1) for number in (counts, counts.sum(axis=1, keepdims=True))]
    return np.stack([np.bincount(test.cluster, of_decision, minlength=test.clusters) for of_decision in pairs])


def _sum_shares(table: PredictionTable, keep: BoolArray) -> FloatArray:
    """How often each strategy was written, and how often its exact probability says [2 * classes, clusters].

    Of decisions with a distribution; zero unless replies were drawn as the model has it (temperature 1, top_p 1).
    """
    test, sampling = table.test, table.sampling
    exact = np.full((len(test.keys), len(test.strategies)), math.nan)
    known = ~np.isnan(table.distribution).any(axis=1)
    exact[table.decision[known]] = table.distribution[known]
    exact = exact[table.decision]
    keep = keep & (table.written >= 0) & ~np.isnan(exact).any(axis=1)
    keep &= (sampling.get("temperature"), sampling.get("top_p")) == (1, 1)
    marks = table.written[keep, None] == np.arange(len(test.strategies))
    return table.sum_by_cluster(keep, *marks.T, *exact[keep].T)


def _distance(totals: FloatArray) -> FloatArray:
    """Total variation distance of shares, from totals as `_sum_shares` has them."""
    written, expected = np.split(totals, 2)
    return mean(np.stack([np.abs(written - expected).sum(0), 2 * written.sum(0)]))


_CHANGES = {
    "accuracy": "chooses the strategy of the given reply {} often",
    "Q": "agrees {} with the given strategies where rare ones count as much as common ones",
    "B": "favours some strategies {}",
}


# Of a reply's strategy they mean the same as of the most probable one.
_HEADINGS = {"Q_W": "Q_W", "B": "B", "accuracy": "acc", "Q_inventory": "Q inventory", "B_guard": "guard"}


def _metrics(group: str, meanings: dict[str, str]) -> Iterator[Metric]:
    suffix = "" if group == "strategy" else " gen"
    if group == "generated":
        like = {name: f"As {_HEADINGS[name]}, but of the strategy that the reply names." for name in _HEADINGS}
        meanings = like | meanings

    def metric(name: str, heading: str, value: Value, better: bool | None = None, **settings: Any) -> Metric:
        change = _CHANGES.get(name, "") if group == "strategy" else ""
        settings = {"count": f"{group}/n", "meaning": meanings.get(name, ""), "change": change, **settings}
        definition = _choice(group, value, errors=value in (bias, guard))
        return Metric(f"{group}/{name}", heading, better, definition, **settings)

    first = group == "strategy"
    yield metric("Q", f"Q{suffix}", macro_f1, True, shown=True, grouped=True)
    yield metric("Q_W", f"Q_W{suffix}", weighted_f1, True, shown=first)
    yield metric("B", f"B{suffix}", bias, False, shown=first, biased=True, min_count=500, guard=f"{group}/B_guard")
    yield metric("accuracy", f"acc{suffix}", accuracy, True, shown=first, grouped=True)
    yield metric("classes_predicted", f"classes{suffix}", classes_predicted, decimals=0, is_count=True, shown=first)
    yield metric("n", f"n{suffix}", decisions, decimals=0, is_count=True, shown=first)
    yield metric("unparsable", "unpars.", unparsable, False, shown=not first)
    yield metric("Q_inventory", f"Q inventory{suffix}", macro_f1_inventory, True)
    yield metric("B_guard", f"guard{suffix}", guard, decimals=0)
    yield metric("classes_gold", f"gold classes{suffix}", classes_gold, decimals=0, is_count=True)


METRICS = (
    *_metrics(
        "strategy",
        {
            "Q": "Proficiency: how well the model's most probable strategy agrees with the one that the supporter in "
            "the corpus used. Mean over the strategies of F1 (the harmonic mean of precision and recall), from 0 to 1.",
            "Q_W": "Weighted proficiency: as Q, but strategies count by how often supporters in the corpus used them, "
            "so rare ones matter less. From 0 to 1.",
            "B": "Preference bias: how unevenly the model favours strategies, whatever the situation asks for. "
            "Standard deviation of its preferences over the strategies; 0 = no favourites.",
            "accuracy": "Share of decisions at which the model's most probable strategy is (one of) the corpus "
            "supporter's.",
            "classes_predicted": "How many of the strategies are the model's most probable one at least once.",
            "n": "Decisions at which the model's choice of strategy was measured.",
            "unparsable": "Share of the decisions without a choice that can be read; none where it is read off "
            "probabilities.",
            "Q_inventory": "As Q, but the mean is over all strategies of the inventory, those that never occur as 0.",
            "B_guard": "1 where B rests on a guard: a strategy was never missed, or hardly any was chosen wrongly.",
        },
    ),
    Metric(
        "strategy/label_mass", "label mass", True, mean_of("label_mass"), count="strategy/n",
        meaning="Probability that the model's reply begins with the name of any strategy at all.",
    ),
    *_metrics(
        "generated",
        {
            "Q": "As Q, but of the strategy that the model names in the reply it writes.",
            "unparsable": "Share of the written replies that name no strategy.",
        },
    ),
    Metric(
        "generated/agreement", "agree", None, Definition(_sum_agreement, mean), count="generated/n", shown=True,
        meaning="Share of pairs of samples of a decision with the same strategy, among those that name one.",
    ),
    Metric(
        "generated/distance_to_exact", "distance", None, Definition(_sum_shares, _distance), count="generated/n",
        meaning="Total variation distance, from 0 to 1, between how often each strategy was written and how probable "
        "it was at these decisions; of replies drawn as the model has it (temperature 1, top_p 1).",
    ),
)  # fmt: skip
