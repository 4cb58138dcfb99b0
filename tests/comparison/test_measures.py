"""Metrics from sums over dialogues against the package's own metrics over the decisions."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from esc_lab.comparison.measures import MEASURES, bias, confusion, macro_f1, preference, weighted_f1
from esc_lab.data.strategies import load_inventory
from esc_lab.evaluation.decisions import read_predictions
from esc_lab.evaluation.summary import summarize
from esc_lab.metrics import StrategyProficiency, strategy_preference
from tests.comparison.synthetic import predictions

INVENTORY = load_inventory("esconv")


def read(path, rows):
    path.write_text("\n".join(json.dumps(asdict(row)) for row in rows))
    return read_predictions(path, INVENTORY.names, sra="paper/name", texts=True)


def value(name, sums):
    return float(MEASURES[name].value(sums.sum(axis=1, keepdims=True, dtype=float))[0])


@pytest.mark.parametrize(("favourite", "samples"), [(0, 1), (5, 3)])
def test_all_measures_are_the_packages_metrics(tmp_path, favourite, samples):
    rows = predictions(skill=0.3, seed=2, replies=True, favourite=favourite, samples=samples)
    found = read(tmp_path / "rows.jsonl", rows)
    expected, tables = summarize(rows, INVENTORY)
    every = np.ones(len(rows), bool)
    compared = [name for name in MEASURES if name in expected]
    elsewhere = {name for name in MEASURES if name.startswith(("sra/", "preference/", "judge/"))}
    alone = {"generated/agreement"} if samples == 1 else set()
    assert set(compared) == MEASURES.keys() - elsewhere - alone
    for name in compared:
        assert value(name, MEASURES[name].sums(found, every)) == pytest.approx(expected[name], abs=1e-9), name
    for group, choice in (("strategy", "chosen"), ("generated", "written")):
        counts = confusion(found, every, choice).sum(axis=2)
        assert counts.tolist() == tables[group]["confusion"]["predicted_by_gold"]


def test_attention(tmp_path):
    rows = predictions(skill=0.3, seed=2, replies=True)
    found = read(tmp_path / "rows.jsonl", rows)
    every = np.ones(len(rows), bool)
    sra, control, relative = np.array([list(row.sra["paper/name"].values()) for row in rows]).T
    for name, expected in (("sra", sra), ("log_sra", np.log(sra)), ("sham_net", np.log(sra / control)),
                           ("log_relative", np.log(relative))):  # fmt: skip
        assert value(f"sra/{name}", MEASURES[f"sra/{name}"].sums(found, every)) == pytest.approx(expected.mean())


def test_sums_of_some_rows_are_those_of_a_file_with_these_rows(tmp_path):
    rows = predictions(skill=0.3, seed=2, replies=True)
    found = read(tmp_path / "rows.jsonl", rows)
    keep = np.array([row.problem == "job crisis" for row in rows])
    expected, _ = summarize([row for row, kept in zip(rows, keep, strict=True) if kept], INVENTORY)
    for name in expected.keys() & MEASURES.keys():
        sums = MEASURES[name].sums(found, keep)
        assert value(name, sums) == pytest.approx(expected[name], abs=1e-9), name
        assert (sums != 0).any(axis=0).sum() == 3  # every fourth of twelve dialogues


tables = st.integers(2, 6).flatmap(
    lambda n: arrays(np.int64, (n + 1, n), elements=st.integers(0, 4)).filter(lambda table: table[:-1].sum() > 0)
)


@given(tables)
@settings(max_examples=200, deadline=None)
def test_f1_over_any_table(table):
    metric = StrategyProficiency([str(number) for number in range(table.shape[1])])
    rows, columns = (torch.tensor(np.repeat(place.ravel(), table.ravel())) for place in np.indices(table.shape))
    metric.update(torch.where(rows == table.shape[1], -1, rows), columns)
    expected = metric.compute()
    sums = np.concatenate([table[:-1].diagonal(), table[:-1].sum(1), table.sum(0)]).astype(float)[:, None]
    assert macro_f1(sums)[0] == pytest.approx(float(expected["macro_f1"]), abs=1e-12)
    assert weighted_f1(sums)[0] == pytest.approx(float(expected["weighted_f1"]), abs=1e-12)


@given(st.lists(tables, min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_preference_over_any_tables(found):
    n = found[0].shape[1]
    stacked = np.stack([table[:-1] for table in found if table.shape[1] == n]).astype(float)
    expected, _ = strategy_preference(torch.tensor(stacked))
    counts = stacked.reshape(len(stacked), -1).T
    np.testing.assert_allclose(preference(counts).T, expected.numpy(), atol=1e-9)
    np.testing.assert_allclose(bias(counts), expected.std(-1, correction=0).numpy(), atol=1e-9)
    np.testing.assert_allclose(bias(counts.astype(np.float32)), expected.std(-1, correction=0).numpy(), atol=2e-5)


def test_preference_of_realistic_tables_in_both_precisions():
    counts = np.random.default_rng(0).poisson(np.random.default_rng(1).gamma(0.3, 20, size=(64, 300)))
    expected, guarded = strategy_preference(torch.tensor(counts.T.reshape(-1, 8, 8)))
    assert 0 < guarded.sum() < 300
    np.testing.assert_allclose(preference(counts.astype(float)), expected.numpy().T, atol=1e-9)
    np.testing.assert_allclose(preference(counts.astype(np.float32)), expected.numpy().T, atol=1e-5)


def test_nothing_to_compute_from_is_nan():
    assert np.isnan(macro_f1(np.zeros((9, 1)))).all()
    assert np.isnan(weighted_f1(np.zeros((9, 1)))).all()
    assert np.isnan(MEASURES["text/perplexity"].value(np.zeros((2, 1)))).all()
    assert bias(np.zeros((9, 1))).tolist() == [0]  # no errors, no preference
