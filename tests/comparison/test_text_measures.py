"""BLEU and distinct-n of drawn dialogues against the package's metrics on the dialogues themselves."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from esc_lab.comparison.measures import MEASURES
from esc_lab.comparison.text_measures import bleu
from esc_lab.data.strategies import load_inventory
from esc_lab.evaluation.decisions import read_predictions
from esc_lab.metrics import Diversity, TextOverlap
from esc_lab.statistics.bootstrap import Draws, bootstrap
from tests.comparison.synthetic import predictions


def read(path, rows):
    path.write_text("\n".join(json.dumps(asdict(row)) for row in rows))
    return read_predictions(path, load_inventory("esconv").names, sra="paper/name", texts=True)


def dialogues_of(rows):
    return [[row for row in rows if row.dialogue == name] for name in sorted({row.dialogue for row in rows})]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_of_drawn_dialogues_is_that_of_their_replies(tmp_path, order):
    rows = predictions(skill=0.3, seed=2, replies=True)
    measure = MEASURES[f"text/bleu_{order}"]
    found = read(tmp_path / "rows.jsonl", rows)
    sums = measure.sums(found, np.ones(len(rows), bool))
    draws = Draws(12, 20, seed=0)
    values = bootstrap(sums[None], measure.value, draws)[0]
    groups = dialogues_of(rows)
    for weights, value in zip(draws.weights[np.dtype(np.float64)].T, values, strict=True):
        drawn = [row for group, times in zip(groups, weights, strict=True) for row in group * int(times)]
        metric = TextOverlap()
        metric.update([row.reply for row in drawn], [row.gold_reply for row in drawn])
        assert value == pytest.approx(float(metric.compute()[f"bleu_{order}"]), rel=1e-5)


def test_bleu_without_replies_or_matches():
    assert np.isnan(bleu(np.zeros((6, 1)))).all()
    no_bigram, blank = np.array([2, 0, 5, 4, 5, 5.0]), np.array([0, 0, 0, 0, 0, 9.0])
    assert bleu(np.stack([no_bigram, blank], axis=1)).tolist() == [0, 0]


def distinct(rows, name):
    """Mean over the samples of the package's distinct-n."""
    found = []
    for sample in sorted({row.sample for row in rows}):
        metric = Diversity()
        metric.update([row.reply for row in rows if row.sample == sample])
        found.append(float(metric.compute()[name]))
    return np.mean(found)


@pytest.mark.parametrize(("name", "samples"), [("distinct_1", 1), ("distinct_2", 1), ("distinct_2", 2)])
def test_contributions_to_distinct_n_are_its_jackknife(tmp_path, name, samples):
    rows = predictions(skill=0.3, seed=2, replies=True, samples=samples)
    for row in rows[:30]:
        row.reply = " ".join(f"{word}{row.dialogue}" for word in row.reply.split()) if row.turn % 4 == 1 else row.reply
    found = read(tmp_path / "rows.jsonl", rows)
    for keep in (np.ones(len(rows), bool), np.array([row.problem != "job crisis" for row in rows])):
        kept = [row for row, one in zip(rows, keep, strict=True) if one]
        groups, value = dialogues_of(kept), distinct(kept, name)
        without = np.array([distinct([row for row in kept if row not in group], name) for group in groups])
        contributions, present = MEASURES[f"text/{name}"].sums(found, keep)
        assert present.sum() == len(groups)
        expected = value + (len(groups) - 1) * (without.mean() - without)
        np.testing.assert_allclose(contributions[present > 0], expected, atol=1e-9)
        assert contributions[present > 0].mean() == pytest.approx(value)
        assert len(set(expected.round(9))) > 1


def test_the_jackknife_knows_how_distinct_n_varies_among_dialogues(tmp_path):
    """The standard error against the spread over test sets that are drawn anew, where a bootstrap misses the value."""
    chance = np.random.default_rng(0)
    shares = 1 / np.arange(1, 2001)
    shares /= shares.sum()
    rows = predictions(skill=0.3, seed=2, dialogues=30, turns=2, replies=True)
    values, errors = [], []
    for _ in range(40):
        topics = chance.integers(0, 2000, size=30)
        for number, row in enumerate(rows):
            words = chance.choice(2000, size=chance.integers(5, 25), p=shares)
            own = chance.random(len(words)) < 0.3
            row.reply = " ".join(
                f"w{(word + topics[number // 2]) % 2000 if o else word}" for word, o in zip(words, own, strict=True)
            )
        sums = MEASURES["text/distinct_1"].sums(read(tmp_path / "rows.jsonl", rows), np.ones(len(rows), bool))
        values.append(sums[0].mean())
        errors.append(sums[0].std(ddof=1) / math.sqrt(30))
    assert np.std(values) < np.sqrt(np.mean(np.square(errors))) * 1.2
    assert np.sqrt(np.mean(np.square(errors))) < 1.6 * np.std(values)
