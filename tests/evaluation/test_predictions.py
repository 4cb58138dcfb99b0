"""predictions.jsonl: written, read line by line and as arrays, of today and of older code."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.evaluation.read_table import read_table
from esc_lab.evaluation.summary import summarize
from esc_lab.metrics.prediction_table import NOT_ASKED, PAIR_MEASURES, UNPARSABLE
from esc_lab.metrics.predictions import measure_texts, read_predictions, write_predictions
from esc_lab.metrics.records import METRICS
from esc_lab.metrics.text import rouge_l, split_words
from tests.comparison import synthetic
from tests.comparison.synthetic import predictions

NAMES = load_inventory("esconv").names


def read(path, rows, *, texts=True):
    write_predictions(path, rows)
    return read_table(path, NAMES, sra="paper/name", texts=texts)


def test_arrays_say_what_the_lines_say(tmp_path):
    rows = predictions(skill=0.5, seed=1, replies=True)
    rows[3].reply = rows[3].strategy = rows[3].sra = rows[3].adheres = None
    rows[4].distribution, rows[4].chosen, rows[4].tokens = {}, None, 0
    rows[5].prompted, rows[5].gold_reply = rows[5].gold[0], "one\u2028line"  # a line break to Unicode, not to JSON
    rows[6].prompted = next(name for name in NAMES if name not in rows[6].gold)
    shuffled = [rows[number] for number in np.random.default_rng(0).permutation(len(rows))]
    found = read(tmp_path / "rows.jsonl", shuffled)
    test = found.test
    assert (test.dialogues, test.clusters, len(test.keys)) == (12, 12, 72)
    assert test.keys == tuple(sorted((row.dialogue, row.turn) for row in rows))
    for number, row in enumerate(shuffled):
        decision = found.decision[number]
        assert test.keys[decision] == (row.dialogue, row.turn)
        assert [NAMES[one] for one in np.flatnonzero(test.gold[decision])] == sorted(row.gold, key=NAMES.index)
        assert NAMES[test.first[decision]] == row.gold[0]
        assert (test.problem[decision], test.emotion[decision], test.turn[decision]) == (
            row.problem, row.emotion, row.turn,
        )  # fmt: skip
        likeliest = max(row.distribution, key=row.distribution.get) if row.distribution else None
        assert found.chosen[number] == (NAMES.index(likeliest) if likeliest else NOT_ASKED)
        if row.reply is None or row.prompted:
            assert found.written[number] == NOT_ASKED
        else:
            assert found.written[number] == (NAMES.index(row.strategy) if row.strategy else UNPARSABLE)
        assert math.isnan(found.values["text/rouge_l"][number]) == (row is rows[3] or row is rows[6])
        assert math.isnan(found.values["log_prob"][number]) == (row is rows[4])
        assert math.isnan(found.values["log_sra"][number]) == (row.sra is None)


def test_dialogues_of_a_tree_are_one_cluster(tmp_path):
    rows = predictions(skill=0.5, seed=1)
    for row in rows:
        row.tree = f"tree {int(row.dialogue[1:]) // 5}"
    test = read(tmp_path / "rows.jsonl", rows).test
    assert (test.dialogues, test.clusters) == (12, 3)
    assert test.cluster.tolist() == sorted(test.cluster.tolist())
    # How trees are called is no part of the test set.
    assert test.identity == read(tmp_path / "others.jsonl", predictions(skill=0.5, seed=9)).test.identity


def test_texts_are_measured_once_and_anew_where_an_older_file_has_no_value(tmp_path):
    rows = predictions(skill=0.5, seed=1, replies=True)
    rows[0].prompted = next(name for name in NAMES if name not in rows[0].gold)
    older = read(tmp_path / "older.jsonl", rows)
    expected = [rouge_l(row.reply, row.gold_reply) for row in rows[1:]]
    np.testing.assert_array_equal(older.column("text/rouge_l")[1:], expected)
    assert older.column("reply_length")[1:].tolist() == [len(split_words(row.reply)) for row in rows[1:]]
    assert math.isnan(older.column("text/rouge_l")[0])  # a reply to another strategy
    assert rows[2].gold
    rows[2].prompted, rows[2].gold = NAMES[0], []  # the gold reply has no strategy, so none is another one
    assert read(tmp_path / "unlabelled.jsonl", rows).column("text/rouge_l")[2] == expected[1]
    measure_texts(rows)
    assert rows[0].values == {}
    assert rows[1].values == {"text/rouge_l": rouge_l(rows[1].reply, rows[1].gold_reply)}
    np.testing.assert_array_equal(read(tmp_path / "rows.jsonl", rows).column("text/rouge_l")[1:], expected)
    rows[1].values["text/rouge_l"] = 0.5
    assert read(tmp_path / "rows.jsonl", rows).column("text/rouge_l")[1] == 0.5
    untold = read(tmp_path / "rows.jsonl", rows, texts=False)
    assert "reply_length" not in untold.values
    assert np.isnan(untold.column("text/rouge_l")).all()


def test_echoes_of_the_instruction_are_measured_and_do_not_count_as_adherence(tmp_path):
    inventory, rows = load_inventory("extes_sra"), predictions(skill=0.5, seed=1, dialogues=4, turns=1, replies=True)
    definition = inventory.definition("Offer Hope").rstrip(".").lower()  # of eight words: five runs of four
    own = "i am sure that you will find a way through"  # ten words: seven runs
    texts = (definition, own, f"{own}, {definition}.", "Offer Hope")
    for row, text in zip(rows, texts, strict=True):
        row.prompted, row.gold, row.reply, row.adheres, row.distribution = "Offer Hope", [], text, True, {}
    assert len(definition.split()) == 8
    measure_texts(rows, inventory)
    assert [row.copied for row in rows] == pytest.approx([1.0, 0.0, 5 / 15, 1.0])
    rows[0].prompted, rows[0].strategy = None, "Offer Hope"
    rows[0].copied, rows[0].gold = None, ["Offer Hope"]  # the model chose it: there is no instruction to copy
    metrics, _ = synthetic.summary(rows, tmp_path, "extes_sra")
    assert metrics["text/copied"] == pytest.approx((0 + 1 / 3 + 1) / 3)
    assert metrics["adherence/accuracy"] == 1.0
    assert metrics["adherence/own_words"] == pytest.approx(1 / 3)


def test_attention_by_all_definitions_is_summarized_whichever_is_shown(tmp_path):
    rows = predictions(skill=0.5, seed=1, replies=True)
    values = {"paper": 1e-3, "reference": 2e-3, "first_token": 4e-3}
    for row in rows:
        row.sra = {
            f"{each}/{span}": {"sra": value * (1 + (span == "quoted")), "control": 1e-3, "relative": 1.0}
            for each, value in values.items()
            for span in ("name", "quoted")
        }
    write_predictions(tmp_path / "rows.jsonl", rows)
    metrics, _ = summarize(read_table(tmp_path / "rows.jsonl", NAMES, sra="reference/quoted", texts=False))
    for each, value in values.items():
        assert metrics[f"sra/log_sra_{each}"] == pytest.approx(math.log(2 * value))
    assert metrics["sra/log_sra"] == metrics["sra/log_sra_reference"]


def test_lines_are_read_as_they_were_written(tmp_path):
    rows = predictions(skill=0.5, seed=1, replies=True, samples=2)
    measure_texts(rows)
    for row in rows:
        row.chosen = max(row.distribution, key=row.distribution.get) if row.distribution else None
    path = tmp_path / "rows.jsonl"
    write_predictions(path, rows)
    assert list(read_predictions(path)) == rows
    # A line of older code has neither `chosen` nor `values`; one of newer code may have more.
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        del line["chosen"], line["values"]
        line["of a later version"] = 1
    path.write_text("\n".join(map(json.dumps, lines)))
    assert [row.chosen for row in read_predictions(path)] == [row.chosen for row in rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": ["Qestion"]}, "KeyError 'Qestion'"),
        ({"gold": []}, "ValueError without a gold strategy"),
        ({"strategy": "Qestion", "reply": ""}, "KeyError 'Qestion'"),
        ({"distribution": {"Question": 1.0}}, "a distribution over Question"),
        ({"turn": None, "tokens": None}, "TypeError"),
        ({"turn": 1}, "ValueError which is there twice"),
    ],
)
def test_lines_that_are_no_prediction(tmp_path, change, message):
    rows = [asdict(row) for row in predictions(skill=0.5, seed=1)]
    rows[1].update(change)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=rf"rows.jsonl:2: not a prediction with the strategies Question, .*{message}"):
        read_table(path, NAMES, sra="paper/name", texts=True)


def test_several_samples_are_rows_of_one_decision(tmp_path):
    rows = predictions(skill=0.5, seed=1, replies=True, samples=3)
    found, plain = read(tmp_path / "rows.jsonl", rows), read(tmp_path / "plain.jsonl", rows[::3])
    assert found.test.identity == plain.test.identity
    assert found.decision.tolist() == np.repeat(plain.decision, 3).tolist()
    assert found.sample.tolist() == [0, 1, 2] * len(plain.sample)
    assert (found.chosen != NOT_ASKED).sum() == len(plain.chosen)
    assert found.written[::3].tolist() == plain.written.tolist()


def test_preference_pairs(tmp_path):
    rows = predictions(skill=0.5, seed=1)
    assert read(tmp_path / "rows.jsonl", rows).pairs.shape == (6, 0)
    pairs = [
        {"dialogue": "d0003", "turn": 1, "reply": 1, "log_probs": [-3.0, -4.0], "rewards": None},
        {"dialogue": "d0001", "turn": 3, "reply": 2, "log_probs": [-4.0, -4.0], "rewards": [0.5, -0.5]},
        {"dialogue": "d0001", "turn": 3, "reply": 3, "log_probs": [-4.0, -9.0], "rewards": [0.1, 0.2], "tokens": [3, 9],
         "log_ratios": [-1.5, -3.0]},
        {"dialogue": "d0001", "turn": 3, "reply": 4, "log_probs": [-9.0, -4.0], "rewards": None, "tokens": [5, 5],
         "log_ratios": None},
    ]  # fmt: skip
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, pairs)))
    found, nan = read(tmp_path / "rows.jsonl", rows), math.nan
    expected = {
        "accuracy": [1, 0, 1, 0], "accuracy_per_token": [nan, nan, 0, 0], "shorter": [nan, nan, 1, 0.5],
        "reward_accuracy": [nan, 1, 0, nan], "reward_accuracy_per_token": [nan, nan, 0, nan],
    }  # fmt: skip
    np.testing.assert_array_equal(found.pairs, [[3, 1, 1, 1], *(expected[name] for name in PAIR_MEASURES)])
    for name, values in expected.items():  # of older runs, without tokens, some are not known
        assert METRICS[f"preference/{name}"].definition.compute(found) == np.nanmean(values)
    pairs[0]["dialogue"] = "beyond the turns that were evaluated"
    file.write_text("\n".join(map(json.dumps, pairs)))
    assert read(tmp_path / "rows.jsonl", rows).pairs.shape == (6, 0)
    file.write_text("{}")
    with pytest.raises(UserError, match=r"pairs.jsonl:1: not a preference pair: KeyError"):
        read(tmp_path / "rows.jsonl", rows)


def test_files_that_hold_none(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n{")
    with pytest.raises(UserError, match=r"rows.jsonl:1: not a prediction"):
        read_table(path, NAMES, sra="paper/name", texts=True)
    path.write_text("")
    with pytest.raises(UserError, match="there are no predictions"):
        read_table(path, NAMES, sra="paper/name", texts=True)
    with pytest.raises(UserError, match="FileNotFoundError"):
        read_table(tmp_path / "absent", NAMES, sra="paper/name", texts=True)
