"""What trainings gained, in words: which cells are compared, the numbers, and when a difference is told."""

from __future__ import annotations

import json

import pytest

from esc_lab.comparison.formats import format_markdown, print_gains
from esc_lab.comparison.gains import find_gains
from esc_lab.comparison.record import build_record
from esc_lab.comparison.result import compute_comparison
from esc_lab.comparison.runs import group_cells, read_runs
from esc_lab.comparison.table import build_table
from esc_lab.statistics.multiple_tests import holm
from esc_lab.terminal import console
from tests.comparison.synthetic import predictions, write_evaluation, write_training


def compare(root, *, sft=0.6, cso=0.6, base=0.1, dialogues=60):
    """A base model, SFT, and CSO that goes on from SFT, with these skills."""
    training = write_training(root / "sft", "sft")
    later = write_training(root / "cso", "cso", init_from=str(training))
    rows = [predictions(skill=skill, seed=seed, dialogues=dialogues) for seed, skill in enumerate((base, sft, cso))]
    return compute_comparison(
        [
            write_evaluation(root / "of_base", rows[0]),
            write_evaluation(root / "of_sft", rows[1], checkpoint=str(training)),
            write_evaluation(root / "of_cso", rows[2], checkpoint=str(later)),
        ]
    )


def test_each_training_is_compared_with_the_base_and_with_what_it_went_on_from(tmp_path):
    comparison = compare(tmp_path)
    pairs = [(gain.cell.method, gain.other.method) for gain in comparison.gains]
    assert pairs == [("SFT", "base"), ("CSO", "base"), ("CSO", "SFT")]
    values = {cell.method: cell.runs[0].metrics for cell in comparison.cells}
    for gain in comparison.gains:
        for metric, difference in gain.differences.items():
            expected = values[gain.cell.method][metric.name] - values[gain.other.method][metric.name]
            assert difference.interval.value == pytest.approx(expected, abs=1e-6)
        tested = [each for each in gain.differences.values() if each.p == each.p]
        assert [each.corrected for each in tested] == pytest.approx(list(holm([each.p for each in tested])))
    # Over the base it is the difference that the table has.
    accuracy = next(metric for metric in comparison.columns if metric.name == "strategy/accuracy")
    in_table = comparison.estimates["tiny SFT (cso)", accuracy.name].difference
    assert comparison.gains[0].differences[accuracy].interval == in_table.interval
    # Without the run between, or without the base model, there is less to compare with.
    runs, _ = read_runs([tmp_path / "of_base", tmp_path / "of_cso"])
    assert [gain.other.method for gain in find_gains(group_cells(runs), {})] == ["base"]


def test_sentences_say_what_is_better_what_is_worse_and_what_cannot_be_told(tmp_path, capsys):
    table = build_table(compare(tmp_path))
    head, sft, _, cso = table.gains
    assert "360 decisions of 60 test dialogues" in head
    assert sft.startswith("SFT against base: it agrees more with the given strategies where rare ones count")
    assert "chooses the strategy of the given reply more often (acc +0." in sft
    assert "is less surprised by the given replies (ppl -" in sft
    assert "but it" not in sft
    assert cso.startswith("CSO against SFT: nothing is better for certain; no difference can be told in Q ")
    assert sft.endswith("too few decisions to test B.")
    assert cso.endswith("too few decisions to test B.")
    assert "## What was gained\n\nWhat was gained (" in format_markdown(table)
    print_gains(table, console())
    assert " ".join(capsys.readouterr().out.split()).endswith(" ".join(f"- {cso}".split()))


def test_a_loss_is_told_too(tmp_path):
    *_, cso = build_table(compare(tmp_path, sft=0.7, cso=0.1)).gains
    assert cso.startswith("CSO against SFT: nothing is better for certain; but it ")
    assert "chooses the strategy of the given reply less often (acc -0." in cso
    assert "is more surprised by the given replies (ppl +" in cso


def test_gains_are_recorded_and_nothing_is_said_without_training(tmp_path):
    comparison = compare(tmp_path / "trained")
    record = build_record(comparison, [], [])["gains"]
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert [(each["cell"], each["other"]) for each in record][-1] == ("tiny CSO (cso)", "tiny SFT (cso)")
    assert record[0]["differences"]["strategy/B"]["p"] is None
    alone = [write_evaluation(tmp_path / "alone", predictions(skill=0.1, seed=1))]
    assert build_table(compute_comparison(alone)).gains == []
