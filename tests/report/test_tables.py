"""The table of strategies on the terminal."""

from __future__ import annotations

from esc_lab.report.tables import print_strategies


def test_strategies(capsys):
    row = {"strategy": "Question", "precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 4.0, "predicted": 2.0,
           "preference": 1.25}  # fmt: skip
    metrics = {"Q": 0.2, "Q_W": 0.3, "B": 0.9, "B_guard": 1.0, "n": 13.0, "classes_predicted": 3.0, "unparsable": 0.5}
    print_strategies("tiny [4bit]: strategy", [row], {f"g/{key}": value for key, value in metrics.items()}, "g")
    output = " ".join(capsys.readouterr().out.split())
    assert "tiny [4bit]: strategy" in output
    assert "Question │ 0.500 │ 0.250 │ 0.333 │ 4 │ 2 │ 1.25" in output
    assert "Q 0.200 Q_W 0.300 B 0.900 (guard acted) n 13 classes predicted 3 unparsable 50.0%" in output
