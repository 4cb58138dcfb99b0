"""Metrics from sums over dialogues: of drawn dialogues, of some rows, of nothing."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from esc_lab.data.strategies import load_inventory
from esc_lab.evaluation.read_table import read_table
from esc_lab.evaluation.summary import print_strategies, summarize
from esc_lab.metrics import PreferenceBias, StrategyProficiency
from esc_lab.metrics.predictions import write_predictions
from esc_lab.metrics.records import METRICS, find_metric
from esc_lab.metrics.strategy_choice import bias, macro_f1, weighted_f1
from esc_lab.metrics.text import perplexity, split_words
from tests.comparison.synthetic import predictions

NAMES = load_inventory("esconv").names
DEFINITIONS = {name: metric.definition for name, metric in METRICS.items() if metric.definition}
CONTRIBUTIONS = ("text/distinct_1", "text/distinct_2")  # means of what dialogues contribute to all of them
ELSEWHERE = ("judge/", "preference/", "converse/")


def read(path, rows):
    write_predictions(path, rows)
    return read_table(path, NAMES, sra="paper/name", texts=True)


def value(name, sums):
    return float(DEFINITIONS[name].value(sums.sum(axis=1, keepdims=True, dtype=float))[0])


def dialogues_of(rows):
    return [[row for row in rows if row.dialogue == name] for name in sorted({row.dialogue for row in rows})]


def random_rows(samples=1, **settings):
    rows = predictions(skill=0.3, seed=2, replies=True, samples=samples, **settings)
    for number, row in enumerate(rows):
        row.sampling["temperature"] = 1.0
        if number % 7 == 0:
            row.reply, row.bleu = "", [0, 0, 0, 0, 0, len(row.gold_reply.split())]
    return rows


@pytest.mark.parametrize("samples", [1, 3])
def test_sums_of_drawn_dialogues_are_those_of_a_file_with_these(tmp_path, samples):
    rows = random_rows(samples)
    table, groups = read(tmp_path / "rows.jsonl", rows), dialogues_of(rows)
    keep = np.ones(len(rows), bool)
    for seed in range(3):
        weights = np.random.default_rng(seed).multinomial(len(groups), np.full(len(groups), 1 / len(groups)))
        drawn = [
            replace(row, dialogue=f"{row.dialogue} {copy}", tree=f"{row.dialogue} {copy}")
            for group, times in zip(groups, weights, strict=True)
            for copy in range(times)
            for row in group
        ]
        expected = read(tmp_path / "drawn.jsonl", drawn)
        for name, definition in DEFINITIONS.items():
            if name not in CONTRIBUTIONS:
                totals = definition.sums(table, keep).astype(float) @ weights[:, None]
                np.testing.assert_allclose(definition.value(totals)[0], definition.compute(expected), atol=1e-12)


def test_sums_of_some_rows_are_those_of_a_file_with_these_rows(tmp_path):
    rows = random_rows(2)
    keep = np.array([row.problem == "job crisis" for row in rows])
    table = read(tmp_path / "rows.jsonl", rows)
    expected, _ = summarize(read(tmp_path / "kept.jsonl", [row for row, one in zip(rows, keep, strict=True) if one]))
    found = {name: definition.sums(table, keep) for name, definition in DEFINITIONS.items()}
    assert {name for name in found if not name.startswith(ELSEWHERE)} <= expected.keys()
    for name in expected.keys() & found.keys():
        assert value(name, found[name]) == pytest.approx(expected[name], abs=1e-12), name
        assert (found[name] != 0).any(axis=0).sum() <= 3  # every fourth of twelve dialogues


@pytest.mark.parametrize("favourite", [0, 5])
def test_choices_are_those_of_the_torch_metrics(tmp_path, favourite):
    rows = predictions(skill=0.3, seed=2, replies=True, favourite=favourite)
    metrics, tables = summarize(read(tmp_path / "rows.jsonl", rows))
    for group, choices in (
        ("strategy", [max(row.distribution, key=row.distribution.get) for row in rows]),
        ("generated", [row.strategy for row in rows]),
    ):
        # Where several are right, gold is the predicted one if it is among them.
        golds = [name if name in row.gold else row.gold[0] for row, name in zip(rows, choices, strict=True)]
        preds = torch.tensor([-1 if name is None else NAMES.index(name) for name in choices])
        target = torch.tensor([NAMES.index(name) for name in golds])
        proficiency, preference = StrategyProficiency(NAMES), PreferenceBias(NAMES)
        proficiency.update(preds, target)
        preference.update(preds, target)
        assert tables[group]["confusion"]["predicted_by_gold"] == proficiency.confusion.tolist()
        names = {"Q": "macro_f1", "Q_inventory": "macro_f1_inventory", "Q_W": "weighted_f1"}
        own = ("accuracy", "n", "classes_predicted", "classes_gold", "unparsable")
        for name, theirs in {**names, **{name: name for name in own}}.items():
            assert metrics[f"{group}/{name}"] == pytest.approx(float(proficiency.compute()[theirs]), abs=1e-12)
        assert metrics[f"{group}/B"] == pytest.approx(float(preference.compute()["bias"]), abs=1e-12)
        assert metrics[f"{group}/B_guard"] == float(preference.compute()["guard"])
        rows_of = tables[group]["per_strategy"]
        assert [row["preference"] for row in rows_of] == pytest.approx(preference.preference.tolist())
        assert [row["recall"] for row in rows_of] == pytest.approx(proficiency.per_class()["recall"].tolist())


def test_attention_and_agreement_by_brute_force(tmp_path):
    rows = random_rows(3)
    metrics, _ = summarize(read(tmp_path / "rows.jsonl", rows))
    sra, control, relative = np.array([list(row.sra["paper/name"].values()) for row in rows]).T
    for name, expected in (("sra", sra), ("log_sra", np.log(sra)), ("sham_net", np.log(sra / control)),
                           ("log_relative", np.log(relative))):  # fmt: skip
        assert metrics[f"sra/{name}"] == pytest.approx(expected.mean())
    assert metrics["sra/n"] == len(rows)
    net = np.log(sra / control)
    followed = np.array([str(row.followed) for row in rows])
    within = [net[followed == name].mean() for name in NAMES if name in followed]
    assert metrics["sra/sham_net_within"] == pytest.approx(np.mean(within))
    assert "sra/sham_net_spread" not in metrics
    for number, row in enumerate(rows):
        row.neutral = {"phrase": "abc"[number % 3], "place": "before"} if number % 5 else None
    metrics, _ = summarize(read(tmp_path / "phrases.jsonl", rows))
    phrase = np.array([row.neutral["phrase"] if row.neutral else "" for row in rows])
    spread = np.std([net[phrase == name].mean() for name in "abc"], ddof=1)
    assert metrics["sra/sham_net_spread"] == pytest.approx(spread)
    by_decision = [rows[start : start + 3] for start in range(0, len(rows), 3)]
    pairs = [(a.strategy, b.strategy) for group in by_decision for a, b in combinations(group, 2)]
    assert metrics["generated/agreement"] == pytest.approx(np.mean([a == b for a, b in pairs if a and b]))


def test_nothing_to_compute_from_is_nan():
    assert np.isnan(macro_f1(np.zeros((3, 4, 1)))).all()
    assert np.isnan(weighted_f1(np.zeros((3, 4, 1)))).all()
    assert np.isnan(perplexity(np.zeros((2, 1)))).all()
    assert np.isnan(bias(np.zeros((3, 3, 1)))).all()
    assert bias(np.eye(3)[..., None]).tolist() == [0]  # no errors, no preference


def test_perplexity_weighs_tokens_alike():
    assert perplexity(np.array([-12.0, 10.0])) == pytest.approx(math.exp(12 / 10))
    assert perplexity(np.array([-math.inf, 2.0])) == math.inf


def test_what_was_not_measured_is_no_metric(tmp_path, capsys):
    metrics, tables = summarize(read(tmp_path / "rows.jsonl", predictions(skill=0.5, seed=1)))
    assert {name.partition("/")[0] for name in metrics} == {"chance", "decisions", "strategy", "text"}
    assert {name for name in metrics if name.startswith("text/")} == {"text/perplexity"}
    assert set(tables) == {"strategy"}
    nothing = predictions(skill=0.5, seed=1, replies=True)
    for row in nothing:
        row.strategy = None  # no reply names a strategy
    metrics, tables = summarize(read(tmp_path / "nothing.jsonl", nothing))
    left = {name.partition("/")[2] for name in metrics if name.startswith("generated/")}
    assert left == {"n", "unparsable", "classes_predicted", "classes_gold"}  # no rate, and no B of 0
    assert metrics["generated/unparsable"] == 1
    assert {row["preference"] for row in tables["generated"]["per_strategy"]} == {None}
    print_strategies("nothing", tables["generated"], metrics, "generated")
    assert "Q -  Q_W -  B -  acc -" in capsys.readouterr().out


def test_every_metric_has_what_tables_and_pages_show():
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.count in METRICS or metric.name == "val/loss"
        assert METRICS[metric.count].is_count if metric.count else True
        assert metric.heading
        assert metric.meaning.endswith(".") or (metric.is_count and not metric.shown), name
        assert metric.gist.endswith("."), name
    assert find_metric("text/unheard_of").heading == "text/unheard_of"
    assert find_metric("text/unheard_of").count == "text/replies"
    assert find_metric("data/turns").count == ""


def test_definitions_need_no_torch():
    program = "import esc_lab.metrics.records, esc_lab.evaluation.summary, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- distinct-n


def distinct(rows, length):
    """Distinct-n of the rows, mean over their samples."""
    found = []
    for sample in sorted({row.sample for row in rows}):
        words = [split_words(row.reply) for row in rows if row.sample == sample]
        grams = [gram for text in words for gram in zip(*(text[start:] for start in range(length)), strict=False)]
        found.append(len(set(grams)) / max(1, len(grams)))
    return np.mean(found)


@pytest.mark.parametrize(("length", "samples"), [(1, 1), (2, 1), (2, 2)])
def test_contributions_to_distinct_n_are_its_jackknife(tmp_path, length, samples):
    name = f"text/distinct_{length}"
    rows = predictions(skill=0.3, seed=2, replies=True, samples=samples)
    for row in rows[:30]:
        row.reply = " ".join(f"{word}{row.dialogue}" for word in row.reply.split()) if row.turn % 4 == 1 else row.reply
    table = read(tmp_path / "rows.jsonl", rows)
    for keep in (np.ones(len(rows), bool), np.array([row.problem != "job crisis" for row in rows])):
        kept = [row for row, one in zip(rows, keep, strict=True) if one]
        groups, whole = dialogues_of(kept), distinct(kept, length)
        without = np.array([distinct([row for row in kept if row not in group], length) for group in groups])
        contributions, present = DEFINITIONS[name].sums(table, keep)
        assert present.sum() == len(groups)
        expected = whole + (len(groups) - 1) * (without.mean() - without)
        np.testing.assert_allclose(contributions[present > 0], expected, atol=1e-9)
        assert contributions[present > 0].mean() == pytest.approx(whole)
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
        sums = DEFINITIONS["text/distinct_1"].sums(read(tmp_path / "rows.jsonl", rows), np.ones(len(rows), bool))
        values.append(sums[0].mean())
        errors.append(sums[0].std(ddof=1) / math.sqrt(30))
    assert np.std(values) < np.sqrt(np.mean(np.square(errors))) * 1.2
    assert np.sqrt(np.mean(np.square(errors))) < 1.6 * np.std(values)
